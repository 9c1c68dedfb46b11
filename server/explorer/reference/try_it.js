/** A form that sends a request to this server, and shows what it replies. */

import { Unreachable } from "../api/server.js";
import { html, useSignal } from "../library.js";
import { report, server } from "../state/connection.js";
import { gridFor } from "../statistics/receptive_field.js";
import { grouped } from "../statistics/summaries.js";
import { exampleOf } from "./schema.js";

const SHOWN = 20_000; // characters of a reply

/**
 * @typedef {{ mouse: string, neuron: number, H: number, W: number, standardized: boolean }} Sample
 * @param {{ operation: any, spec: any, sample: Sample | null }} props sample: a mouse that this server has
 */
export function TryIt({ operation, spec, sample }) {
  const { method, path, parameters = [], requestBody } = operation;
  const json = requestBody?.content["application/json"];
  const reply = useSignal(null);
  const sending = useSignal(false);
  const send = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    sending.value = true;
    try {
      reply.value = await exchange(method, path, parameters, form);
    } catch (error) {
      reply.value = {
        status: 0,
        words: error instanceof Unreachable ? error.message : String(error),
        headers: [],
        text: "",
      };
    } finally {
      sending.value = false;
    }
  };
  return html`<form class="try" onSubmit=${send}>
    <h4>Try it</h4>
    ${parameters.map(
      (one) => html`<label class="field">
      <span>${one.name}</span>
      <input name="${one.in}:${one.name}" required=${one.required} value=${one.name === "mouse" ? (sample?.mouse ?? "") : ""} placeholder=${one.required ? "" : "left out"} />
    </label>`,
    )}
    ${
      json &&
      html`<label class="body"><span>JSON</span>
      <textarea name="body" rows="8" spellcheck="false">${briefJson(JSON.stringify(bodyFor(spec, operation.id, json.schema, sample)))}</textarea>
    </label>`
    }
    ${operation.security?.length !== 0 && path.startsWith("/admin") && html`<p class="hint">Needs a key of V1T_ADMIN_KEYS.</p>`}
    <button class="run" disabled=${sending.value}>${sending.value ? "Sending…" : `Send ${method} ${path}`}</button>
    ${reply.value && html`<${Reply} ...${reply.value} />`}
  </form>`;
}

/** An example that the server answers: its image is a checkerboard, which the server enlarges. */
function bodyFor(spec, name, schema, sample) {
  const body = exampleOf(spec, schema);
  if (!sample) return body;
  const [dark, bright] = sample.standardized ? [-1, 1] : [0, 255];
  if ("image" in body)
    Object.assign(body, {
      image: [
        [dark, bright],
        [bright, dark],
      ],
      resize: "fill",
    });
  if ("mouse" in body) body.mouse = sample.mouse;
  if (name === "gradient") Object.assign(body, { neuron_ids: [sample.neuron], weights: [1] });
  if (name === "receptive_fields") {
    const levels = sample.standardized ? { luminance: 0, contrast: 1 } : { luminance: 127, contrast: 60 };
    Object.assign(body, {
      seed: 1,
      n_images: 100,
      grid: gridFor(sample.H, sample.W),
      ...levels,
      neuron_ids: [sample.neuron],
    });
  }
  return body;
}

async function exchange(method, path, parameters, form) {
  const query = new URLSearchParams();
  const headers = {};
  let filled = path.slice(1);
  for (const one of parameters) {
    const value = String(form.get(`${one.in}:${one.name}`) ?? "").trim();
    if (one.in === "path") filled = filled.replace(`{${one.name}}`, encodeURIComponent(value));
    else if (value && one.in === "query") query.set(one.name, value);
    else if (value && one.in === "header") headers[one.name] = value;
  }
  const body = form.get("body");
  if (body !== null) headers["Content-Type"] = "application/json";
  const start = performance.now();
  const response = await server.askOnce(`${filled}${query.size ? `?${query}` : ""}`, {
    method,
    headers,
    ...(body !== null && { body }),
  });
  const bytes = await response.arrayBuffer();
  const ms = Math.round(performance.now() - start);
  if (response.status === 401) report(Object.assign(new Error("key"), { status: 401 }));
  const type = response.headers.get("Content-Type") ?? "";
  return {
    status: response.status,
    words: `${response.status} ${response.statusText}, ${grouped(bytes.byteLength)} bytes in ${ms} ms`,
    headers: [...response.headers],
    text: readable(type, bytes),
  };
}

function readable(type, bytes) {
  if (!/json|text/.test(type)) return `${bytes.byteLength} bytes of ${type || "no type"}`;
  const text = new TextDecoder().decode(bytes);
  const pretty = type.includes("json") ? briefJson(text) : text;
  return pretty.length > SHOWN ? `${pretty.slice(0, SHOWN)}\n… ${pretty.length - SHOWN} characters more` : pretty;
}

/** JSON with indentation, and lists of numbers on one line. */
function briefJson(text) {
  try {
    const pretty = JSON.stringify(JSON.parse(text), null, 2);
    return pretty.replace(/\[[\s\d.,eE+-]*\]/g, (list) => list.replace(/\s+/g, " "));
  } catch {
    return text;
  }
}

function Reply({ status, words, headers, text }) {
  return html`<div class="reply" role="status" data-status=${status}>
    <p><strong>${words}</strong></p>
    <details><summary>Headers</summary><pre tabindex="0">${headers.map((pair) => pair.join(": ")).join("\n")}</pre></details>
    <pre tabindex="0">${text}</pre>
  </div>`;
}
