/** Which mice there are, and all about the one that is chosen. */

import { pause } from "../api/server.js";
import { batch, computed, signal } from "../library.js";
import { screenOf } from "../stimuli/stimulus.js";
import { allIsWell, report, twin } from "./connection.js";
import { shortTasks } from "./short_tasks.js";

/** All mice of the server; null until they are known. @type {import("../library.js").Signal<any[] | null>} */
export const mice = signal(null);

/**
 * The chosen mouse: GET /mice/{mouse}, and its neurons by column. Null until both are there.
 * @type {import("../library.js").Signal<{ mouse: string, model: string, detail: any, neurons: Neurons } | null>}
 */
export const chosen = signal(null);

/** What to say once, such as that the model was loaded anew. */
export const news = signal("");

export const screen = computed(() => (chosen.value ? screenOf(chosen.value.detail) : null));

/**
 * @typedef {object} Neurons
 * @property {number[]} ids
 * @property {Float32Array} x um, in the plane of the cortex; NaN if unknown
 * @property {Float32Array} y um
 * @property {Float32Array} z um, depth
 * @property {Float32Array} std of the recorded responses
 * @property {Record<string, Float32Array>} scores
 * @property {{ x: Float32Array, y: Float32Array } | null} readout where each looks, in pixels of the image; null if the
 *   server does not say
 * @property {Map<number, number>} position of each id
 * @property {boolean} placed whether the positions are known
 */

let loading = new AbortController();

/** Loads the list of mice, and the wanted one or the first. */
export async function loadMice(wanted = chosen.peek()) {
  try {
    const list = await twin.mice();
    mice.value = list;
    allIsWell();
    const found = list.find(({ mouse, model }) => mouse === wanted?.mouse && model === (wanted.model ?? model));
    const first = found ?? list.find(({ standardized_inputs }) => !standardized_inputs) ?? list[0];
    if (wanted && !found && first) news.value = `This server has no mouse ${wanted.mouse}; ${first.mouse} is shown.`;
    if (first) await chooseMouse(first.mouse, first.model);
  } catch (error) {
    report(error);
  }
}

/** @param {string} mouse @param {string} model */
export async function chooseMouse(mouse, model) {
  loading.abort();
  loading = new AbortController();
  const { signal: cancelled } = loading;
  try {
    const loaded = await describe(mouse, model, cancelled);
    if (!cancelled.aborted) batch(() => (chosen.value = loaded));
  } catch (error) {
    report(error);
  }
}

/** All about a mouse, for the page or for a comparison. */
export async function describe(mouse, model, cancelled) {
  const [detail, table] = await Promise.all([
    twin.mouse(mouse, model, cancelled),
    twin.neurons(mouse, model, cancelled),
  ]);
  return { mouse, model, detail, neurons: await columnsOf(table) };
}

/** Loads the chosen mouse again if a reply came from another bundle than the one that was described. */
export function checkHash(head) {
  const current = chosen.peek();
  if (!current || head.mouse !== current.mouse || head.model.hash === current.detail.model.hash) return;
  news.value = `The server has loaded another version of model ${head.model.name}. The page shows it now.`;
  void chooseMouse(current.mouse, current.model);
}

/** @returns {Promise<Neurons>} */
async function columnsOf({ neuron_ids: ids, coordinates_um: coordinates, readout_position_px: looks, response_std: std, scores }) {
  const axis = (k) => Float32Array.from(coordinates, (xyz) => xyz?.[k] ?? NaN);
  const side = (k) => Float32Array.from(looks, (xy) => xy[k]);
  const number = (value) => value ?? NaN;
  const turn = shortTasks();
  const [x, y, z] = [axis(0), axis(1), axis(2)];
  await turn();
  const named = {};
  for (const [name, column] of Object.entries(scores)) {
    named[name] = Float32Array.from(column, number);
    await turn();
  }
  await pause(0); // the page is drawn in a task of its own
  return {
    ids,
    x,
    y,
    z,
    readout: looks ? { x: side(0), y: side(1) } : null, // not from older servers
    std: Float32Array.from(std, number),
    scores: named,
    position: new Map(ids.map((id, i) => [id, i])),
    placed: x.some(Number.isFinite),
  };
}
