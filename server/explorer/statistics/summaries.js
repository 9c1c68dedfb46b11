/** Numbers that say what a population does. */

/** @param {ArrayLike<number>} values */
export function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] < low) low = values[i];
    if (values[i] > high) high = values[i];
  }
  return [low, high];
}

/** @param {ArrayLike<number>} values */
export function mean(values) {
  let sum = 0;
  for (let i = 0; i < values.length; i += 1) sum += values[i];
  return sum / values.length;
}

/** The share-th quantile, without the values that are not finite. @param {ArrayLike<number>} values */
export function quantile(values, share) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort();
  if (!sorted.length) return NaN;
  const at = share * (sorted.length - 1);
  const below = Math.floor(at);
  return sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

/** Pearson's correlation; NaN where one of them does not vary. */
export function correlation(a, b) {
  const [ma, mb] = [mean(a), mean(b)];
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i += 1) {
    ab += (a[i] - ma) * (b[i] - mb);
    aa += (a[i] - ma) ** 2;
    bb += (b[i] - mb) ** 2;
  }
  return ab / Math.sqrt(aa * bb);
}

/**
 * Counts in bins of equal width between two limits; values outside count in the outermost bins.
 * @param {ArrayLike<number>} values
 */
export function histogram(values, low, high, bins) {
  const counts = new Uint32Array(bins);
  const scale = bins / (high - low || 1);
  for (let i = 0; i < values.length; i += 1) {
    if (Number.isFinite(values[i])) counts[Math.min(Math.max(Math.floor((values[i] - low) * scale), 0), bins - 1)] += 1;
  }
  return counts;
}

/** Positions of the n largest values, the largest first. @param {ArrayLike<number>} values */
export function largest(values, n) {
  const best = [];
  for (let i = 0; i < values.length; i += 1) {
    if (best.length === n && !(values[i] > values[best[n - 1]])) continue;
    let at = best.length;
    while (at > 0 && values[i] > values[best[at - 1]]) at -= 1;
    best.splice(at, 0, i);
    if (best.length > n) best.pop();
  }
  return best;
}

/** A round number at most as large: 1, 2 or 5 times a power of ten. */
export function roundStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([5, 2, 1].find((factor) => factor * power <= value) ?? 1);
}

/** A number in a few digits. */
export function brief(value) {
  if (!Number.isFinite(value)) return "—";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** A whole number with commas between thousands; without the browser's tables, which take a while to load. */
export function grouped(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ",");
}

/**
 * The single-trial correlation of the true mean response to each image (Schoppe et al. 2016, CCmax of one trial), from
 * the share of the variance that the image can explain (FEV); chance can make that negative.
 */
export function singleTrialCeiling(fev) {
  return Math.sqrt(Math.max(fev, 0));
}
