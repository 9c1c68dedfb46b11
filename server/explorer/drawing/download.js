/** Files to take along: figures as SVG or PNG, tables as CSV, stimuli. */

import { SCALES, UNKNOWN, levelOf } from "./colors.js";

/** Offers bytes as a file. @param {BlobPart[]} parts */
export function saveFile(name, parts, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const escape = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");

/**
 * The image and the map of cortex side by side, with the facts below.
 * @param {{ screens: HTMLCanvasElement[], neurons: any, values: ArrayLike<number>, low: number, high: number,
 *   scale: string, label: string, facts: string[] }} figure
 * @param {() => Promise<void> | undefined} turn awaited now and then
 * @returns {Promise<string>}
 */
export async function figureSvg({ screens, neurons, values, low, high, scale, label, facts }, turn) {
  const [left, top, width, height] = [420, 60, 420, 320];
  const at = place(neurons, width, height);
  const rank = (value) => (Number.isFinite(value) ? value : -Infinity);
  const radius = Math.min(Math.max(Math.sqrt((width * height) / neurons.ids.length) / 4, 1.2), 6);
  const order = Array.from(neurons.ids, (_, i) => i).sort((a, b) => rank(values[a]) - rank(values[b]));
  const dots = new Map(); // by level, the low ones below: a path each, as thousands of elements take long to draw
  for (const i of order) {
    const level = levelOf(values[i], low, high);
    const [x, y] = at(i);
    dots.set(level, `${dots.get(level) ?? ""}M${(left + x).toFixed(1)} ${(top + y).toFixed(1)}h0`);
    await turn();
  }
  const discs = Array.from(dots, ([level, path]) => {
    const color = level < 0 ? `rgb(${UNKNOWN.join(",")})` : SCALES[scale][level];
    return `<path d="${path}" stroke="${color}"/>`;
  });
  const bar = SCALES[scale].map(
    (color, k) => `<rect x="${left + 110 + 3 * k}" y="395" width="3.2" height="10" fill="${color}"/>`,
  );
  const wide = (360 - 10 * screens.length) / screens.length; // side by side, one a channel
  const images = screens.map(
    (screen, c) =>
      `<image x="${30 + c * (wide + 10)}" y="60" width="${wide}" height="${(wide * screen.height) / screen.width}" href="${screen.toDataURL("image/png")}"/>`,
  );
  const lines = facts.map(
    (fact, k) => `<text x="30" y="${440 + 17 * k}" font-size="12" fill="#c8d0e0">${escape(fact)}</text>`,
  );
  const total = 450 + 17 * facts.length;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 870 ${total}" width="870" height="${total}" font-family="system-ui, sans-serif">
<title>${escape(facts[0])}</title>
<rect width="870" height="${total}" fill="#0d1220"/>
<text x="30" y="40" font-size="16" fill="#ffffff">What the mouse sees</text>
<text x="${left}" y="40" font-size="16" fill="#ffffff">${escape(label)}</text>
${images.join("\n")}
<g fill="none" stroke-linecap="round" stroke-width="${(2 * radius).toFixed(1)}">
${discs.join("\n")}
</g>
${bar.join("")}
<text x="${left + 102}" y="404" font-size="12" text-anchor="end" fill="#c8d0e0">${low.toPrecision(3)}</text>
<text x="${left + 310}" y="404" font-size="12" fill="#c8d0e0">${high.toPrecision(3)}</text>
${lines.join("\n")}
</svg>
`;
}

function place({ x, y, ids, placed }, width, height) {
  const columns = Math.ceil(Math.sqrt(ids.length * 1.3));
  const [xs, ys] = placed ? [x, y] : [ids.map((_, i) => i % columns), ids.map((_, i) => Math.floor(i / columns))];
  const known = Array.from(xs, (_, i) => i).filter((i) => Number.isFinite(xs[i]));
  const limit = (column, pick) => known.reduce((best, i) => pick(best, column[i]), column[known[0]]);
  const [x0, x1, y0, y1] = [limit(xs, Math.min), limit(xs, Math.max), limit(ys, Math.min), limit(ys, Math.max)];
  const scale = Math.min(width / (x1 - x0 || 1), height / (y1 - y0 || 1));
  return (i) => [(xs[i] - x0) * scale || 0, (ys[i] - y0) * scale || 0];
}

/** An SVG as PNG of twice its size. @param {string} svg */
export async function rasterized(svg) {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = new OffscreenCanvas(2 * image.width, 2 * image.height);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  return canvas.convertToBlob({ type: "image/png" });
}

/**
 * A table with the facts in comment lines above it.
 * @param {string[]} facts
 * @param {Record<string, ArrayLike<number>>} columns
 */
export function csv(facts, columns) {
  const names = Object.keys(columns);
  const rows = Array.from({ length: columns[names[0]].length }, (_, i) =>
    names.map((name) => (Number.isFinite(columns[name][i]) ? columns[name][i] : "")).join(","),
  );
  return [...facts.map((fact) => `# ${fact}`), names.join(","), ...rows, ""].join("\n");
}
