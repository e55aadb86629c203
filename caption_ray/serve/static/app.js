// The page: takes a picture, asks for its caption, and shows both. One picture is under way at a time.

import { ApiError, apiKey, fetchCaptions, fetchModel, streamCaption } from "./api.js";
import { AttentionOverlay, describeGrid, prefersStillness } from "./attention.js";
import { AlternativesView, CaptionView, percent, sentence } from "./caption.js";
import { copyText } from "./clipboard.js";
import { MAX_BYTES, formatBytes, isSurelyNoPicture, shrink } from "./picture.js";
import { PictureProblem, describeProblem } from "./problems.js";
import { listenForPictures } from "./sources.js";

const WORD_PAUSE_MS = 110; // between words, so that one can follow; the stream may be faster
const LAST_LOOK_MS = 900; // how long the last word's map stays
const MAX_WAITS = 5; // automatic repetitions while the service is busy
const MAX_ALTERNATIVES = 5;
const DEFAULT_WAIT_S = 2;
const MIN_RATIO = 0.25; // of width to height, of pictures as they are shown
const MAX_RATIO = 4;

const byId = (id) => document.getElementById(id);
const overlay = new AttentionOverlay(byId("attention"));
const caption = new CaptionView(byId("caption"), look);
const alternatives = new AlternativesView(byId("alternatives"), (index) => showCaption(current.captions[index]));

let current = null; // {file, abort, url, captions, said, isLooking} of the picture that is shown
let model = null;

// --- One picture, from file to caption -------------------------------------------------------------------------

/** Show a picture and caption it, instead of whatever was there. */
async function describe(file) {
  const run = begin(file);
  try {
    if (isSurelyNoPicture(file)) {
      throw new PictureProblem("That is not a picture", `${file.name || "The file"} is of another kind.`);
    }
    const picture = file.size > MAX_BYTES ? await smaller(run, MAX_BYTES) : file;
    const answer = await captionPatiently(run, picture);
    await showAlternatives(run, picture, answer);
  } catch (error) {
    if (!run.signal.aborted) showProblem(error);
  } finally {
    if (!run.signal.aborted) setBusy(false);
  }
}

/** Caption a picture; wait where the service is busy, and scale the picture down where it is too large for it. */
async function captionPatiently(run, picture) {
  for (let waits = 0; ; ) {
    try {
      return await captionOnce(run, picture);
    } catch (error) {
      run.signal.throwIfAborted();
      if (isTooLarge(error) && picture === run.file) {
        picture = await smaller(run, error.status === 413 ? error.limit : MAX_BYTES);
      } else if (error.isPassing && waits++ < MAX_WAITS) {
        await waitVisibly(run, error, error.retryAfter ?? DEFAULT_WAIT_S);
      } else {
        throw error;
      }
    }
  }
}

async function captionOnce(run, picture) {
  caption.clear();
  overlay.clear();
  for await (const { event, data } of streamCaption(picture, run.signal)) {
    if (event === "word") await showWord(run, data);
    if (event === "caption") {
      run.captions = data.captions;
      showCaption(data.captions[0]);
      announce(run.said);
      return data;
    }
  }
  throw new ApiError("No caption came.");
}

/** Fetch what else the beam considered. The caption stands already, so a failure here is only noted. */
async function showAlternatives(run, picture, answer) {
  const count = Math.min(MAX_ALTERNATIVES, model?.beam_width ?? MAX_ALTERNATIVES);
  let { captions } = answer;
  if (captions.length < 2 && count > 1) {
    try {
      ({ captions } = await fetchCaptions(picture, count, run.signal));
    } catch (error) {
      run.signal.throwIfAborted();
      note("Other captions could not be fetched this time.");
      return;
    }
  }
  if (captions.length < 2) return;
  const before = run.said;
  run.captions = captions;
  alternatives.show(captions);
  byId("others").hidden = false;
  showCaption(captions[0]);
  if (run.said !== before) announce(`On second thought: ${run.said}`);
}

/** Scale the picture down to what the service takes, and say so. */
async function smaller(run, maxBytes) {
  let picture;
  try {
    picture = await shrink(run.file, maxBytes ?? MAX_BYTES);
  } catch {
    throw new ApiError("", { status: 413, limit: maxBytes });
  }
  run.signal.throwIfAborted();
  note(`Scaled down from ${formatBytes(run.file.size)} to ${formatBytes(picture.size)} before it was sent.`);
  return picture;
}

function isTooLarge({ status, code, limit }) {
  return status === 413 || (status === 422 && Boolean(limit) && /pixel/.test(code));
}

// --- What is seen ----------------------------------------------------------------------------------------------

function begin(file) {
  const hadFocusInside = byId("start").contains(document.activeElement);
  reset();
  const abort = new AbortController();
  current = { file, abort, signal: abort.signal, url: URL.createObjectURL(file), captions: [], said: "", isLooking: false };
  document.body.classList.add("has-picture");
  byId("start").hidden = byId("intro").hidden = true;
  byId("result").hidden = false;
  showPicture(current.url, isSurelyNoPicture(file));
  if (hadFocusInside) byId("result-title").focus({ preventScroll: true });
  window.scrollTo({ top: 0, behavior: prefersStillness() ? "instant" : "smooth" });
  setBusy(true);
  announce("Looking at the picture.");
  return current;
}

function showPicture(url, isHopeless) {
  const [picture, frame] = [byId("picture"), byId("frame")];
  frame.classList.toggle("hopeless", isHopeless);
  picture.alt = "Your picture; its caption is on the way";
  picture.onload = () => {
    const ratio = Math.min(MAX_RATIO, Math.max(MIN_RATIO, picture.naturalWidth / picture.naturalHeight));
    frame.style.setProperty("--ratio", ratio);
  };
  picture.onerror = () => {
    frame.classList.add("unshown");
    byId("unseen").hidden = false;
  };
  picture.src = url;
}

async function showWord(run, word) {
  caption.append(word);
  overlay.show(word.attention);
  if (!prefersStillness()) await pause(WORD_PAUSE_MS, run.signal);
}

function showCaption({ words }) {
  caption.replace(words);
  current.said = sentence(words);
  byId("picture").alt = current.said;
  byId("copy").hidden = false;
  describeLook(null);
  const run = current;
  setTimeout(() => run === current && !run.isLooking && overlay.show(null), prefersStillness() ? 0 : LAST_LOOK_MS);
}

/** Show where the model looked for a word; with null, the bare picture. */
function look(word) {
  if (!current) return;
  current.isLooking = word !== null;
  overlay.show(word?.attention ?? null);
  describeLook(word);
}

function describeLook(word) {
  const where = byId("where");
  if (word?.attention) {
    const { place, peak } = describeGrid(word.attention);
    const strong = Object.assign(document.createElement("strong"), { textContent: word.text });
    where.replaceChildren(strong, ` · ${place} · brightest ${percent(peak)}`);
  } else {
    const verb = matchMedia("(hover: hover)").matches ? "Move over" : "Tap";
    where.textContent = current?.said ? `${verb} a word to see where the model looked for it.` : "";
  }
}

function reset() {
  current?.abort.abort();
  if (current) URL.revokeObjectURL(current.url);
  current = null;
  caption.clear();
  overlay.clear();
  byId("alternatives").replaceChildren();
  byId("where").textContent = "";
  for (const id of ["others", "note", "problem", "copy", "unseen"]) byId(id).hidden = true;
  byId("frame").classList.remove("unshown", "hopeless");
  byId("picture").removeAttribute("src");
  byId("copy").textContent = "Copy caption";
  markExample(null);
}

/** Back to the start. */
function clear() {
  if (!current) return;
  reset();
  setBusy(false);
  document.body.classList.remove("has-picture");
  byId("result").hidden = true;
  byId("start").hidden = byId("intro").hidden = false;
  byId("start").querySelector("button").focus();
  announce("Cleared.");
}

function setBusy(isBusy) {
  document.body.classList.toggle("busy", isBusy);
  byId("caption").setAttribute("aria-busy", String(isBusy));
}

function note(text) {
  byId("note").textContent = text;
  byId("note").hidden = false;
}

/** Say it to screen readers. */
function announce(text) {
  byId("status").textContent = text;
}

// --- Problems --------------------------------------------------------------------------------------------------

function showProblem(error) {
  const { title, text, detail, canRetry, needsKey } = describeProblem(error);
  if (!current.said) {
    caption.clear();
    byId("picture").alt = "Your picture, without a caption";
  }
  byId("problem").hidden = false;
  byId("problem-title").textContent = title;
  byId("problem-text").textContent = text;
  byId("problem-detail").textContent = detail;
  if (byId("frame").classList.contains("unshown") && !canRetry) byId("frame").classList.add("hopeless");
  byId("countdown").hidden = true;
  byId("retry").hidden = !canRetry;
  byId("key-form").hidden = !needsKey;
  if (needsKey) byId("key").focus();
}

/** Tell that the service is busy, count down, and take the message away again. "Try again" ends the waiting. */
async function waitVisibly(run, error, seconds) {
  showProblem(error);
  const countdown = byId("countdown");
  countdown.hidden = false;
  run.skipWait = new AbortController();
  const either = AbortSignal.any([run.signal, run.skipWait.signal]);
  for (let left = Math.ceil(seconds); left > 0 && !either.aborted; left--) {
    countdown.textContent = `Trying again in ${left} s.`;
    await pause(1000, either).catch(() => {});
  }
  run.skipWait = null;
  run.signal.throwIfAborted();
  byId("problem").hidden = true;
}

function retry() {
  if (current?.skipWait) current.skipWait.abort();
  else if (current) describe(current.file);
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

// --- Examples, and the rest of the page ----------------------------------------------------------------------

async function describeExample(name) {
  const response = await fetch(`static/examples/${name}`, { cache: "force-cache" }).catch(() => null);
  const content = response?.ok ? await response.blob() : new Blob([]);
  const done = describe(new File([content], name, { type: "image/jpeg" }));
  markExample(name);
  await done;
}

function markExample(name) {
  for (const button of document.querySelectorAll("[data-example]")) {
    button.setAttribute("aria-pressed", String(button.dataset.example === name));
  }
}

async function copyCaption() {
  const button = byId("copy");
  const hasCopied = await copyText(current.said);
  button.textContent = hasCopied ? "Copied" : "Select and copy it by hand";
  announce(button.textContent);
  setTimeout(() => (button.textContent = "Copy caption"), 2000);
}

async function describeModel() {
  try {
    model = await fetchModel();
    byId("model").textContent = modelLine(model);
  } catch {
    byId("model").textContent = "The model cannot be asked about itself right now.";
  }
}

function modelLine({ name, backbone, num_parameters, vocabulary_size, metrics }) {
  const scores = [
    ["BLEU-4", metrics.bleu_4],
    ["CIDEr", metrics.cider],
  ].filter(([, value]) => typeof value === "number");
  const scored = scores.map(([label, value]) => `${label} ${value.toFixed(3)}`).join(", ");
  return [
    `Model ${name}`,
    backbone,
    `${(num_parameters / 1e6).toFixed(1)} million parameters`,
    `${vocabulary_size.toLocaleString("en")} words`,
    ...(scored ? [`${scored} on unseen pictures`] : []),
  ].join(" · ");
}

function useKey(event) {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  byId("key").value = "";
  describeModel();
  retry();
}

function start() {
  listenForPictures(describe, () => announce("That was no file. Save the picture first, then drop its file here."));
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => describeExample(button.dataset.example));
  }
  byId("copy").addEventListener("click", copyCaption);
  byId("clear").addEventListener("click", clear);
  byId("retry").addEventListener("click", retry);
  byId("key-form").addEventListener("submit", useKey);
  document.addEventListener("keydown", ({ key }) => key === "Escape" && clear());
  window.addEventListener("online", () => !byId("problem").hidden && !byId("retry").hidden && retry());
  describeModel();
}

start();
