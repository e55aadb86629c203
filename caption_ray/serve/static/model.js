// The model that answers, told in a line.

import { fetchModel } from "./api.js";
import { byId } from "./dom.js";

let model = null;

/** Return what the service said of its model, null before it has. */
export function knownModel() {
  return model;
}

/** Ask the service about its model, and show it. */
export async function describeModel() {
  try {
    model = await fetchModel();
    byId("model").textContent = modelLine(model);
  } catch (error) {
    byId("model").textContent =
      error.status === 401
        ? "The model is told to those who have an API key."
        : "The model cannot be asked about itself right now.";
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
