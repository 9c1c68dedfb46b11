/** The page /docs: the OpenAPI document, to read and to try. */

import { html, render, signal } from "../library.js";
import { allIsWell, connection, report, server, twin } from "../state/connection.js";
import { KeyDialog } from "../views/key_dialog.js";
import { Details } from "../views/details.js";
import { Operation, operationsOf } from "./operation.js";

/** @type {import("../library.js").Signal<any>} */
const document_ = signal(null);

/** A mouse for the examples. @type {import("../library.js").Signal<import("./try_it.js").Sample | null>} */
const sample = signal(null);

async function load() {
  try {
    const spec = await server.json("docs.json");
    sample.value = await findSample();
    document_.value = spec;
    allIsWell();
  } catch (error) {
    report(error);
  }
}

async function findSample() {
  const list = await twin.mice();
  const first = list.find(({ standardized_inputs }) => !standardized_inputs) ?? list[0];
  if (!first) return null;
  const {
    mouse,
    model,
    image_shape: [, H, W],
    standardized_inputs: standardized,
  } = first;
  const {
    neuron_ids: [neuron],
  } = await server.json(`mice/${encodeURIComponent(mouse)}/neurons?limit=1&model=${encodeURIComponent(model)}`);
  return { mouse, neuron, H, W, standardized };
}

function Page() {
  const spec = document_.value;
  const { status, words, error } = connection.value;
  return html`<header class="top">
      <div>
        <h1>API</h1>
        <p class="hint">
          ${spec ? `${spec.info.title}, version ${spec.info.version}. ` : ""}<a href=".">Back to the explorer</a> ·${" "}
          <a href="docs.json">OpenAPI document</a>
        </p>
      </div>
    </header>
    ${!["ok", "key"].includes(status) && html`<div class="notice bad" role="alert"><p>${words}</p>${error && html`<${Details} error=${error} />`}</div>`}
    ${
      spec &&
      html`<div class="reference">
      <nav aria-label="Routes">
        ${groupsOf(spec).map(
          ([group, operations]) => html`<h2>${group}</h2>
          <ul>${operations.map(
            ({ id, method, path }) => html`<li>
            <button class="link" onClick=${() => show(id)}><span class="method">${method}</span>${path}</button>
          </li>`,
          )}</ul>`,
        )}
      </nav>
      <main>
        ${spec.info.description && html`<p class="about">${spec.info.description}</p>`}
        ${groupsOf(spec).map(([, operations]) => operations.map((operation) => html`<${Operation} key=${operation.id} operation=${operation} spec=${spec} sample=${sample.value} />`))}
      </main>
    </div>`
    }
    <${KeyDialog} onKey=${load} />`;
}

function show(id) {
  const target = document.getElementById(id);
  target.open = true;
  target.scrollIntoView({ block: "start" });
  target.querySelector("summary").focus();
}

/** @returns {[string, any[]][]} */
function groupsOf(spec) {
  const groups = new Map();
  for (const operation of operationsOf(spec)) {
    const group = groupOf(operation.path);
    groups.set(group, [...(groups.get(group) ?? []), operation]);
  }
  return [...groups];
}

function groupOf(path) {
  if (path.startsWith("/v2")) return "Open Inference Protocol v2";
  if (path.startsWith("/mice")) return "Mice and neurons";
  return ["/livez", "/readyz", "/metrics", "/admin/reload"].includes(path) ? "Operation" : "Questions";
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${Page} />`, root);
await load();
