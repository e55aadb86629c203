// The page: where pictures come from, what its buttons and keys do.

import { apiKey } from "./api.js";
import { copyText } from "./clipboard.js";
import { clear, describe, retry } from "./describe.js";
import { announce, byId } from "./dom.js";
import { describeModel } from "./model.js";
import { listenForPictures } from "./sources.js";
import { markExample, shownSentence, warn } from "./view.js";

let fetching = new AbortController(); // of the example that was chosen last

/** Describe an example once it is there, unless another picture has been chosen meanwhile. */
async function describeExample(name) {
  const { signal } = callOffExample();
  const content = await fetch(`static/examples/${name}`, { signal })
    .then((response) => (response.ok ? response.blob() : new Blob([])))
    .catch(() => new Blob([]));
  if (signal.aborted) return;
  const done = describe(new File([content], name, { type: "image/jpeg" }));
  markExample(name);
  await done;
}

function callOffExample() {
  fetching.abort();
  fetching = new AbortController();
  return fetching;
}

function describeFile(file) {
  callOffExample();
  describe(file);
}

function clearAll() {
  callOffExample();
  clear();
}

async function copyCaption() {
  const button = byId("copy");
  const hasCopied = await copyText(shownSentence());
  button.textContent = hasCopied ? "Copied" : "Select and copy it by hand";
  announce(button.textContent);
  setTimeout(() => (button.textContent = "Copy caption"), 2000);
}

function useKey(event) {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  byId("key").value = "";
  describeModel();
  retry();
}

function start() {
  listenForPictures(describeFile, () => warn("That was no file. Save the picture first, then drop its file here."));
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => describeExample(button.dataset.example));
  }
  byId("copy").addEventListener("click", copyCaption);
  byId("clear").addEventListener("click", clearAll);
  byId("retry").addEventListener("click", retry);
  byId("key-form").addEventListener("submit", useKey);
  document.addEventListener("keydown", ({ key }) => key === "Escape" && clearAll());
  window.addEventListener("online", () => !byId("problem").hidden && !byId("retry").hidden && retry());
  describeModel();
}

start();
