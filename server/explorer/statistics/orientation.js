/** Orientation tuning: responses to gratings of all orientations and phases, to curves and preferred orientations. */

export const ORIENTATIONS = Array.from({ length: 12 }, (_, k) => 15 * k); // deg
export const PHASES = [0, 90, 180, 270]; // deg

/**
 * The mean over phases of each neuron's responses.
 * @param {Float32Array} responses (orientations x phases, n)
 * @param {number} n
 * @returns {Float32Array} (n, orientations)
 */
export function tuningCurves(responses, n) {
  const curves = new Float32Array(n * ORIENTATIONS.length);
  for (let image = 0; image < ORIENTATIONS.length * PHASES.length; image += 1) {
    const k = Math.floor(image / PHASES.length);
    for (let i = 0; i < n; i += 1) curves[i * ORIENTATIONS.length + k] += responses[image * n + i] / PHASES.length;
  }
  return curves;
}

/**
 * Preferred orientation [deg] and selectivity (1 - circular variance, Mazurek et al. 2014) of a curve. What a neuron
 * does at its worst orientation is taken away first, as predicted responses may be below zero.
 * @param {ArrayLike<number>} curve
 */
export function preferredOrientation(curve) {
  let [x, y, sum] = [0, 0, 0];
  const least = Math.min(0, ...Array.from(curve));
  for (let k = 0; k < curve.length; k += 1) {
    const angle = (2 * ORIENTATIONS[k] * Math.PI) / 180;
    x += (curve[k] - least) * Math.cos(angle);
    y += (curve[k] - least) * Math.sin(angle);
    sum += curve[k] - least;
  }
  const degrees = ((Math.atan2(y, x) * 180) / Math.PI / 2 + 180) % 180;
  return { degrees, selectivity: sum > 0 ? Math.hypot(x, y) / sum : 0 };
}
