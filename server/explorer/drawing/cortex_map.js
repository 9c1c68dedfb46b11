/** The map of cortex: thousands of neurons as glowing discs on a canvas. */

import { LEVELS, UNKNOWN, levelOf, rgbOf } from "./colors.js";
import { extent } from "../statistics/summaries.js";
import { Raster, ringOf, spriteOf } from "./raster.js";

const MARGIN = 26; // CSS px around the neurons

/** Draws in the next frame, at most once a frame; discs in the order of their level, so that bright ones lie on top. */
export class CortexMap {
  #canvas;
  #context;
  #raster = /** @type {Raster | null} */ (null);
  #sprites = /** @type {import("./raster.js").Sprite[]} */ ([]);
  #spriteKey = "";
  #frame = 0;
  #levels = new Int8Array();
  #order = new Uint32Array();
  #neurons = null;
  #scale = "response";
  #selected = /** @type {number[]} */ ([]);
  #path = /** @type {number[][]} */ ([]);
  zoom = 1;
  pan = [0, 0]; // CSS px
  hovered = -1;
  /** Called after the view moved, with the length of the scale bar. */
  onView = () => {};

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /**
   * @param {import("../state/mice.js").Neurons} neurons
   * @param {ArrayLike<number>} values
   * @param {string} scale a name of SCALES
   */
  show(neurons, values, low, high, scale) {
    if (neurons !== this.#neurons) this.#place(neurons);
    const n = neurons.ids.length;
    if (this.#levels.length !== n) this.#levels = new Int8Array(n);
    for (let i = 0; i < n; i += 1) this.#levels[i] = levelOf(values[i], low, high);
    this.#order = sortedByLevel(this.#levels, scale === "difference");
    this.#scale = scale;
    this.redraw();
  }

  select(positions) {
    this.#selected = positions;
    this.redraw();
  }

  /** A lasso that is being drawn, in CSS px. */
  outline(path) {
    this.#path = path;
    this.redraw();
  }

  redraw() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  /** CSS px of a neuron. */
  at(i, { scale, left, top } = this.#view()) {
    return [left + (this.#x[i] - this.#bounds[0]) * scale, top + (this.#y[i] - this.#bounds[2]) * scale];
  }

  /** The neuron at a point of the canvas in CSS px, or -1. */
  nearest(px, py, within = 12) {
    let best = -1;
    let least = within ** 2;
    const view = this.#view();
    for (let i = 0; i < this.#x.length; i += 1) {
      const [x, y] = this.at(i, view);
      const distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  /** Neurons inside of a polygon in CSS px. */
  inside(polygon) {
    const found = [];
    const view = this.#view();
    for (let i = 0; i < this.#x.length; i += 1) {
      const [px, py] = this.at(i, view);
      let isInside = false;
      for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a, a += 1) {
        const [[xa, ya], [xb, yb]] = [polygon[a], polygon[b]];
        if (ya > py !== yb > py && px < ((xb - xa) * (py - ya)) / (yb - ya) + xa) isInside = !isInside;
      }
      if (isInside) found.push(i);
    }
    return found;
  }

  /** Zooms about a point. */
  zoomAt(px, py, factor) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), 20);
    const { clientWidth: w, clientHeight: h } = this.#canvas;
    const change = zoom / this.zoom;
    this.pan =
      zoom === 1
        ? [0, 0]
        : [(this.pan[0] + w / 2 - px) * change + px - w / 2, (this.pan[1] + h / 2 - py) * change + py - h / 2];
    this.zoom = zoom;
    this.redraw();
  }

  /** Micrometres of one CSS px. */
  get micrometres() {
    return this.#neurons?.placed ? 1 / this.#view().scale : NaN;
  }

  #x = new Float32Array();
  #y = new Float32Array();
  #bounds = [0, 1, 0, 1];

  /** Places neurons at their coordinates, or side by side if those are not known. */
  #place(neurons) {
    this.#neurons = neurons;
    const n = neurons.ids.length;
    const columns = Math.ceil(Math.sqrt(n * 2));
    this.#x = neurons.placed ? neurons.x : Float32Array.from({ length: n }, (_, i) => i % columns);
    this.#y = neurons.placed ? neurons.y : Float32Array.from({ length: n }, (_, i) => Math.floor(i / columns));
    this.#bounds = [...extent(this.#x), ...extent(this.#y)];
    [this.zoom, this.pan, this.hovered] = [1, [0, 0], -1];
  }

  #view() {
    const { clientWidth: w, clientHeight: h } = this.#canvas;
    const [x0, x1, y0, y1] = this.#bounds;
    const [dx, dy] = [x1 - x0 || 1, y1 - y0 || 1];
    const scale = Math.min((w - 2 * MARGIN) / dx, (h - 2 * MARGIN) / dy) * this.zoom;
    return { scale, left: (w - dx * scale) / 2 + this.pan[0], top: (h - dy * scale) / 2 + this.pan[1] };
  }

  #draw() {
    this.#frame = 0;
    const { clientWidth: w, clientHeight: h } = this.#canvas;
    if (!this.#neurons || !w || !h) return;
    const density = Math.min(devicePixelRatio || 1, 2);
    const raster = this.#rasterFor(Math.round(w * density), Math.round(h * density));
    const { scale, left, top } = this.#view();
    const radius = this.#radius(w, h);
    const sprites = this.#spritesFor(radius * density, density);
    const [xs, ys, levels, order] = [this.#x, this.#y, this.#levels, this.#order];
    const [x0, , y0] = this.#bounds;
    raster.clear();
    for (let k = 0; k < order.length; k += 1) {
      const i = order[k];
      const x = left + (xs[i] - x0) * scale;
      const y = top + (ys[i] - y0) * scale;
      if (x > -40 && y > -40 && x < w + 40 && y < h + 40) raster.draw(sprites(levels[i]), x * density, y * density);
    }
    const ring = ringOf((radius * 1.3 + 3) * density, 2 * density);
    for (const i of [...this.#selected, ...(this.hovered >= 0 ? [this.hovered] : [])]) {
      const [x, y] = [left + (xs[i] - x0) * scale, top + (ys[i] - y0) * scale];
      if (x > -40 && y > -40 && x < w + 40 && y < h + 40) raster.draw(ring, x * density, y * density);
    }
    raster.show(this.#context);
    this.#drawLasso(density);
    performance.clearMarks("map drawn");
    performance.mark("map drawn");
    this.onView();
  }

  #radius(w, h) {
    return Math.min(Math.max(Math.sqrt((w * h) / this.#x.length) / 5, 1.6), 9) * Math.min(Math.sqrt(this.zoom), 2.5);
  }

  #rasterFor(width, height) {
    if (this.#raster?.width !== width || this.#raster.height !== height) {
      [this.#canvas.width, this.#canvas.height] = [width, height];
      this.#raster = new Raster(width, height);
    }
    return this.#raster;
  }

  /** Sprites by level. Bright ones are larger, and glow. */
  #spritesFor(radius, density) {
    const key = `${this.#scale} ${radius.toFixed(2)} ${density}`;
    if (key !== this.#spriteKey) [this.#spriteKey, this.#sprites] = [key, []];
    return (level) => (this.#sprites[level + 1] ??= this.#spriteOf(level, radius));
  }

  #spriteOf(level, radius) {
    if (level < 0) return spriteOf(0.7 * radius, 0, UNKNOWN);
    const share = level / (LEVELS - 1);
    const strength = { response: share, difference: Math.abs(2 * share - 1) }[this.#scale] ?? 0.5;
    const size = radius * (0.7 + 0.6 * strength);
    return spriteOf(size, size * (1 + 1.3 * Math.max(strength - 0.4, 0)), rgbOf(this.#scale, level));
  }

  #drawLasso(density) {
    if (!this.#path.length) return;
    const context = this.#context;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.lineWidth = 2;
    context.strokeStyle = "#ffffff";
    context.setLineDash([5, 4]);
    context.beginPath();
    this.#path.forEach(([x, y]) => context.lineTo(x, y));
    context.closePath();
    context.fillStyle = "rgba(255, 255, 255, 0.08)";
    context.fill();
    context.stroke();
    context.setLineDash([]);
  }
}

/** Positions from the lowest to the highest level, or from the middle to both ends. Counting sort. */
function sortedByLevel(levels, fromMiddle) {
  const rank = (level) => (fromMiddle && level >= 0 ? Math.round(Math.abs(2 * level - LEVELS + 1) / 2) : level) + 1;
  const counts = new Uint32Array(LEVELS + 2);
  for (const level of levels) counts[rank(level) + 1] += 1;
  for (let k = 1; k < counts.length; k += 1) counts[k] += counts[k - 1];
  const order = new Uint32Array(levels.length);
  levels.forEach((level, i) => (order[counts[rank(level)]++] = i));
  return order;
}
