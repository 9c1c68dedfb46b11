/** What the mouse does: its behaviour channels and gaze, with what was recorded under each slider. */

import { html } from "../library.js";
import { chosen } from "../state/mice.js";
import { channels, given, state, statesOf, valueIn } from "../state/question.js";
import { brief, roundStep } from "../statistics/summaries.js";
import { Choice, Slider } from "./controls.js";
import { Remarks } from "./notices.js";

const NAMES = {
  pupil_dilation: "Pupil size",
  pupil_dilation_derivative: "Pupil change",
  running_speed: "Running speed",
  pupil_center_x: "Gaze, across",
  pupil_center_y: "Gaze, down",
};
const STATES = { median: "Median", mean: "Mean", rest: "Rest", running: "Running" };

/** A channel's name for readers. */
export function channelName({ name }) {
  return NAMES[name] ?? `${name[0].toUpperCase()}${name.slice(1).replaceAll("_", " ")}`;
}

export function BehaviorPanel() {
  const { detail } = chosen.value;
  const has = statesOf(detail);
  const title = (name) =>
    detail.states.find((one) => one.name === name)?.definition ?? `This mouse's recording has no state "${name}"`;
  const options = Object.entries(STATES)
    .filter(([name]) => has.includes(name) || detail.states.length > 0)
    .map(([value, words]) => ({
      value,
      words,
      disabled: !has.includes(value),
      title: ["median", "mean"].includes(value) ? `The ${value} of all training trials` : title(value),
    }));
  const current = has.includes(state.value) ? state.value : "median";
  return html`<section class="panel behavior" data-tour="behavior" aria-labelledby="does">
    <h2 id="does">What the mouse does</h2>
    ${
      channels.value.length === 0
        ? html`<p class="hint">This twin does not know what the mouse does: it uses the image alone.</p>`
        : html`<div class="state">
            <${Choice}
              label="State that fills in what is not set"
              value=${current}
              options=${options}
              onChoose=${(value) => {
                state.value = value;
                given.value = {};
              }}
            />
            <${Eye} />
          </div>
          <div class="sliders">${channels.value.map((channel) => html`<${ChannelSlider} channel=${channel} />`)}</div>`
    }
    <${Remarks} />
  </section>`;
}

/** The limits of a channel's slider: what was recorded, and a little more; in round steps. */
export function limitsOf({ min, max }) {
  if (min === null || max === null) return { min: -3, max: 3, step: 0.02, known: false };
  const room = 0.15 * (max - min) || 1;
  const step = roundStep((max - min + 2 * room) / 200);
  const low = min >= 0 ? Math.max(0, min - room) : min - room;
  return { min: Math.floor(low / step) * step, max: Math.ceil((max + room) / step) * step, step, known: true };
}

function ChannelSlider({ channel }) {
  const { detail } = chosen.value;
  const { min, max, step, known } = limitsOf(channel);
  const isSet = channel.name in given.value;
  const value = isSet ? given.value[channel.name] : valueIn(detail, channel, state.value);
  const named = channel.unit === "1" ? "" : channel.unit.replace("eye-camera ", "");
  const unit = detail.standardized_inputs ? "std" : named;
  return html`<${Slider}
    label=${channelName(channel)}
    unit=${unit}
    value=${value}
    min=${min}
    max=${max}
    step=${step}
    auto=${!isSet}
    onInput=${(set) => (given.value = { ...given.peek(), [channel.name]: Number(set.toPrecision(8)) })}
    onReset=${() => {
      const { [channel.name]: _, ...rest } = given.peek();
      given.value = rest;
    }}
  >
    ${known && html`<${Distribution} channel=${channel} min=${min} max=${max} />`}
  <//>`;
}

/** Recorded range and percentiles on the slider's own scale. */
function Distribution({ channel, min, max }) {
  const at = (value) => (100 * (value - min)) / (max - min);
  const { 5: p5, 25: p25, 50: p50, 75: p75, 95: p95 } = channel.percentiles;
  const words =
    p5 === undefined
      ? `recorded: ${brief(channel.min)} to ${brief(channel.max)}`
      : `recorded: ${brief(channel.min)} to ${brief(channel.max)}, half of the trials ${brief(p25)} to ${brief(p75)}`;
  const bar = (from, to, y, height, kind) =>
    html`<rect class=${kind} x=${at(from)} width=${Math.max(at(to) - at(from), 0.6)} y=${y} height=${height} rx="1" />`;
  return html`<svg class="distribution" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label=${words}>
    <title>${words}</title>
    ${bar(channel.min, channel.max, 3, 2, "range")}
    ${p5 !== undefined && bar(p5, p95, 2, 4, "most")}
    ${p25 !== undefined && bar(p25, p75, 1, 6, "half")}
    ${p50 !== undefined && bar(p50, p50, 0, 8, "middle")}
  </svg>`;
}

/** The mouse's eye as the camera saw it: pupil and gaze. */
function Eye() {
  const { detail } = chosen.value;
  const value = (channel) => given.value[channel.name] ?? valueIn(detail, channel, state.value);
  const share = (channel) => {
    const { min, max } = limitsOf(channel);
    return Math.min(Math.max((value(channel) - min) / (max - min), 0), 1);
  };
  const find = (name) => channels.value.find((channel) => channel.name === name);
  const [pupil, x, y] = ["pupil_dilation", "pupil_center_x", "pupil_center_y"].map(find);
  const [cx, cy] = [50 + 14 * (x ? share(x) - 0.5 : 0), 32 + 12 * (y ? share(y) - 0.5 : 0)];
  const radius = 6 + 13 * (pupil ? share(pupil) : 0.4);
  return html`<svg class="eye" viewBox="0 0 100 64" aria-hidden="true">
    <path class="lid" d="M4 34C20 8 76 4 96 30C84 58 24 62 4 34Z" />
    <circle class="iris" cx=${50 + (cx - 50) / 2} cy=${32 + (cy - 32) / 2} r="25" />
    <circle class="pupil" cx=${cx} cy=${cy} r=${radius} />
    <circle class="glint" cx=${cx - radius / 2.5} cy=${cy - radius / 2.5} r="2.6" />
  </svg>`;
}
