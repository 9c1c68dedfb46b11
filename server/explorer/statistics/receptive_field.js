/** Receptive fields from sums of responses to noise. */

const PART = 200_000; // numbers that are added at once

/**
 * Squares of whole pixels that divide the screen, about 18 rows of them.
 * @returns {[number, number]} rows, columns
 */
export function gridFor(H, W) {
  let best = 1;
  for (let square = 1; square <= Math.min(H, W); square += 1) {
    if (H % square === 0 && W % square === 0 && Math.abs(H / square - 18) < Math.abs(H / best - 18)) best = square;
  }
  return [H / best, W / best];
}

/**
 * How many images are shown at a time, about 2,000: whole blocks of balanced noise. Over a block its elements are not
 * correlated, and only the odd part of a response is left in a map (`server/inference/noise.py`).
 * @param {[number, number]} grid
 */
export function noiseImages([h, w]) {
  const block = 2 * (h * w + 1);
  return Math.max(1, Math.round(2000 / block)) * block;
}

/**
 * Sums that grow with the images shown.
 * @typedef {{ maps: Float32Array, noise: Float64Array, total: Float64Array, images: number, grid: [number, number] }} Sums
 */

/**
 * Adds two sums over different images.
 * @param {Sums} a
 * @param {Sums} b
 * @param {() => Promise<void> | undefined} turn awaited after each part of the work
 * @returns {Promise<Sums>}
 */
export async function addSums(a, b, turn) {
  const add = (x, y) => x.map((value, i) => value + y[i]);
  const maps = new Float32Array(a.maps.length);
  for (let start = 0; start < maps.length; start += PART) {
    maps.set(add(a.maps.subarray(start, start + PART), b.maps.subarray(start, start + PART)), start);
    await turn();
  }
  return {
    maps,
    noise: add(a.noise, b.noise),
    total: add(a.total, b.total),
    images: a.images + b.images,
    grid: a.grid,
  };
}

/**
 * The covariance of the mean response of some neurons with each square, (h w): positive where light drives it.
 * @param {Sums} sums
 * @param {number[]} neurons
 */
export function fieldOf({ maps, noise, total, images }, neurons) {
  const P = noise.length;
  const map = new Float64Array(P);
  let response = 0;
  for (const neuron of neurons) {
    for (let p = 0, at = neuron * P; p < P; p += 1, at += 1) map[p] += maps[at];
    response += total[neuron];
  }
  const n = images * neurons.length;
  return Float32Array.from(map, (sum, p) => sum / n - (response / n) * (noise[p] / images));
}

/**
 * Where a field is strongest, as shares of width and height, and how far it stands out of the noise.
 * @param {Float32Array} map
 * @param {[number, number]} grid
 */
export function centerOf(map, [h, w]) {
  let peak = 0;
  let squares = 0;
  for (let p = 0; p < map.length; p += 1) {
    squares += map[p] ** 2;
    if (Math.abs(map[p]) > Math.abs(map[peak])) peak = p;
  }
  const strength = Math.abs(map[peak]) / Math.sqrt(squares / map.length || 1);
  let [x, y, sum] = [0, 0, 0];
  for (let row = Math.max(0, Math.floor(peak / w) - 2); row <= Math.min(h - 1, Math.floor(peak / w) + 2); row += 1) {
    for (let column = Math.max(0, (peak % w) - 2); column <= Math.min(w - 1, (peak % w) + 2); column += 1) {
      const weight = map[row * w + column] ** 2;
      x += weight * (column + 0.5);
      y += weight * (row + 0.5);
      sum += weight;
    }
  }
  return { x: x / sum / w, y: y / sum / h, strength };
}
