/** Asks for an API key where the server wants one. It stays in memory until the page is closed. */

import { html, useEffect, useRef } from "../library.js";
import { connection, server } from "../state/connection.js";
import { Details } from "./details.js";

/** @param {{ onKey: () => void }} props called once there is a key */
export function KeyDialog({ onKey }) {
  const dialog = useRef(null);
  const { status, words, error } = connection.value;
  useEffect(() => {
    if (status === "key" && !dialog.current.open) dialog.current.showModal();
  }, [status]);
  const submit = (event) => {
    event.preventDefault();
    server.key = new FormData(event.target).get("key").trim();
    event.target.reset();
    dialog.current.close();
    connection.value = { status: "ok", words: "" };
    onKey();
  };
  return html`<dialog ref=${dialog} aria-labelledby="key-title">
    <form onSubmit=${submit}>
      <h2 id="key-title">This server wants an API key</h2>
      <p>${words}</p>
      ${error && html`<${Details} error=${error} />`}
      <label class="field"><span>API key</span><input name="key" type="password" autocomplete="off" required /></label>
      <p class="hint">It is kept in this page's memory until you close it, and is sent to this server alone.</p>
      <button class="run primary">Use this key</button>
    </form>
  </dialog>`;
}
