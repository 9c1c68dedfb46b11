/** Planes (H, W) of numbers on a canvas. */

import { levelOf, rgbOf } from "./colors.js";

/**
 * Draws a plane in grey.
 * @param {HTMLCanvasElement} canvas takes the plane's size
 * @param {ArrayLike<number>} plane
 */
export function drawGrey(canvas, plane, H, W, low, high) {
  const image = prepare(canvas, H, W);
  for (let i = 0; i < H * W; i += 1) {
    const grey = ((plane[i] - low) / (high - low || 1)) * 255;
    image.data.fill(grey, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/**
 * Draws a signed plane, blue below zero and orange above, the more opaque the larger.
 * @param {HTMLCanvasElement} canvas
 * @param {number} power of the opacity; more than 1 keeps noise in the background
 * @param {number} largest absolute value, which is opaque
 */
export function drawSigned(canvas, plane, H, W, power = 0.7, largest = largestOf(plane)) {
  const image = prepare(canvas, H, W);
  for (let i = 0; i < H * W; i += 1) {
    const share = plane[i] / largest;
    const [r, g, b] = rgbOf("difference", levelOf(share > 0 ? 0.75 : -0.75, -1, 1));
    image.data.set([r, g, b, 255 * Math.min(1, Math.abs(share) ** power)], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The largest absolute value, or 1 if all are zero. @param {Float32Array} plane */
export function largestOf(plane) {
  return plane.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
}

/** Draws a plane of shares from 0 to 1 as light over darkness: where it is low, the image below is dimmed. */
export function drawSpotlight(canvas, plane, H, W) {
  const image = prepare(canvas, H, W);
  const largest = plane.reduce((most, value) => Math.max(most, value), 0) || 1;
  for (let i = 0; i < H * W; i += 1) {
    const share = plane[i] / largest;
    const [r, g, b] = rgbOf("response", levelOf(share, 0, 1));
    image.data.set([r, g, b, 60 + 130 * share], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function prepare(canvas, H, W) {
  if (canvas.width !== W || canvas.height !== H) [canvas.width, canvas.height] = [W, H];
  return canvas.getContext("2d").createImageData(W, H);
}
