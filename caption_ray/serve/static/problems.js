// Errors in words: what happened, and what can be done about it.

import { byId } from "./dom.js";
import { formatBytes } from "./picture.js";

/** A problem that this page finds by itself, before it asks the service. */
export class PictureProblem extends Error {
  constructor(title, text) {
    super(text);
    this.title = title;
  }
}

/** Say what went wrong, and offer what can be done about it; returns what `describeProblem` does. */
export function showProblemText(error) {
  const found = describeProblem(error);
  const { title, text, detail, canRetry, needsKey } = found;
  byId("problem").hidden = false;
  byId("problem-title").textContent = title;
  byId("problem-text").textContent = text;
  byId("problem-detail").textContent = detail;
  byId("countdown").hidden = true;
  byId("retry").hidden = !canRetry;
  byId("key-form").hidden = !needsKey;
  if (needsKey) byId("key").focus();
  return found;
}

/** Add to the message when the picture is sent again by itself. */
export function tellWait(seconds) {
  byId("countdown").hidden = false;
  byId("countdown").textContent = `Trying again in ${seconds} s.`;
}

export function hideProblem() {
  byId("problem").hidden = true;
}

/** Return `{title, text, detail, canRetry, needsKey}` for whatever went wrong. */
function describeProblem(error) {
  if (error instanceof PictureProblem) return problem(error.title, error.message);
  switch (error.status) {
    case 0:
      return navigator.onLine
        ? problem("The service does not answer", "It may be starting, or the connection broke.", { canRetry: true })
        : problem("You are offline", "The caption comes as soon as you are connected again.", { canRetry: true });
    case 401:
      return problem(
        error.hadKey ? "That key is not known" : "This service asks for a key",
        "Enter the API key that you were given.",
        { needsKey: true },
      );
    case 408:
    case 504:
      return problem("That took too long", "The picture, or its caption, was not there in time.", { canRetry: true });
    case 413:
      return problem("The file is too large", limitText(error, formatBytes));
    case 415:
      return problem("That is not a picture", "JPEG, PNG, WebP, GIF and most other kinds of picture will do.");
    case 400:
    case 422:
      if (error.code === "too_many_pixels") {
        return problem("The picture has too many pixels", limitText(error, formatPixels));
      }
      return problem("This picture cannot be read", "The file is broken, or of a kind that is not known here.", {
        detail: error.message,
      });
    case 429:
    case 503:
      return problem("The service is busy", "Too many pictures at once, or it is just starting.", { canRetry: true });
    default:
      return problem("Something went wrong", "It is not your picture's fault.", { canRetry: true, detail: error.message });
  }
}

function problem(title, text, { canRetry = false, needsKey = false, detail = "" } = {}) {
  return { title, text, detail, canRetry, needsKey };
}

function limitText({ limit }, format) {
  return limit ? `At most ${format(limit)} are taken.` : "Choose a smaller picture.";
}

/** "50 megapixels" */
function formatPixels(count) {
  return `${Number((count / 1e6).toPrecision(2))} megapixels`;
}
