// One picture's way from file to caption. One is under way at a time; the next one calls it off.

import { ApiError, fetchCaptions, streamCaption } from "./api.js";
import { prefersStillness } from "./attention.js";
import { announce } from "./dom.js";
import { describeModel, knownModel } from "./model.js";
import { pause } from "./pause.js";
import { MAX_BYTES, formatBytes, isOfAnotherKind, isSurelyNoPicture, shrink } from "./picture.js";
import { PictureProblem, hideProblem, tellWait } from "./problems.js";
import * as view from "./view.js";

const WORD_PAUSE_MS = 110; // between words, so that one can follow; the stream may be faster
const MAX_WAITS = 5; // automatic repetitions while the service is busy
const MAX_ALTERNATIVES = 5;
const DEFAULT_WAIT_S = 2;

let current = null; // {file, url, abort, signal, skipWait} of the picture that is shown

/** Show a picture and caption it, instead of whatever was there. */
export async function describe(file) {
  const run = begin(file);
  try {
    if (isSurelyNoPicture(file)) {
      throw new PictureProblem("That is not a picture", `${file.name || "The file"} is of another kind.`);
    }
    const first = file.size > MAX_BYTES ? await smaller(run, new ApiError("", { status: 413, limit: MAX_BYTES })) : file;
    const { picture, answer } = await captionPatiently(run, first);
    await addAlternatives(run, picture, answer);
  } catch (error) {
    if (!run.signal.aborted) view.showProblem(error);
  } finally {
    if (!run.signal.aborted) view.setBusy(false);
  }
}

/** Try again at once: the wait that is under way ends, or the picture is described anew. */
export function retry() {
  if (current?.skipWait) current.skipWait.abort();
  else if (current) describe(current.file);
}

/** Back to the start. */
export function clear() {
  if (!current) return;
  callOff();
  view.closeResult();
  view.setBusy(false);
  announce("Cleared.");
}

function begin(file) {
  callOff();
  const abort = new AbortController();
  current = { file, url: URL.createObjectURL(file), abort, signal: abort.signal, skipWait: null };
  view.openResult(current.url, isSurelyNoPicture(file));
  view.setBusy(true);
  announce("Looking at the picture.");
  return current;
}

function callOff() {
  current?.abort.abort();
  if (current) URL.revokeObjectURL(current.url);
  current = null;
}

/**
 * Caption a picture; wait where the service is busy, scale the picture down where it is too large for it, and make a
 * JPEG of it where it is of a kind that is not read there. Return the answer, and the picture as it was sent.
 */
async function captionPatiently(run, picture) {
  for (let waits = 0; ; ) {
    try {
      return { picture, answer: await captionOnce(run, picture) };
    } catch (error) {
      run.signal.throwIfAborted();
      if (isTooLarge(error) && picture === run.file) {
        picture = await smaller(run, error);
      } else if (error.status === 415 && picture === run.file && isOfAnotherKind(picture)) {
        picture = await converted(run);
      } else if (error.isPassing && waits++ < MAX_WAITS) {
        await waitVisibly(run, error, error.retryAfter ?? DEFAULT_WAIT_S);
      } else {
        throw error;
      }
    }
  }
}

async function captionOnce(run, picture) {
  view.clearWords();
  for await (const { event, data } of streamCaption(picture, run.signal)) {
    if (event === "word") {
      view.showWord(data);
      if (!prefersStillness()) await pause(WORD_PAUSE_MS, run.signal);
    }
    if (event === "caption") {
      view.showCaption(data.captions[0]);
      announce(view.shownSentence());
      return data;
    }
  }
  throw new ApiError("No caption came.");
}

/** Fetch what else the beam considered. The caption stands already, so a failure here is only noted. */
async function addAlternatives(run, picture, { captions }) {
  if (!knownModel()) await describeModel();
  run.signal.throwIfAborted();
  const count = Math.min(MAX_ALTERNATIVES, knownModel()?.beam_width ?? 1);
  if (captions.length < 2 && count > 1) {
    try {
      ({ captions } = await fetchCaptions(picture, count, run.signal));
    } catch (error) {
      run.signal.throwIfAborted();
      view.note("Other captions could not be fetched this time.");
      return;
    }
  }
  if (captions.length < 2) return;
  const before = view.shownSentence();
  view.showAlternatives(captions);
  const after = view.shownSentence();
  if (after !== before) announce(`On second thought: ${after}`);
}

/** Make a JPEG of a picture that the browser reads and the service does not. */
async function converted(run) {
  let picture;
  try {
    picture = await shrink(run.file, MAX_BYTES);
  } catch {
    const text = `Save ${run.file.name || "it"} as JPEG or PNG first.`;
    throw new PictureProblem("This kind of picture is not read here", text);
  }
  run.signal.throwIfAborted();
  view.note("Sent as a JPEG: the service does not read this kind of picture.");
  return picture;
}

/** Scale the picture down to what the service takes, and say so; throws its refusal where the browser cannot. */
async function smaller(run, refusal) {
  let picture;
  try {
    picture = await shrink(run.file, (refusal.status === 413 && refusal.limit) || MAX_BYTES);
  } catch {
    throw refusal;
  }
  run.signal.throwIfAborted();
  view.note(`Scaled down from ${formatBytes(run.file.size)} to ${formatBytes(picture.size)} before it was sent.`);
  return picture;
}

function isTooLarge({ status, code }) {
  return status === 413 || code === "too_many_pixels";
}

/** Tell that the service is busy, count down, and take the message away again. "Try again" ends the waiting. */
async function waitVisibly(run, error, seconds) {
  view.showProblem(error);
  run.skipWait = new AbortController();
  const either = AbortSignal.any([run.signal, run.skipWait.signal]);
  for (let left = Math.ceil(seconds); left > 0 && !either.aborted; left--) {
    tellWait(left);
    await pause(1000, either).catch(() => {});
  }
  run.skipWait = null;
  run.signal.throwIfAborted();
  hideProblem();
}
