/** Small charts as SVG: lines, bars, points. They take the page's colours, can be read aloud, and can be saved. */

import { html } from "../library.js";
import { brief, extent, roundStep } from "../statistics/summaries.js";

/**
 * @typedef {{ label: string, low?: number, high?: number, ticks?: number[], format?: (value: number) => string }} Axis
 * @typedef {{ xs: ArrayLike<number>, ys: ArrayLike<number>, kind?: "line" | "points" | "bars" | "thin", series?: number }} Mark
 */

const LETTER = 6.2; // px, about the width of a digit
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 38;

/**
 * @param {{ title: string, x: Axis, y: Axis, marks: Mark[], at?: number | null, width?: number,
 *   height?: number }} props
 * at: a vertical line, such as where a slider stands.
 */
export function Chart({ title, x, y, marks, at = null, width = 320, height = 190 }) {
  const [x0, x1] = limits(
    x,
    marks.map(({ xs }) => xs),
    false,
  );
  const [y0, y1] = limits(
    y,
    marks.map(({ ys }) => ys),
    true,
  );
  const yTicks = y.ticks ?? ticksOf(y0, y1, height / 45);
  const yWords = yTicks.map(y.format ?? brief);
  const left = 26 + LETTER * Math.max(...yWords.map(({ length }) => length), 1);
  const right = width - RIGHT;
  const bottom = height - BOTTOM;
  const px = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (right - left);
  const py = (value) => bottom - ((value - y0) / (y1 - y0 || 1)) * (bottom - TOP);
  const xTicks = x.ticks ?? ticksOf(x0, x1, width / 70);
  return html`<svg class="chart" viewBox="0 0 ${width} ${height}" role="img" aria-label=${title}>
    ${yTicks.map(
      (tick, k) => html`<line class="grid" x1=${left} x2=${right} y1=${py(tick)} y2=${py(tick)} />
      <text class="tick" x=${left - 6} y=${py(tick) + 3.5} text-anchor="end">${yWords[k]}</text>`,
    )}
    ${xTicks.map(
      (tick) => html`<line class="axis" x1=${px(tick)} x2=${px(tick)} y1=${bottom} y2=${bottom + 4} />
      <text class="tick" x=${px(tick)} y=${bottom + 15} text-anchor="middle">${(x.format ?? brief)(tick)}</text>`,
    )}
    <line class="axis" x1=${left} x2=${right} y1=${bottom} y2=${bottom} />
    <text class="label" x=${(left + right) / 2} y=${height - 4} text-anchor="middle">${x.label}</text>
    <text class="label" text-anchor="middle" transform="translate(11 ${(TOP + bottom) / 2}) rotate(-90)">${y.label}</text>
    ${marks.map((mark) => markOf(mark, px, py, y0, bottom))}
    ${at !== null && at >= x0 && at <= x1 && html`<line class="now" x1=${px(at)} x2=${px(at)} y1=${TOP} y2=${bottom} />`}
  </svg>`;
}

function markOf({ xs, ys, kind = "line", series = 0 }, px, py, y0, bottom) {
  const points = Array.from(xs, (value, i) => [px(value), py(ys[i])]);
  if (kind === "bars") {
    const wide = Math.max(points.length > 1 ? points[1][0] - points[0][0] : 8, 1.5);
    const base = py(Math.max(0, y0));
    const path = points.map(
      ([x, y]) =>
        `M${(x - wide / 2 + 0.5).toFixed(1)} ${base.toFixed(1)}V${y.toFixed(1)}h${(wide - 1).toFixed(1)}V${base.toFixed(1)}`,
    );
    return html`<path class="bars series${series}" d=${path.join("")} />`;
  }
  if (kind === "points") {
    const path = points.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("");
    return html`<path class="points series${series}" d=${path} />`;
  }
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${Math.min(y, bottom).toFixed(1)}`).join("");
  return html`<path class="${kind} series${series}" d=${path} />
    ${kind === "line" && points.length < 30 && html`<path class="dots series${series}" d=${points.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("")} />`}`;
}

function limits(axis, columns, padded) {
  const extents = columns.map(extent);
  let low = axis.low ?? Math.min(...extents.map(([least]) => least));
  let high = axis.high ?? Math.max(...extents.map(([, most]) => most));
  if (!Number.isFinite(low) || !Number.isFinite(high)) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const room = padded ? 0.06 * (high - low) : 0;
  return [axis.low ?? low - room, axis.high ?? high + room];
}

/** A name for each series. @param {{ names: string[] }} props */
export function ChartLegend({ names }) {
  return html`<p class="chart-legend">${names.map((name, k) => html`<span><i class="series${k}"></i>${name}</span>`)}</p>`;
}

/** Round numbers between two limits. */
export function ticksOf(low, high, atMost) {
  const step = roundStep(((high - low) / Math.max(atMost, 2)) * 1.99);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) ticks.push(k * step);
  return ticks;
}
