// A caption as words to move over, and the list of captions that the beam considered.

import { describeGrid } from "./attention.js";

/** The words as a sentence: "A dog runs." */
export function sentence(words) {
  const text = words.map(({ text }) => text).join(" ");
  return text && `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/** "12 %"; small shares keep a digit that is not zero. */
export function percent(share) {
  if (share >= 0.995) return share === 1 ? "100 %" : "> 99 %";
  if (share >= 0.0095) return `${Math.round(100 * share)} %`;
  return share >= 0.00005 ? `${(100 * share).toPrecision(1)} %` : "< 0.01 %";
}

/** "1.5 %", "0.00061 %": two digits of a probability, however small. */
export function probability(value) {
  return `${Number((100 * value).toPrecision(2)).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;
}

/** The words of a caption as buttons, one of them in the order of tabs: arrows go on from there. Tells `onLook` which word is looked at, or null. */
export class CaptionView {
  #root;
  #onLook;
  #words = [];
  #hovered = null;
  #focused = null;
  #pinned = null;

  constructor(root, onLook) {
    this.#root = root;
    this.#onLook = onLook;
    root.addEventListener("keydown", (event) => this.#moveFocus(event));
  }

  clear() {
    const wasLookedAt = this.#active !== null;
    this.#words = [];
    this.#hovered = this.#focused = this.#pinned = null;
    this.#root.replaceChildren();
    if (wasLookedAt) this.#onLook(null);
    this.#root.classList.remove("whole");
  }

  /** Append a word as the stream brings it. */
  append(word) {
    const index = this.#words.push(word) - 1;
    if (index) this.#root.append(" ");
    this.#root.append(this.#button(word, index));
  }

  /** Show a whole caption; words that stay where they are are not drawn anew. Who was at a word by keyboard stays there. */
  replace(words) {
    const isSame = words.length === this.#words.length && words.every(({ text }, at) => text === this.#words[at].text);
    if (isSame) {
      this.#words = words;
    } else {
      const here = this.#buttons().indexOf(document.activeElement);
      this.clear();
      words.forEach((word) => this.append(word));
      if (here >= 0) this.#focus(Math.min(here, words.length - 1));
    }
    this.#root.classList.add("whole");
  }

  #button(word, index) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "word";
    button.textContent = word.text;
    button.tabIndex = index ? -1 : 0;
    button.setAttribute("aria-pressed", "false");
    if (word.attention) button.setAttribute("aria-description", `looked at: ${describeGrid(word.attention).place}`);
    // A finger has no hovering: its tap is a click, which pins.
    button.addEventListener("pointerenter", ({ pointerType }) => pointerType !== "touch" && this.#set({ hovered: index }));
    button.addEventListener("pointerleave", () => this.#set({ hovered: null }));
    button.addEventListener("focus", () => this.#set({ focused: button.matches(":focus-visible") ? index : null }));
    button.addEventListener("blur", () => this.#set({ focused: null }));
    button.addEventListener("click", () => this.#set({ pinned: this.#pinned === index ? null : index }));
    return button;
  }

  #set({ hovered = this.#hovered, focused = this.#focused, pinned = this.#pinned }) {
    [this.#hovered, this.#focused, this.#pinned] = [hovered, focused, pinned];
    const active = this.#active;
    this.#buttons().forEach((button, index) => {
      button.classList.toggle("looked-at", index === active);
      button.setAttribute("aria-pressed", String(index === pinned));
    });
    this.#onLook(active === null ? null : this.#words[active]);
  }

  #moveFocus(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own, such as Alt+Left
    const buttons = this.#buttons();
    const here = buttons.indexOf(document.activeElement);
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (!buttons[next]) return;
    event.preventDefault();
    this.#focus(next);
  }

  #focus(target) {
    const buttons = this.#buttons();
    buttons.forEach((button, index) => (button.tabIndex = index === target ? 0 : -1));
    buttons[target]?.focus();
  }

  #buttons() {
    return [...this.#root.querySelectorAll(".word")];
  }

  get #active() {
    return this.#hovered ?? this.#focused ?? this.#pinned;
  }
}

/** The captions of the beam with their shares as bars. Calls `onChoose` with the index of the one that is chosen. */
export class AlternativesView {
  #list;
  #onChoose;

  constructor(list, onChoose) {
    this.#list = list;
    this.#onChoose = onChoose;
  }

  show(captions) {
    const shares = sharesOf(captions);
    this.#list.replaceChildren(...captions.map((caption, index) => this.#item(caption, shares[index], index)));
    this.#mark(0);
  }

  #item(caption, share, index) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = `log-probability ${caption.log_probability.toFixed(2)} (natural logarithm)`;
    const text = Object.assign(document.createElement("span"), { className: "text", textContent: sentence(caption.words) });
    const value = Object.assign(document.createElement("span"), { className: "share", textContent: percent(share) });
    const whole = Object.assign(document.createElement("span"), {
      className: "probability",
      textContent: `probability ${probability(Math.exp(caption.log_probability))}`,
    });
    const bar = Object.assign(document.createElement("span"), { className: "bar" });
    bar.style.setProperty("--share", share);
    button.append(text, " ", value, bar, whole);
    button.addEventListener("click", () => {
      this.#mark(index);
      this.#onChoose(index);
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  #mark(chosen) {
    this.#list.querySelectorAll("button").forEach((button, index) => {
      button.setAttribute("aria-pressed", String(index === chosen));
    });
  }
}

/** Probabilities of captions relative to their sum; exponents are taken from the largest, so that none underflows. */
export function sharesOf(captions) {
  const largest = Math.max(...captions.map(({ log_probability }) => log_probability));
  const weights = captions.map(({ log_probability }) => Math.exp(log_probability - largest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}
