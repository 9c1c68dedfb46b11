/** Images that are computed: gratings, Gabor patches, noise, dead leaves. All are (H, W) planes in [-1, 1]. */

import { randomNumbers } from "../statistics/random.js";

/** @typedef {{ orientation: number, frequency: number, phase: number, size: number, x: number, y: number }} Wave */

/**
 * A sinusoidal grating in a disc with a soft edge, or under a Gaussian.
 *
 * orientation [deg]: of the bars, counter-clockwise from horizontal. frequency: cycles per screen width.
 * size: diameter of the disc, or 4 std of the Gaussian, as a share of the screen's width; 1 or more fills the screen.
 * x, y: centre, as a share of width and height.
 * @param {Wave} wave
 * @param {number} H
 * @param {number} W
 * @param {"disc" | "gaussian"} window
 */
export function grating({ orientation, frequency, phase, size, x, y }, H, W, window) {
  const plane = new Float32Array(H * W);
  const angle = (orientation * Math.PI) / 180;
  const [across, down] = [Math.sin(angle), Math.cos(angle)]; // unit vector perpendicular to the bars; rows run down
  const radius = (size * W) / 2;
  const fills = window === "disc" && size >= 1;
  for (let row = 0; row < H; row += 1) {
    for (let column = 0; column < W; column += 1) {
      const dx = column + 0.5 - x * W;
      const dy = row + 0.5 - y * H;
      const wave = Math.cos((2 * Math.PI * frequency * (dx * across + dy * down)) / W + (phase * Math.PI) / 180);
      const distance = Math.hypot(dx, dy);
      const share = window === "gaussian" ? Math.exp(-2 * (distance / radius) ** 2) : radius - distance + 0.5;
      plane[row * W + column] = wave * (fills ? 1 : Math.min(Math.max(share, 0), 1));
    }
  }
  return plane;
}

/** Squares of independent random grey levels. */
export function whiteNoise({ seed, square }, H, W) {
  const random = randomNumbers(seed);
  const columns = Math.ceil(W / square);
  const levels = Float32Array.from({ length: columns * Math.ceil(H / square) }, () => 2 * random() - 1);
  const plane = new Float32Array(H * W);
  for (let i = 0; i < plane.length; i += 1) {
    plane[i] = levels[Math.floor(Math.floor(i / W) / square) * columns + Math.floor((i % W) / square)];
  }
  return plane;
}

/**
 * Dead leaves: discs that cover each other, with the edges and the 1/f spectrum of natural scenes (Lee, Mumford and
 * Huang 2001). Radii follow r^-3.
 */
export function deadLeaves({ seed }, H, W) {
  const random = randomNumbers(seed);
  const plane = new Float32Array(H * W).fill(2); // 2: not yet covered
  const [smallest, largest] = [W / 50, W / 4];
  const [a, b] = [smallest ** -2, largest ** -2];
  let free = plane.length;
  for (let leaf = 0; leaf < 20000 && free > plane.length / 1000; leaf += 1) {
    const radius = (a - random() * (a - b)) ** -0.5;
    const [x, y] = [random() * (W + 2 * radius) - radius, random() * (H + 2 * radius) - radius];
    const level = 2 * random() - 1;
    const [top, bottom] = [Math.max(0, Math.ceil(y - radius)), Math.min(H - 1, Math.floor(y + radius))];
    for (let row = top; row <= bottom; row += 1) {
      const half = Math.sqrt(Math.max(radius ** 2 - (row - y) ** 2, 0));
      const end = Math.min(W - 1, Math.floor(x + half));
      for (let column = Math.max(0, Math.ceil(x - half)); column <= end; column += 1) {
        if (plane[row * W + column] === 2) {
          plane[row * W + column] = level;
          free -= 1;
        }
      }
    }
  }
  return plane.map((level) => (level === 2 ? 0 : level));
}
