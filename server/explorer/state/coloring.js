/** What the map's colours stand for: values, limits, scale and words. */

import { computed } from "../library.js";
import { extent, quantile } from "../statistics/summaries.js";
import { answer } from "./answer.js";
import { pinnedAnswer } from "./comparison.js";
import { fields, tuning } from "./experiments.js";
import { chosen } from "./mice.js";
import { coloring, column } from "./selection.js";

const RESPONSE_UNIT = "response [std of the neuron]";
const KNOWN_FIELD = 3; // times the map's root mean square: weaker peaks are noise

/** The answer, if it is the chosen mouse's. */
export const currentAnswer = computed(() =>
  answer.value && chosen.value && answer.value.responses.length === chosen.value.neurons.ids.length
    ? answer.value
    : null,
);

/** A minus B, or null. */
export const difference = computed(() => {
  const [a, b] = [currentAnswer.value, pinnedAnswer.value];
  if (!a || !b || a.responses.length !== b.responses.length || b.question.mouse !== a.question.mouse) return null;
  return a.responses.map((value, i) => value - b.responses[i]);
});

let steady = { mouse: "", low: 0, high: 1 };

/** Limits that follow the responses slowly, so that colours can be compared while a slider moves. */
function steadyLimits(responses, name) {
  const [low, high] = [Math.min(0, quantile(responses, 0.02)), Math.max(quantile(responses, 0.995), 0.1)];
  const fits = steady.mouse === name && high <= steady.high && high > 0.5 * steady.high && low >= steady.low;
  if (!fits) steady = { mouse: name, low: nice(low), high: nice(1.15 * high) };
  return [steady.low, steady.high];
}

const nice = (value) => Number(value.toPrecision(2));

/**
 * @returns {{ values: ArrayLike<number>, low: number, high: number, scale: string, label: string, cyclic?: boolean } | null}
 */
function coloringNow() {
  const about = chosen.value;
  if (!about) return null;
  const kind = coloring.value;
  const { neurons } = about;
  if (kind === "difference" && difference.value) {
    const most = nice(Math.max(quantile(difference.value.map(Math.abs), 0.99), 0.01));
    return {
      values: difference.value,
      low: -most,
      high: most,
      scale: "difference",
      label: "A − B, response [std of the neuron]",
    };
  }
  if (kind === "orientation" && tuning.value) {
    const { preferred, selectivity } = tuning.value;
    const values = preferred.map((degrees, i) => (selectivity[i] > 0.05 ? degrees : NaN));
    return { values, low: 0, high: 180, scale: "orientation", label: "preferred orientation [°]" };
  }
  if ((kind === "field_x" || kind === "field_y") && fields.value) {
    const { ids, centers } = fields.value;
    const values = new Float32Array(neurons.ids.length).fill(NaN);
    ids.forEach((id, i) => {
      const { x, y, strength } = centers[i];
      if (strength > KNOWN_FIELD) values[neurons.position.get(id)] = kind === "field_x" ? x : y;
    });
    return {
      values,
      low: 0,
      high: 1,
      scale: "score",
      label: kind === "field_x" ? "receptive field, across the screen" : "receptive field, down the screen",
    };
  }
  if (kind === "readout_x" && neurons.readout) return spanned(neurons.readout.x, "readout, across the screen [px]");
  if (kind === "readout_y" && neurons.readout) return spanned(neurons.readout.y, "readout, down the screen [px]");
  if (kind === "depth" && neurons.placed) return spanned(neurons.z, "depth [µm]");
  if (kind === "column" && column.value) {
    return spanned(
      Float32Array.from(neurons.ids, (id) => column.value.values.get(id) ?? NaN),
      column.value.name,
    );
  }
  const score = kind.startsWith("score:") && neurons.scores[kind.slice(6)];
  if (score) return spanned(score, kind.slice(6).replaceAll("_", " "));
  if (!currentAnswer.value) return null;
  const { responses } = currentAnswer.value;
  const [low, high] = steadyLimits(responses, `${about.mouse} ${about.detail.model.hash}`);
  return { values: responses, low, high, scale: "response", label: RESPONSE_UNIT };
}

function spanned(values, label) {
  const [low, high] = extent(values);
  return { values, low, high, scale: "score", label };
}

export const colors = computed(coloringNow);
