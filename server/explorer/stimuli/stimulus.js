/** What the mouse is shown: a plain description, and the pixels that it stands for. */

import { deadLeaves, grating, whiteNoise } from "./patterns.js";

/**
 * @typedef {{ kind: "grating" | "gabor", orientation: number, frequency: number, contrast: number, size: number,
 *   phase: number, x: number, y: number }
 *   | { kind: "noise", seed: number, square: number, contrast: number }
 *   | { kind: "leaves", seed: number, contrast: number }
 *   | { kind: "picture", name: string, png: string, note: string }} Pattern
 * `png`: (H, W) grey levels of the mouse's size, as base64.
 */

/** @typedef {Pattern & { channel?: number }} Stimulus channel: the only one that shows it; all do if it is left out */

/**
 * @typedef {{ C: number, H: number, W: number, middle: number, amplitude: number, standardized: boolean,
 *   names: string[] }} Screen names: of the channels
 */

export const FIRST = {
  leaves: { kind: "leaves", seed: 1, contrast: 1 },
  grating: { kind: "grating", orientation: 45, frequency: 8, contrast: 1, size: 1, phase: 0, x: 0.5, y: 0.5 },
  gabor: { kind: "gabor", orientation: 45, frequency: 8, contrast: 1, size: 0.4, phase: 0, x: 0.5, y: 0.5 },
  noise: { kind: "noise", seed: 1, square: 8, contrast: 1 },
};

/**
 * The screen of a mouse: size, and the grey levels that contrast 1 spans.
 * @returns {Screen}
 */
export function screenOf(mouse) {
  const [C, H, W] = mouse.image_shape;
  const [{ mean, min, max }] = mouse.image_channels;
  const names = mouse.image_channels.map(({ name }) => name);
  if (mouse.standardized_inputs || mean === null) {
    return { C, H, W, names, middle: 0, amplitude: 2, standardized: true }; // std from the mean
  }
  const middle = Math.round(((min ?? 0) + (max ?? 255)) / 2);
  return { C, H, W, names, middle, amplitude: (max ?? 255) - middle, standardized: false };
}

/**
 * One plane of the image, (H, W) in the recording's own units.
 * @param {Stimulus} stimulus
 * @param {Screen} screen
 * @param {Uint8Array | null} picture the grey levels of a picture
 * @returns {Float32Array | Uint8Array}
 */
export function planeOf(stimulus, screen, picture = null) {
  if (stimulus.kind === "picture") return picture ?? new Uint8Array(screen.H * screen.W).fill(screen.middle);
  const plane = patternOf(stimulus, screen).map(
    (level) => screen.middle + stimulus.contrast * screen.amplitude * level,
  );
  return screen.standardized ? plane : Uint8Array.from(plane, (level) => Math.min(Math.max(Math.round(level), 0), 255));
}

function patternOf(stimulus, { H, W }) {
  switch (stimulus.kind) {
    case "grating":
      return grating(stimulus, H, W, "disc");
    case "gabor":
      return grating(stimulus, H, W, "gaussian");
    case "noise":
      return whiteNoise(stimulus, H, W);
    default:
      return deadLeaves(stimulus, H, W);
  }
}

/**
 * (B, C, H, W): each plane in all channels, or in one; the others are then a grey screen.
 * @param {(Float32Array | Uint8Array)[]} planes
 * @param {Screen} screen
 * @param {number} [channel]
 */
export function imagesOf(planes, { C, H, W, middle }, channel) {
  const Type = planes[0] instanceof Uint8Array ? Uint8Array : Float32Array;
  const pixels = new Type(planes.length * C * H * W).fill(middle);
  const shows = (c) => channel === undefined || channel >= C || c === channel;
  planes.forEach((plane, b) => {
    for (let c = 0; c < C; c += 1) if (shows(c)) pixels.set(plane, (b * C + c) * H * W);
  });
  return { pixels, shape: [planes.length, C, H, W] };
}

/** The stimulus in a few words. @param {Stimulus} stimulus @param {string[]} names of the screen's channels */
export function wordsFor(stimulus, names) {
  const only = names.length > 1 ? names[stimulus.channel] : undefined;
  return `${patternWords(stimulus)}${only === undefined ? "" : `, ${only} only`}`;
}

function patternWords(stimulus) {
  switch (stimulus.kind) {
    case "picture":
      return stimulus.name;
    case "noise":
      return `white noise, seed ${stimulus.seed}`;
    case "leaves":
      return `dead leaves, seed ${stimulus.seed}`;
    default:
      return `${stimulus.kind === "gabor" ? "Gabor" : "grating"}, ${stimulus.orientation}°, ${stimulus.frequency} cycles/width`;
  }
}
