// One picture's way from file to caption. One is under way at a time; the next one calls it off.

import { ApiError, fetchCaptions, fetchExample, streamCaption } from "./api.js";
import { prefersStillness } from "./attention.js";
import { announce, keepFocus } from "./dom.js";
import { describeModel, knownModel } from "./model.js";
import { pause } from "./pause.js";
import { ENOUGH_BYTES, MAX_BYTES, fewerBytes, formatBytes } from "./picture.js";
import { isOfAnotherKind, isReadable, isSurelyNoPicture, isTooLarge, shrink } from "./picture.js";
import { PictureProblem, hideProblem, tellWait } from "./problems.js";
import * as view from "./view.js";

const WORD_PAUSE_MS = 110; // between words, so that one can follow; the stream may be faster
const MAX_WAITS = 5; // automatic repetitions while the service is busy
const MAX_ALTERNATIVES = 5;
const DEFAULT_WAIT_S = 2;

// {file, example, enough, url, abort, signal, skipWait} of the picture that is shown. An example's `file` is null until
// it has been fetched; of a file with more bytes than `enough` a smaller copy is sent.
let current = null;

/** Show a picture and caption it, instead of whatever was there. */
export function describe(file) {
  return start({ file });
}

/** Show one of the page's examples, which is fetched first, and caption it, instead of whatever was there. */
export function describeExample(name) {
  return start({ example: name });
}

async function start(source) {
  const run = begin(source);
  try {
    const { picture, answer } = await captionPatiently(run);
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
  else if (current) start(current);
}

/** Back to the start. */
export function clear() {
  if (!current) return;
  callOff();
  view.closeResult();
  view.setBusy(false);
  announce("Cleared.");
}

function begin({ file = null, example = null, enough = ENOUGH_BYTES }) {
  callOff();
  const abort = new AbortController();
  current = { file, example, enough, url: "", abort, signal: abort.signal, skipWait: null };
  view.openResult();
  if (file) show(current);
  view.markExample(example);
  view.setBusy(true);
  announce("Looking at the picture.");
  return current;
}

function show(run) {
  run.url = URL.createObjectURL(run.file);
  view.showPicture(run.url, isSurelyNoPicture(run.file));
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
async function captionPatiently(run) {
  let picture = null;
  for (let waits = 0; ; ) {
    try {
      if (!run.file) await addFile(run);
      picture ??= await prepared(run);
      return { picture, answer: await captionOnce(run, picture) };
    } catch (error) {
      run.signal.throwIfAborted();
      const isOriginal = picture !== null && picture === run.file;
      if (error.code === "body_timeout") run.enough = fewerBytes(picture.size); // for when it is tried again
      if (isTooLarge(picture, isOriginal, error)) {
        picture = await smaller(run, (error.status === 413 && error.limit) || MAX_BYTES);
        if (!picture) throw error;
      } else if (isOriginal && isOfAnotherKind(picture, error)) {
        picture = await converted(run);
      } else if (error.isPassing && waits++ < MAX_WAITS) {
        await waitVisibly(run, error, error.retryAfter ?? DEFAULT_WAIT_S);
      } else {
        throw error;
      }
    }
  }
}

/** Fetch the example, and show it. */
async function addFile(run) {
  run.file = await fetchExample(run.example, run.signal);
  run.signal.throwIfAborted();
  show(run);
}

/** Return the picture as it is first sent: scaled down where it has far more bytes than the model makes use of. */
async function prepared(run) {
  const { file, enough } = run;
  if (isSurelyNoPicture(file)) {
    throw new PictureProblem("That is not a picture", `${file.name || "The file"} is of another kind.`);
  }
  const isThere = await isReadable(file);
  run.signal.throwIfAborted();
  if (!isThere) throw new PictureProblem("This file cannot be read", "It is a folder, or has changed. Choose it again.");
  const picture = (file.size > enough && (await smaller(run, enough))) || file;
  if (picture.size > MAX_BYTES) throw new ApiError("", { status: 413, limit: MAX_BYTES });
  return picture;
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
async function addAlternatives(run, picture, { captions, model_id }) {
  if (knownModel()?.id !== model_id) await describeModel(); // another answers than when it was last asked about
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
  const picture = await shrink(run.file, run.enough).catch(() => null);
  run.signal.throwIfAborted();
  const advice = `Save ${run.file.name || "it"} as JPEG or PNG first.`;
  if (!picture) throw new PictureProblem("This kind of picture is not read here", advice);
  view.note("Sent as a JPEG: the service does not read this kind of picture.");
  return picture;
}

/** Scale the picture down to at most so many bytes, and say so. Returns null where the browser cannot. */
async function smaller(run, maxBytes) {
  const picture = await shrink(run.file, maxBytes).catch(() => null);
  run.signal.throwIfAborted();
  const sizeOf = ({ size }) => formatBytes(size);
  if (picture) view.note(`Scaled down from ${sizeOf(run.file)} to ${sizeOf(picture)} before it was sent.`);
  return picture;
}

/** Tell that the service is busy, count down, and take the message away again. "Try again" ends the waiting. */
async function waitVisibly(run, error, seconds) {
  view.showProblem(error);
  const skip = (run.skipWait = new AbortController());
  run.signal.addEventListener("abort", () => skip.abort()); // AbortSignal.any is younger than some browsers
  for (let left = Math.ceil(seconds); left > 0 && !skip.signal.aborted; left--) {
    tellWait(left);
    await pause(1000, skip.signal).catch(() => {});
  }
  run.skipWait = null;
  run.signal.throwIfAborted();
  keepFocus(hideProblem);
}
