// The page: where pictures come from, what its buttons and keys do.

import { apiKey } from "./api.js";
import { copyText } from "./clipboard.js";
import { clear, describe, describeExample, retry } from "./describe.js";
import { announce, byId } from "./dom.js";
import { describeModel } from "./model.js";
import { listenForPictures } from "./sources.js";
import { shownSentence, warn } from "./view.js";

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
  listenForPictures(describe, () => warn("That was no file. Save the picture first, then drop its file here."));
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
