/** What the reader should know now: errors in the server's words, notes about the inputs, news. */

import { html } from "../library.js";
import { answer } from "../state/answer.js";
import { allIsWell, connection } from "../state/connection.js";
import { chosen, news } from "../state/mice.js";
import { Details } from "./details.js";

export function Notices() {
  return html`<div class="notices" aria-live="polite">
    <${Connection} />
    ${
      news.value &&
      html`<div class="notice info" role="status">
      <p>${news.value}</p>
      <button class="quiet" onClick=${() => (news.value = "")}>OK</button>
    </div>`
    }
    ${chosen.value?.detail.standardized_inputs && html`<${Standardized} />`}
  </div>`;
}

function Connection() {
  const { status, words, error } = connection.value;
  if (status === "ok" || status === "key") return null;
  return html`<div class="notice ${status === "busy" ? "warn" : "bad"}" role="alert" data-status=${status}>
    <p><strong>${words}</strong></p>
    ${error && html`<${Details} error=${error} />`}
    ${status === "refused" && html`<button class="quiet" onClick=${allIsWell}>OK</button>`}
  </div>`;
}

function Standardized() {
  return html`<div class="notice info">
    <p>
      <strong>This mouse takes standardised inputs and no pictures.</strong> Its twin was imported without the recording, so
      nobody knows the mean and contrast of the images that the mouse saw. Gratings, Gabors, noise and dead leaves work:
      they are shown in standard deviations from the mean.
    </p>
  </div>`;
}

/** What the reply says about its inputs: notes, and what was assumed. */
export function Remarks() {
  const head = answer.value?.head;
  if (!head) return null;
  const notes = head.notes.filter(({ code }) => code !== "standardized_inputs");
  return html`${notes.map(({ message }) => html`<p class="remark warn" data-note>${message}</p>`)}
    ${
      head.assumed.length > 0 &&
      html`<details class="assumed">
      <summary>${head.assumed.length} ${head.assumed.length === 1 ? "input was" : "inputs were"} filled in (${head.state})</summary>
      <ul>${head.assumed.map((text) => html`<li>${text}</li>`)}</ul>
    </details>`
    }`;
}
