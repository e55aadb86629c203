// What is seen of a picture: itself, its caption, where the model looked, and what else the beam considered.

import { AttentionOverlay, describeGrid, prefersStillness } from "./attention.js";
import { AlternativesView, CaptionView, percent, sentence } from "./caption.js";
import { announce, byId, keepFocus } from "./dom.js";
import { hideProblem, showProblemText } from "./problems.js";

const LAST_LOOK_MS = 900; // how long the last word's map stays
const MIN_RATIO = 0.25; // of width to height, of pictures as they are shown
const MAX_RATIO = 4;

const overlay = new AttentionOverlay(byId("attention"));
const caption = new CaptionView(byId("caption"), look);
const alternatives = new AlternativesView(byId("alternatives"), (index) => showCaption(captions[index]));

let captions = []; // what the beam considered, best first, once it is there
let said = ""; // the caption that is shown, as a sentence
let isLooking = false; // somebody looks at a word
let lastLook = 0; // timer

/** Return the caption that is shown, "" where there is none. */
export function shownSentence() {
  return said;
}

/** Turn from the start to a picture that is shown next, or when it is there. */
export function openResult() {
  keepFocus(() => {
    reset();
    document.body.classList.add("has-picture");
    byId("start").hidden = byId("intro").hidden = true;
    byId("result").hidden = false;
  });
  byId("picture").alt = "Your picture; its caption is on the way";
  window.scrollTo({ top: 0, behavior: prefersStillness() ? "instant" : "smooth" });
}

/** Back to the start. */
export function closeResult() {
  reset();
  document.body.classList.remove("has-picture");
  byId("result").hidden = true;
  byId("start").hidden = byId("intro").hidden = false;
  byId("start").querySelector("button").focus();
}

/** Show the picture itself. `isHopeless`: it is none that a browser could show. */
export function showPicture(url, isHopeless) {
  const [picture, frame] = [byId("picture"), byId("frame")];
  frame.classList.toggle("hopeless", isHopeless);
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

/** Forget words that have come, before they come anew. */
export function clearWords() {
  caption.clear();
  overlay.clear();
}

/** Append a word as it comes, and show where the model looked for it, unless somebody looks at another. */
export function showWord(word) {
  caption.append(word);
  if (!isLooking) overlay.show(word.attention);
}

/** Show the whole caption; a moment later the bare picture. */
export function showCaption({ words }) {
  caption.replace(words);
  said = sentence(words);
  byId("picture").alt = said;
  byId("copy").hidden = false;
  if (!isLooking) describeLook(null);
  clearTimeout(lastLook);
  lastLook = setTimeout(() => !isLooking && overlay.show(null), prefersStillness() ? 0 : LAST_LOOK_MS);
}

/** Show what the beam considered, its best in place of the greedy caption. */
export function showAlternatives(found) {
  captions = found;
  alternatives.show(found);
  byId("others").hidden = false;
  showCaption(found[0]);
}

/** Show where the model looked for a word; with null, the bare picture. */
function look(word) {
  isLooking = word !== null;
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
    where.textContent = said ? `${verb} a word to see where the model looked for it.` : "";
  }
}

/** Say what went wrong, beside the caption where there is one. */
export function showProblem(error) {
  const { canRetry } = showProblemText(error);
  if (!said) {
    keepFocus(clearWords);
    byId("picture").alt = "Your picture, without a caption";
  }
  const { classList } = byId("frame");
  const isAbsent = !byId("picture").hasAttribute("src");
  if (isAbsent || (classList.contains("unshown") && !canRetry)) classList.add("hopeless");
}

/** Say something of the picture that is no problem. */
export function note(text) {
  byId("note").textContent = text;
  byId("note").hidden = false;
}

/** Say what is wrong with what was just done, whether or not there is a picture. */
export function warn(text) {
  byId("warning").textContent = text;
  byId("warning").hidden = false;
  announce(text);
}

export function setBusy(isBusy) {
  document.body.classList.toggle("busy", isBusy);
  byId("caption").setAttribute("aria-busy", String(isBusy));
}

/** Mark the example that is shown; with null, none. */
export function markExample(name) {
  for (const button of document.querySelectorAll("[data-example]")) {
    button.setAttribute("aria-pressed", String(button.dataset.example === name));
  }
}

function reset() {
  clearTimeout(lastLook);
  [captions, said, isLooking] = [[], "", false];
  clearWords();
  hideProblem();
  byId("alternatives").replaceChildren();
  byId("where").textContent = "";
  for (const id of ["others", "note", "copy", "unseen", "warning"]) byId(id).hidden = true;
  byId("frame").classList.remove("unshown", "hopeless");
  byId("picture").removeAttribute("src");
  byId("copy").textContent = "Copy caption";
  markExample(null);
}
