/** The selected neurons: what they are, and small experiments on them. */

import { html, useEffect, useLayoutEffect, useRef } from "../library.js";
import { Chart } from "../drawing/chart.js";
import { drawSigned } from "../drawing/planes.js";
import { pace } from "../state/answer.js";
import { currentAnswer } from "../state/coloring.js";
import {
  behaviorCurves,
  behaviorIsCurrent,
  fields,
  jobs,
  measureBehavior,
  measureFields,
  measureTuning,
  noise,
  overlay,
  tuning,
  tuningOf,
} from "../state/experiments.js";
import { chosen, screen } from "../state/mice.js";
import { channels, given, question, state, valueIn } from "../state/question.js";
import { selected, selectedIds } from "../state/selection.js";
import { ORIENTATIONS, preferredOrientation } from "../statistics/orientation.js";
import { centerOf, fieldOf } from "../statistics/receptive_field.js";
import { brief, grouped, mean, singleTrialCeiling } from "../statistics/summaries.js";
import { channelName } from "./behavior_panel.js";
import { Run } from "./controls.js";

const LEAST_FEV = 0.15; // below it, FEVE divides by too little (Willeke et al. 2022)
const LIVE = 120; // ms: answers that are faster let the behaviour curves follow by themselves

export function NeuronPanel() {
  const positions = selected.value.filter((i) => i < chosen.value.neurons.ids.length);
  return html`<section class="panel neuron" data-tour="neuron" id="neuron" aria-labelledby="one-neuron">
    <h2 id="one-neuron">${headline(positions)}</h2>
    ${
      positions.length === 0
        ? html`<p class="empty-state">
          Click a neuron on the map, or one of the most active ones: its gradient, receptive field, orientation tuning and
          behaviour curves appear here. Draw a lasso to study many at once.
        </p>`
        : html`<div class="cards">
          <${Facts} positions=${positions} />
          <${Field} positions=${positions} />
          <${Tuning} positions=${positions} />
          <${Behavior} positions=${positions} />
        </div>`
    }
  </section>`;
}

function headline(positions) {
  if (positions.length === 0) return "One neuron";
  return positions.length === 1 ? `Neuron ${chosen.value.neurons.ids[positions[0]]}` : `${positions.length} neurons`;
}

function Facts({ positions }) {
  const { neurons } = chosen.value;
  const now = currentAnswer.value;
  const [i] = positions;
  const one = positions.length === 1;
  const of = (column) => mean(positions.map((at) => column[at]));
  const rows = [
    now && ["response now", `${brief(of(now.responses))}${one && now.spread ? ` ± ${brief(now.spread[i])}` : ""} std`],
    now &&
      Number.isFinite(of(neurons.std)) && [
        "in recorded units",
        `${brief(mean(positions.map((at) => now.responses[at] * neurons.std[at])))}`,
      ],
    one &&
      neurons.placed && ["place", `${brief(neurons.x[i])}, ${brief(neurons.y[i])} µm, ${brief(neurons.z[i])} µm deep`],
    one && neurons.readout && ["looks at", looksWords(neurons.readout.x[i], neurons.readout.y[i])],
    ...Object.entries(neurons.scores).map(([name, column]) => [name.replaceAll("_", " "), brief(of(column))]),
  ].filter(Boolean);
  return html`<div class="card facts">
    <h3>${one ? "What is known" : "Means over the selection"}</h3>
    <dl>${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
    <p class="hint" data-ceiling>${ceilingWords(neurons.scores, positions)}</p>
    <button
      class="run"
      aria-pressed=${overlay.value === "gradient" ? "true" : "false"}
      onClick=${() => (overlay.value = overlay.value === "gradient" ? "none" : "gradient")}
    >What would make ${one ? "it" : "them"} respond more</button>
    <button class="quiet" onClick=${() => (selected.value = [])}>Clear</button>
  </div>`;
}

function looksWords(x, y) {
  const { H, W } = screen.value;
  const isInside = x > -0.5 && x < W - 0.5 && y > -0.5 && y < H - 0.5;
  return `${brief(x)}, ${brief(y)} px of the image${isInside ? "" : ", outside of it"}`;
}

/** The scores beside the most that is possible, as responses to one image vary from trial to trial. */
function ceilingWords(scores, positions) {
  if (Object.keys(scores).length === 0) {
    return "The bundle holds no scores: nothing here says how well the twin predicts.";
  }
  const known = scores.fev ? positions.filter((i) => Number.isFinite(scores.fev[i])) : [];
  if (known.length === 0) return "The bundle holds no noise ceiling for this: it takes test images that were shown several times.";
  const most = mean(known.map((i) => singleTrialCeiling(scores.fev[i])));
  const reached = scores.single_trial_correlation ? mean(known.map((i) => scores.single_trial_correlation[i])) : NaN;
  const enough = known.filter((i) => scores.fev[i] >= LEAST_FEV);
  const feve = scores.feve && enough.length ? mean(enough.map((i) => scores.feve[i])) : NaN;
  return [
    `Noise ceiling: perfect predictions of the mean response to each image would correlate at ${brief(most)} with
      single trials (√FEV, Schoppe et al. 2016)${Number.isFinite(reached) ? `; the twin's correlate at ${brief(reached)}` : ""}.`,
    Number.isFinite(feve) &&
      `Of the variance that the image can explain, it explains ${brief(100 * feve)} % (FEVE, Cadena et al. 2019).`,
    (reached > most || feve > 1) &&
      "It can exceed the ceiling because it also knows what the mouse does, which changes between repeats, or by chance.",
  ]
    .filter(Boolean)
    .join(" ");
}

function Field({ positions }) {
  const canvas = useRef(null);
  const found = fields.value;
  const { ids } = chosen.value.neurons;
  const known = found ? positions.map((i) => found.row.get(ids[i])).filter((at) => at !== undefined) : [];
  const map = known.length ? fieldOf(found.sums, known.slice(0, 500)) : null;
  useLayoutEffect(() => {
    if (map) drawSigned(canvas.current, map, ...found.sums.grid, 1.5);
  });
  const strength = map && centerOf(map, found.sums.grid).strength;
  return html`<div class="card">
    <h3>Receptive field</h3>
    ${
      map
        ? html`<canvas ref=${canvas} class="field-map" role="img" aria-label="Receptive field from noise"></canvas>
          <p class="hint">
            From ${grouped(found.sums.images)} images of balanced noise, state ${found.state}. Orange: driven by light;
            blue: by darkness. ${strength < 4.5 ? "No clear peak yet: more images help." : ""}
          </p>`
        : html`<p class="hint">The twin is shown noise, and each response is averaged with the noise.</p>`
    }
    <${Run}
      job=${jobs.value.fields}
      words=${found ? `${grouped(noise.value.images)} more images` : `Map with ${grouped(noise.value.images)} noise images`}
      onRun=${async () => {
        await measureFields();
        if (fields.peek()) overlay.value = "field";
      }}
    />
  </div>`;
}

function Tuning({ positions }) {
  const found = tuning.value;
  let chart = null;
  if (found) {
    const curves = positions.slice(0, 300).map((i) => tuningOf(found.curves, i));
    const average = ORIENTATIONS.map((_, k) => mean(curves.map((curve) => curve[k])));
    const { degrees, selectivity } = preferredOrientation(average);
    const wrapped = (curve) => [...curve, curve[0]];
    const xs = [...ORIENTATIONS, 180];
    const shown = curves.length > 1 ? curves.slice(0, 40) : [];
    const single = shown.map((curve) => ({ xs, ys: wrapped(curve), kind: "thin", series: 2 }));
    const preference = selectivity < 0.05 ? "No clear preference" : `Prefers ${Math.round(degrees)}°`;
    const { frequency, contrast } = found.grating;
    chart = html`<${Chart}
        width=${400}
        height=${230}
        title="Orientation tuning: preferred orientation ${Math.round(degrees)} degrees"
        x=${{ label: "orientation [°]", ticks: [0, 45, 90, 135, 180] }}
        y=${{ label: "response [std]" }}
        marks=${[...single, { xs, ys: wrapped(average) }]}
      />
      <p class="hint" data-preferred=${degrees}>
        ${preference}, selectivity ${brief(selectivity)} (1: responds to one orientation alone). Gratings of
        ${" "}${frequency} cycles/width, contrast ${contrast}, mean over 4 phases, state ${found.state}.
      </p>`;
  }
  return html`<div class="card">
    <h3>Orientation tuning</h3>
    ${chart ?? html`<p class="hint">The twin is shown 48 gratings: 12 orientations in 4 phases, for all neurons at once.</p>`}
    <${Run} job=${jobs.value.tuning} words=${found ? "Measure again" : "Measure with 48 gratings"} onRun=${measureTuning} />
  </div>`;
}

function Behavior({ positions }) {
  const follows = pace.value < LIVE && positions.length <= 200;
  const asked = question.value;
  const ids = selectedIds.value.join();
  useEffect(() => {
    if (!follows) return undefined;
    const timer = setTimeout(() => {
      if (!behaviorIsCurrent.peek()) void measureBehavior();
    }, 500);
    return () => clearTimeout(timer);
  }, [asked, ids, follows, jobs.value.behavior === undefined]);
  if (channels.value.length === 0) return null;
  const found = behaviorCurves.value?.ids.join() === ids ? behaviorCurves.value : null;
  return html`<div class="card wide">
    <h3>This image, over behaviour</h3>
    ${
      found
        ? html`<div class="curves ${behaviorIsCurrent.value ? "" : "stale"}">
          ${found.curves.map((curve) => html`<${BehaviorCurve} ...${curve} n=${found.ids.length} />`)}
        </div>`
        : html`<p class="hint">How the response to this image changes with each behaviour variable, from its lowest to its highest recorded value.</p>`
    }
    ${
      (!follows || jobs.value.behavior) &&
      html`<${Run}
      job=${jobs.value.behavior}
      words=${found ? "Measure again" : "Measure"}
      disabled=${behaviorIsCurrent.value}
      onRun=${measureBehavior}
    />`
    }
  </div>`;
}

function BehaviorCurve({ channel, values, responses, n }) {
  const average = values.map((_, k) => mean(responses.subarray(k * n, (k + 1) * n)));
  const unit = channel.unit.replace("eye-camera ", "");
  const now = given.value[channel.name] ?? valueIn(chosen.value.detail, channel, state.value);
  return html`<${Chart}
    title="Response over ${channelName(channel)}"
    x=${{ label: `${channelName(channel)} [${unit}]` }}
    y=${{ label: "response [std]" }}
    marks=${[{ xs: values, ys: average }]}
    at=${now}
    width=${220}
    height=${150}
  />`;
}
