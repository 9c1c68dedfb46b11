/** The map of cortex: thousands of neurons as glowing discs on a canvas. */

import { LEVELS, SCALES, UNKNOWN, levelOf } from "./colors.js";

const MARGIN = 26; // CSS px around the neurons

/**
 * Draws in the next frame, at most once a frame. Discs are drawn from sprites, one per colour, in the order of their
 * level, so that bright neurons lie on top.
 */
export class CortexMap {
  #canvas;
  #context;
  #sprites = new Map();
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
    this.#context = canvas.getContext("2d");
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
  at(i) {
    const { scale, left, top } = this.#view();
    return [left + (this.#x[i] - this.#bounds[0]) * scale, top + (this.#y[i] - this.#bounds[2]) * scale];
  }

  /** The neuron at a point of the canvas in CSS px, or -1. */
  nearest(px, py, within = 12) {
    let best = -1;
    let least = within ** 2;
    for (let i = 0; i < this.#x.length; i += 1) {
      const [x, y] = this.at(i);
      const distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  /** Neurons inside of a polygon in CSS px. */
  inside(polygon) {
    const found = [];
    for (let i = 0; i < this.#x.length; i += 1) {
      const [px, py] = this.at(i);
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
    this.pan = zoom === 1 ? [0, 0] : [(this.pan[0] + w / 2 - px) * change + px - w / 2, (this.pan[1] + h / 2 - py) * change + py - h / 2];
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
    const columns = Math.ceil(Math.sqrt(n * 1.6));
    this.#x = neurons.placed ? neurons.x : Float32Array.from({ length: n }, (_, i) => i % columns);
    this.#y = neurons.placed ? neurons.y : Float32Array.from({ length: n }, (_, i) => Math.floor(i / columns));
    const finite = (column) => Array.from(column).filter(Number.isFinite);
    const [xs, ys] = [finite(this.#x), finite(this.#y)];
    const reduce = (list, pick, start) => list.reduce((a, b) => pick(a, b), start);
    this.#bounds = [
      reduce(xs, Math.min, Infinity),
      reduce(xs, Math.max, -Infinity),
      reduce(ys, Math.min, Infinity),
      reduce(ys, Math.max, -Infinity),
    ];
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
    const density = Math.min(devicePixelRatio || 1, 2);
    if (this.#canvas.width !== Math.round(w * density) || this.#canvas.height !== Math.round(h * density)) {
      [this.#canvas.width, this.#canvas.height] = [Math.round(w * density), Math.round(h * density)];
    }
    const context = this.#context;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (!this.#neurons) return;
    const { scale, left, top } = this.#view();
    const n = this.#x.length;
    const radius = Math.min(Math.max(Math.sqrt((w * h) / n) / 5, 1.6), 9) * Math.min(Math.sqrt(this.zoom), 2.5);
    for (const i of this.#order) {
      const x = left + (this.#x[i] - this.#bounds[0]) * scale;
      const y = top + (this.#y[i] - this.#bounds[2]) * scale;
      if (!(x > -20 && y > -20 && x < w + 20 && y < h + 20)) continue;
      const sprite = this.#sprite(this.#levels[i], radius, density);
      context.drawImage(sprite, Math.round(x * density - sprite.width / 2), Math.round(y * density - sprite.height / 2));
    }
    context.setTransform(density, 0, 0, density, 0, 0);
    context.lineWidth = 2;
    context.strokeStyle = "#ffffff";
    for (const i of [...this.#selected, ...(this.hovered >= 0 ? [this.hovered] : [])]) {
      const [x, y] = this.at(i);
      context.beginPath();
      context.arc(x, y, radius + 3, 0, 2 * Math.PI);
      context.stroke();
    }
    if (this.#path.length) {
      context.setLineDash([5, 4]);
      context.beginPath();
      this.#path.forEach(([x, y]) => context.lineTo(x, y));
      context.closePath();
      context.fillStyle = "rgba(255, 255, 255, 0.08)";
      context.fill();
      context.stroke();
      context.setLineDash([]);
    }
    performance.clearMarks("map drawn");
    performance.mark("map drawn");
    this.onView();
  }

  /** A disc of a level's colour; bright ones are larger and glow. */
  #sprite(level, radius, density) {
    const key = `${this.#scale} ${level} ${radius.toFixed(2)} ${density}`;
    let sprite = this.#sprites.get(key);
    if (sprite) return sprite;
    if (this.#sprites.size > 400) this.#sprites.clear();
    const color = level < 0 ? UNKNOWN : SCALES[this.#scale][level];
    const share = level < 0 ? 0 : level / (LEVELS - 1);
    const strength = this.#scale === "response" ? share : this.#scale === "difference" ? Math.abs(2 * share - 1) : 0.5;
    const r = radius * (0.7 + 0.6 * strength) * density;
    const glow = r * (1 + 1.3 * Math.max(strength - 0.4, 0));
    sprite = document.createElement("canvas");
    sprite.width = sprite.height = Math.ceil(2 * glow) + 2;
    const context = sprite.getContext("2d");
    const middle = sprite.width / 2;
    const disc = (size, alpha) => {
      context.globalAlpha = alpha;
      context.fillStyle = color;
      context.beginPath();
      context.arc(middle, middle, size, 0, 2 * Math.PI);
      context.fill();
    };
    if (glow > r) {
      disc(glow, 0.16);
      disc((glow + r) / 2, 0.22);
    }
    disc(r, 1);
    this.#sprites.set(key, sprite);
    return sprite;
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
