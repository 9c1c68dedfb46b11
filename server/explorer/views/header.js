/** The top of the page: what it is, and which mouse is shown. */

import { html } from "../library.js";
import { chooseMouse, chosen, mice } from "../state/mice.js";
import { selected } from "../state/selection.js";
import { grouped } from "../statistics/summaries.js";
import { startTour } from "./tour.js";

export function Header() {
  const about = chosen.value;
  return html`<header class="top">
    <button class="skip" onClick=${() => document.getElementById("main").scrollIntoView()}>Skip to the twin</button>
    <div class="title">
      <h1>Digital twin of a mouse's visual cortex</h1>
      ${about && html`<p>${sentence(about)}</p>`}
    </div>
    <div class="choose">
      ${mice.value?.length > 0 && html`<${MouseChoice} label="Mouse" value=${about} onChoose=${pick} />`}
      ${about && html`<button class="quiet" onClick=${startTour}>Tour</button>`}
      <a class="quiet button" href="docs">API</a>
    </div>
  </header>`;
}

function pick(mouse, model) {
  selected.value = [];
  void chooseMouse(mouse, model);
}

/** A choice among all mice; several models of one mouse are told apart. */
export function MouseChoice({ label, value, onChoose, none = null }) {
  const list = mice.value ?? [];
  const models = new Set(list.map(({ model }) => model));
  const keyOf = ({ mouse, model }) => JSON.stringify([mouse, model]);
  return html`<label class="field">
    <span>${label}</span>
    <select
      value=${value ? keyOf(value) : ""}
      onChange=${({ target }) => onChoose(...(target.value ? JSON.parse(target.value) : [null, null]))}
    >
      ${none !== null && html`<option value="">${none}</option>`}
      ${list.map(
        (one) => html`<option value=${keyOf(one)} selected=${value && keyOf(one) === keyOf(value)}>
        ${one.mouse}${models.size > 1 ? ` · ${one.model}` : ""}
      </option>`,
      )}
    </select>
  </label>`;
}

function sentence({ detail, neurons }) {
  const kind = detail.simulated ? html`<span class="badge">simulated</span> mouse` : "mouse";
  return html`Show ${kind} <strong>${detail.mouse}</strong> an image: the twin predicts what each of its${" "}
    <strong>${grouped(neurons.ids.length)}</strong> neurons does.`;
}
