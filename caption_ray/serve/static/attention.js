// Where the model looked: a small grid of shares, drawn smoothly over the picture.

const FADE_MS = 220;
// From where it did not look to where it looked hardest: a dark veil that opens to a warm light. [level, r, g, b, alpha]
const LIGHT = [
  [0.0, 14, 12, 20, 0.7],
  [0.35, 40, 22, 20, 0.46],
  [0.65, 255, 150, 20, 0.2],
  [1.0, 255, 176, 32, 0.36],
];
const ROWS = ["upper", "middle", "lower"];
const COLUMNS = ["left", "centre", "right"];

/** Draws one grid at a time on a canvas, and fades from one to the next. */
export class AttentionOverlay {
  #canvas;
  #context;
  #levels = null; // what is seen now, side x side values between 0 and 1
  #opacity = 0;
  #frame = 0;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true }); // drawn pixel by pixel, so kept off the GPU
  }

  /** Show a grid of shares; without one, the bare picture. */
  show(grid) {
    const target = grid ? relativeLevels(grid) : this.#levels;
    const opacity = grid ? 1 : 0;
    if (!target) return;
    const from = this.#levels?.length === target.length ? this.#levels : target;
    const fromOpacity = this.#opacity;
    const duration = prefersStillness() ? 0 : FADE_MS;
    const start = performance.now();
    const step = (now) => {
      const share = duration ? ease(Math.min(1, Math.max(0, (now - start) / duration))) : 1;
      this.#levels = target.map((value, index) => from[index] + (value - from[index]) * share);
      this.#opacity = fromOpacity + (opacity - fromOpacity) * share;
      this.#paint();
      if (share < 1) this.#frame = requestAnimationFrame(step);
    };
    cancelAnimationFrame(this.#frame);
    step(start);
  }

  /** Forget everything at once. */
  clear() {
    cancelAnimationFrame(this.#frame);
    this.#levels = null;
    this.#opacity = 0;
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #paint() {
    const { width } = this.#canvas;
    const image = this.#context.createImageData(width, width);
    enlarge(this.#levels, width).forEach((level, index) => {
      const [red, green, blue, alpha] = lightAt(level);
      image.data.set([red, green, blue, 255 * alpha * this.#opacity], 4 * index);
    });
    this.#context.putImageData(image, 0, 0);
  }
}

/** Tell in words where a grid has its weight, say "upper left", and what share of all its strongest cell has. */
export function describeGrid(grid) {
  const side = grid.length;
  let [row, column, peak] = [0, 0, -1];
  grid.forEach((line, y) =>
    line.forEach((share, x) => {
      if (share > peak) [row, column, peak] = [y, x, share];
    }),
  );
  const third = (index) => Math.min(2, Math.floor((3 * (index + 0.5)) / side));
  const [vertical, horizontal] = [ROWS[third(row)], COLUMNS[third(column)]];
  const isEven = peak < 1.5 / side ** 2;
  const place = vertical === "middle" ? (horizontal === "centre" ? "centre" : horizontal) : `${vertical} ${horizontal}`;
  return { place: isEven ? "whole picture" : place, peak };
}

export function prefersStillness() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** Shares relative to the strongest, so that each word uses the whole range of light. */
function relativeLevels(grid) {
  const shares = grid.flat();
  const peak = Math.max(...shares, 1e-12);
  return shares.map((share) => share / peak);
}

/** Enlarge a square of values to `size` x `size`, cubic, rows first and then columns. */
function enlarge(levels, size) {
  const side = Math.round(Math.sqrt(levels.length));
  const taps = cubicTaps(side, size);
  const wide = new Float32Array(side * size);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < size; x++) wide[y * size + x] = sum(taps[x], (source) => levels[y * side + source]);
  }
  const all = new Float32Array(size * size);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) all[y * size + x] = sum(taps[y], (source) => wide[source * size + x]);
  }
  return all;
}

function sum(taps, valueAt) {
  let total = 0;
  for (const [source, weight] of taps) total += weight * valueAt(source);
  return total;
}

/** For each target pixel its four neighbours in the source and their weights: a cubic B-spline, which never overshoots. */
function cubicTaps(side, size) {
  return Array.from({ length: size }, (_, target) => {
    const position = ((target + 0.5) * side) / size - 0.5;
    const first = Math.floor(position);
    const t = position - first;
    const weights = [(1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t ** 3];
    return weights.map((weight, tap) => [Math.min(side - 1, Math.max(0, first - 1 + tap)), weight / 6]);
  });
}

function lightAt(level) {
  const upper = Math.max(1, LIGHT.findIndex(([at]) => at >= level));
  const [low, high] = [LIGHT[upper - 1], LIGHT[upper]];
  const share = Math.min(1, Math.max(0, (level - low[0]) / (high[0] - low[0])));
  return [1, 2, 3, 4].map((part) => low[part] + (high[part] - low[part]) * share);
}

function ease(share) {
  return share * share * (3 - 2 * share);
}
