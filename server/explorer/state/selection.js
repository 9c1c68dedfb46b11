/** Which neurons are selected, by position in the mouse's table; and by what the map is coloured. */

import { computed, signal } from "../library.js";
import { chosen } from "./mice.js";

/** @type {import("../library.js").Signal<number[]>} */
export const selected = signal([]);

/** "response", "difference", "orientation", "field_x", "field_y", "readout_x", "readout_y", "depth", "column", "score:NAME". */
export const coloring = signal("response");

/** A column of the user's: neuron id, value. @type {import("../library.js").Signal<{ name: string, values: Map<number, number> } | null>} */
export const column = signal(null);

/** Whether dragging on the map selects, instead of moving it. */
export const lasso = signal(false);

export const selectedIds = computed(() =>
  selected.value.map((i) => chosen.value?.neurons.ids[i]).filter((id) => id !== undefined),
);

/**
 * Reads a table of neuron ids and values: two columns, with or without a header.
 * @param {string} text
 * @param {Map<number, number>} position of each id of the mouse
 */
export function readColumn(text, position) {
  const rows = text.split(/\r?\n/).map((line) => line.split(/[,;\t]/).map((cell) => cell.trim()));
  const isNumber = (cell) => cell !== undefined && cell !== "" && Number.isFinite(Number(cell));
  const header = rows[0]?.some((cell) => cell && !isNumber(cell)) ? rows.shift() : null;
  const values = new Map();
  for (const [id, value] of rows) {
    if (isNumber(id) && isNumber(value) && position.has(Number(id))) values.set(Number(id), Number(value));
  }
  if (!values.size) {
    throw new Error("The file has no row with the id of one of this mouse's neurons and a number, such as 48,0.7");
  }
  return { name: header?.[1] || "your column", values };
}
