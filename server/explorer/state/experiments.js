/** Experiments that are done on the spot: tuning, receptive fields, behaviour, gradient, attention. */

import { ServerError } from "../api/server.js";
import { batch, computed, effect, signal } from "../library.js";
import { ORIENTATIONS, PHASES, preferredOrientation, tuningCurves } from "../statistics/orientation.js";
import { addSums, centerOf, fieldOf, gridFor, noiseImages } from "../statistics/receptive_field.js";
import { FIRST, planeOf } from "../stimuli/stimulus.js";
import { answer } from "./answer.js";
import { report, twin } from "./connection.js";
import { Latest } from "./latest.js";
import { checkHash, chosen, screen } from "./mice.js";
import { channels, given, plane, question, questionAbout, state, stimulus } from "./question.js";
import { selectedIds } from "./selection.js";
import { shortTasks } from "./short_tasks.js";

const AT_ONCE = 8; // images in one request, so that the live answer gets its turn
const LEVELS = 13; // of each behaviour channel
const MAPS = 8e6; // elements of receptive fields that are kept

/** @type {import("../library.js").Signal<{ curves: Float32Array, preferred: Float32Array, selectivity: Float32Array, grating: any, state: string } | null>} */
export const tuning = signal(null);
/** @type {import("../library.js").Signal<{ sums: import("../statistics/receptive_field.js").Sums, ids: number[], row: Map<number, number>, centers: { x: number, y: number, strength: number }[], state: string } | null>} */
export const fields = signal(null);
/** @type {import("../library.js").Signal<{ question: any, ids: number[], curves: { channel: any, values: number[], responses: Float32Array }[] } | null>} */
export const behaviorCurves = signal(null);
/** @type {import("../library.js").Signal<{ data: Float32Array, shape: number[], ids: number[] } | null>} */
export const gradient = signal(null);
/** @type {import("../library.js").Signal<{ data: Float32Array, shape: number[] } | null>} */
export const attention = signal(null);
/** Why this mouse's twin has no attention, in the server's words; empty as long as that is not known. */
export const attentionProblem = signal("");
/** Which layer lies over the image: "none", "gradient", "field" or "attention". */
export const overlay = signal("none");

/** Experiments that run, by name: how far they are, and what stops them. */
export const jobs = signal(/** @type {Record<string, { done: number, total: number, stop: () => void }>} */ ({}));

async function run(name, total, work) {
  if (jobs.peek()[name]) return;
  const controller = new AbortController();
  const stop = () => controller.abort();
  const progress = (done, of = total) => (jobs.value = { ...jobs.peek(), [name]: { done, total: of, stop } });
  progress(0);
  try {
    await work(progress, controller.signal);
  } catch (error) {
    report(error);
  } finally {
    const { [name]: _, ...rest } = jobs.peek();
    jobs.value = rest;
  }
}

/** Shows gratings of all orientations and phases to all neurons. */
export function measureTuning() {
  const about = chosen.peek();
  const shown = stimulus.peek();
  const { frequency, contrast } = ["grating", "gabor"].includes(shown.kind) ? shown : FIRST.grating;
  const base = { ...FIRST.grating, frequency, contrast };
  const images = ORIENTATIONS.flatMap((orientation) => PHASES.map((phase) => ({ ...base, orientation, phase })));
  return run("tuning", images.length, async (progress, cancelled) => {
    const n = about.neurons.ids.length;
    const responses = new Float32Array(images.length * n);
    for (let first = 0; first < images.length; first += AT_ONCE) {
      const planes = images.slice(first, first + AT_ONCE).map((one) => planeOf(one, screen.peek()));
      const asked = questionAbout(about, planes, given.peek(), state.peek(), shown.channel);
      const got = await twin.predict(asked, { signal: cancelled });
      responses.set(got.responses, first * n);
      progress(first + planes.length);
    }
    const turn = shortTasks();
    const curves = tuningCurves(responses, n);
    const [preferred, selectivity] = [new Float32Array(n), new Float32Array(n)];
    for (let i = 0; i < n; i += 1) {
      const found = preferredOrientation(tuningOf(curves, i));
      [preferred[i], selectivity[i]] = [found.degrees, found.selectivity];
      await turn();
    }
    if (chosen.peek() !== about) return; // another mouse was chosen meanwhile
    tuning.value = {
      curves,
      preferred,
      selectivity,
      grating: base,
      state: state.peek(),
    };
  });
}

/** One neuron's curve. */
export function tuningOf(curves, neuron) {
  return curves.subarray(neuron * ORIENTATIONS.length, (neuron + 1) * ORIENTATIONS.length);
}

/** The noise of receptive fields: its elements, and images at a time. */
export const noise = computed(() => {
  const [, H, W] = chosen.value.detail.image_shape;
  const grid = gridFor(H, W);
  return { grid, images: noiseImages(grid) };
});

/** Shows noise, and more of it each time. */
export function measureFields() {
  const about = chosen.peek();
  const { grid, images } = noise.peek();
  const all = about.neurons.ids.length * grid[0] * grid[1] <= MAPS;
  const ids = all ? about.neurons.ids : selectedIds.peek().slice(0, 100);
  const before = fields.peek()?.ids.join() === ids.join() ? fields.peek() : null;
  const first = before?.sums.images ?? 0;
  const { mean, std, min, max } = about.detail.image_channels[0];
  const luminance = about.detail.standardized_inputs ? 0 : (mean ?? 127);
  const span = Math.min(luminance - (min ?? 0), (max ?? 255) - luminance) / Math.sqrt(3.1); // z is uniform
  const contrast = about.detail.standardized_inputs ? 1 : Math.min(std ?? span, span);
  const { behavior, pupilCenter } = question.peek();
  const body = {
    mouse: about.mouse,
    model: about.model,
    state: question.peek().state,
    behavior,
    ...(pupilCenter && { pupil_center: pupilCenter }),
    noise: "balanced",
    seed: 1,
    first_image: first,
    n_images: images,
    grid,
    luminance,
    contrast,
    ...(all ? {} : { neuron_ids: ids }),
  };
  return run("fields", images, async (progress, cancelled) => {
    const got = await twin.receptiveFields(body, progress, cancelled);
    const part = { maps: got.maps.data, noise: got.noise.data, total: got.total.data, images, grid };
    const turn = shortTasks();
    const sums = before ? await addSums(before.sums, part, turn) : part;
    const centers = [];
    for (let i = 0; i < ids.length; i += 1) {
      centers.push(centerOf(fieldOf(sums, [i]), grid));
      await turn();
    }
    if (chosen.peek() !== about) return;
    fields.value = { sums, ids, row: new Map(ids.map((id, i) => [id, i])), centers, state: body.state };
  });
}

/** Shows the image at other values of each behaviour channel, to the selected neurons. */
export function measureBehavior() {
  const about = chosen.peek();
  const asked = question.peek();
  const ids = selectedIds.peek();
  const shown = plane.peek();
  const only = stimulus.peek().channel;
  const all = channels.peek();
  return run("behavior", all.length, async (progress, cancelled) => {
    const curves = [];
    for (const channel of all) {
      const [low, high] = [channel.min ?? -2, channel.max ?? 2];
      const values = Array.from({ length: LEVELS }, (_, k) => low + (k * (high - low)) / (LEVELS - 1));
      const set = { ...given.peek(), [channel.name]: values };
      const one = questionAbout(about, Array(LEVELS).fill(shown), set, state.peek(), only);
      const { responses } = await twin.predict(one, { neuronIds: ids, signal: cancelled });
      curves.push({ channel, values, responses });
      progress(curves.length);
    }
    if (chosen.peek() === about) behaviorCurves.value = { question: asked, ids, curves };
  });
}

/** Whether the behaviour curves are about the selection and the question of now. */
export const behaviorIsCurrent = computed(
  () =>
    behaviorCurves.value?.question === question.value && behaviorCurves.value?.ids.join() === selectedIds.value.join(),
);

const liveGradient = new Latest(
  ([asked, ids], cancelled) => twin.gradient(asked, ids, cancelled),
  (got, [, ids]) => {
    checkHash(got.head);
    gradient.value = { ...got, ids };
  },
  (error) => {
    gradient.value = null;
    overlay.value = "none";
    report(error);
  },
);
const liveAttention = new Latest(
  (asked, cancelled) => twin.attention(asked, cancelled),
  (got) => (attention.value = got),
  (error) => {
    attention.value = null;
    overlay.value = "none";
    if (error instanceof ServerError && error.status === 404) attentionProblem.value = error.message;
    else report(error);
  },
);

/** Starts what follows the question by itself; called once. */
export function startExperiments() {
  let described = null;
  effect(() => {
    if (chosen.value === described) return;
    described = chosen.value;
    Object.values(jobs.peek()).forEach(({ stop }) => stop());
    batch(() => {
      [tuning, fields, behaviorCurves, gradient, attention].forEach((result) => (result.value = null));
      attentionProblem.value = "";
    });
  });
  effect(() => {
    const ids = selectedIds.value;
    if (overlay.value !== "gradient" || !ids.length || !answer.value) {
      gradient.value = null;
      return;
    }
    if (answer.value.question.mouse === chosen.value?.mouse) liveGradient.want([answer.value.question, ids]);
  });
  effect(() => {
    if (overlay.value === "attention" && answer.value) liveAttention.want(answer.value.question);
  });
}
