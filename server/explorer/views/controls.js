/** Controls that several panels use: sliders, buttons of which one is chosen, progress. */

import { html } from "../library.js";
import { brief } from "../statistics/summaries.js";

/**
 * @param {{ label: string, unit?: string, value: number, min: number, max: number, step?: number,
 *   onInput: (value: number) => void, children?: any, auto?: boolean, onReset?: () => void }} props
 * auto: the value is not set, but follows from something else.
 */
export function Slider({
  label,
  unit = "",
  value,
  min,
  max,
  step = (max - min) / 200,
  onInput,
  children,
  auto,
  onReset,
}) {
  const shown = `${brief(value)}${unit ? ` ${unit}` : ""}`;
  return html`<div class="slider ${auto ? "auto" : ""}">
    <label>
      <span class="name">${label}</span>
      <output>${shown}</output>
      <input
        type="range"
        min=${min}
        max=${max}
        step=${step}
        value=${value}
        aria-valuetext=${auto ? `${shown}, filled in` : shown}
        onInput=${({ target }) => onInput(Number(target.value))}
      />
    </label>
    ${children}
    ${onReset && html`<button class="reset" title="Leave ${label} to the state" aria-label="Leave ${label} to the state" disabled=${auto} onClick=${onReset}>↺</button>`}
  </div>`;
}

/**
 * @param {{ label: string, options: { value: string, words: any, disabled?: boolean, title?: string }[], value: string,
 *   onChoose: (value: string) => void }} props
 */
export function Choice({ label, options, value, onChoose }) {
  return html`<div class="choice" role="group" aria-label=${label}>
    ${options.map(
      (option) => html`<button
      aria-pressed=${option.value === value ? "true" : "false"}
      disabled=${option.disabled}
      title=${option.title}
      onClick=${() => onChoose(option.value)}
    >${option.words}</button>`,
    )}
  </div>`;
}

/** A button that starts an experiment; while it runs, its progress and a button that stops it. */
export function Run({ job, words, onRun, disabled = false }) {
  if (!job) return html`<button class="run" disabled=${disabled} onClick=${onRun}>${words}</button>`;
  return html`<div class="progress">
    <progress max=${job.total} value=${job.done} aria-label=${words}></progress>
    <span>${job.done} / ${job.total}</span>
    <button class="quiet" onClick=${job.stop}>Stop</button>
  </div>`;
}
