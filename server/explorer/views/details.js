/** What an error reply says beside its message. */

import { html } from "../library.js";

/** Got, expected and hint of an error reply. */
export function Details({ error }) {
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return html`<dl class="details">
    ${["got", "expected", "hint"].filter((name) => error[name]).map((name) => html`<dt>${name}</dt><dd>${text(error[name])}</dd>`)}
  </dl>`;
}
