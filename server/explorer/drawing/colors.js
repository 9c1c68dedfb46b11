/** Colour scales that are safe for colour-blind readers, as tables of 64 colours. */

const STOPS = {
  // dark to bright, for what glows on a dark ground (after matplotlib's inferno, without its black end)
  response: ["#2f3f6b", "#4a4a93", "#7d4fa3", "#b4558f", "#e26568", "#f7913e", "#fcc53f", "#fdf3a0"],
  // below zero blue, above zero orange (after Crameri's vik)
  difference: ["#4cc2ff", "#3a8fd6", "#2f6299", "#33435c", "#44403f", "#8a5234", "#d3783b", "#ffab5e", "#ffd9a0"],
  // a circle of equal lightness
  orientation: ["#e2679f", "#e07a55", "#b99a2e", "#6fb04d", "#25b596", "#31a7d6", "#7f92ea", "#bd7ad5", "#e2679f"],
  // viridis
  score: ["#453781", "#39568c", "#2d708e", "#238a8d", "#20a387", "#3cbb75", "#73d055", "#b8de29", "#fde725"],
};
export const LEVELS = 64;
/** Red, green and blue of what is not known. */
export const UNKNOWN = [90, 99, 119];

/** @type {Record<string, number[][]>} */
const RGB = Object.fromEntries(Object.entries(STOPS).map(([name, stops]) => [name, table(stops)]));

/** The colours of each scale as CSS. @type {Record<string, string[]>} */
export const SCALES = Object.fromEntries(
  Object.entries(RGB).map(([name, colors]) => [name, colors.map((rgb) => `rgb(${rgb.join(",")})`)]),
);

function table(stops) {
  const rgb = stops.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: LEVELS }, (_, level) => {
    const at = (level / (LEVELS - 1)) * (stops.length - 1);
    const below = Math.min(Math.floor(at), stops.length - 2);
    return rgb[below].map((value, k) => Math.round(value + (at - below) * (rgb[below + 1][k] - value)));
  });
}

/** The level of a value between two limits: 0 to LEVELS - 1, or -1 if it is not known. */
export function levelOf(value, low, high) {
  if (!Number.isFinite(value)) return -1;
  const share = (value - low) / (high - low || 1);
  return Math.min(Math.max(Math.round(share * (LEVELS - 1)), 0), LEVELS - 1);
}

/** Red, green and blue of a level. */
export function rgbOf(scale, level) {
  return RGB[scale][level];
}
