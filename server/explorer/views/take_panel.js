/** Take it along: the question as code, the figure, the data, a link. */

import { encodeNpy } from "../api/npy.js";
import { asCurl, asMatlab, asPython } from "../api/snippets.js";
import { csv, figureSvg, rasterized, saveFile } from "../drawing/download.js";
import { html, useSignal } from "../library.js";
import { addressOf } from "../state/address.js";
import { server } from "../state/connection.js";
import { colors, currentAnswer, difference } from "../state/coloring.js";
import { chosen, mice, screen } from "../state/mice.js";
import { plane, question, stimulus } from "../state/question.js";
import { shortTasks } from "../state/short_tasks.js";
import { wordsFor } from "../stimuli/stimulus.js";
import { encodePng, toBase64 } from "../stimuli/png.js";

const CODE = { curl: asCurl, Python: asPython, MATLAB: asMatlab };

const FILES = {
  svg: { words: "Figure, SVG", save: async () => saveFile(fileName("svg"), [await figure()], "image/svg+xml") },
  png: {
    words: "Figure, PNG",
    save: async () => saveFile(fileName("png"), [await rasterized(await figure())], "image/png"),
  },
  csv: { words: "Data, CSV", save: () => saveFile(fileName("csv"), [table()], "text/csv") },
  npy: {
    words: "Image, .npy",
    save: () => saveFile("stimulus.npy", [stimulusNpy()], "application/octet-stream"),
  },
};

export function TakePanel() {
  const said = useSignal("");
  const copy = async (words, text) => {
    try {
      await navigator.clipboard.writeText(text);
      said.value = `${words} copied.`;
    } catch {
      said.value = "The browser does not let this page copy. Select the text below instead.";
      shown.value = text;
    }
  };
  const shown = useSignal("");
  const copyCode = async (name) => copy(name, CODE[name](await told()));
  const ready = currentAnswer.value !== null;
  return html`<section class="panel take" aria-labelledby="take">
    <h2 id="take">Take it along</h2>
    <p class="hint">Copy this question as code that works as it stands:</p>
    <div class="row">
      ${Object.keys(CODE).map(
        (name) => html`<button class="run" data-copy=${name} onClick=${() => copyCode(name)}>${name}</button>`,
      )}
      <button class="run" data-copy="link" onClick=${() => copy("Link", linkTo())}>Link to this page</button>
    </div>
    <p class="hint">Save, with mouse, model, hash and state inside:</p>
    <div class="row">
      ${Object.entries(FILES).map(
        ([kind, { words, save }]) =>
          html`<button class="run" disabled=${!ready} data-save=${kind} onClick=${save}>${words}</button>`,
      )}
    </div>
    <p role="status">${said.value}</p>
    ${shown.value && html`<textarea readonly rows="5" aria-label="Text to copy">${shown.value}</textarea>`}
    <dl class="provenance">${facts()
      .slice(1)
      .map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
  </section>`;
}

function stimulusNpy() {
  const { pixels, shape } = question.peek();
  return encodeNpy(pixels instanceof Uint8Array ? pixels : Float32Array.from(pixels), shape);
}

function linkTo() {
  return `${location.href.split("#")[0]}#${addressOf()}`;
}

/** @returns {Promise<import("../api/snippets.js").Told>} */
async function told() {
  const { H, W, C, standardized } = screen.peek();
  const asked = question.peek();
  const several = mice.peek().filter(({ mouse }) => mouse === asked.mouse).length > 1;
  return {
    url: server.url("."),
    mouse: asked.mouse,
    model: several ? asked.model : null,
    state: asked.state,
    behavior: asked.behavior,
    pupilCenter: asked.pupilCenter,
    png: C === 1 && !standardized ? toBase64(await encodePng(Uint8Array.from(plane.peek()), H, W)) : null,
    needsKey: server.key !== "",
  };
}

/** What a reader of a figure or a table must know. */
function facts() {
  const now = currentAnswer.value;
  const { detail } = chosen.value;
  const { model } = now?.head ?? detail;
  return [
    ["title", `${detail.simulated ? "Simulated. " : ""}Predicted by a digital twin, not recorded`],
    [
      "mouse",
      `${detail.mouse}${detail.simulated ? " (simulated)" : ""}${detail.data_key ? `, ${detail.data_key}` : ""}`,
    ],
    [
      "model",
      `${model.name}, version ${model.version}, ${model.members} ${model.members === 1 ? "member" : "members"}`,
    ],
    ["hash", model.hash],
    ["image", wordsFor(stimulus.value, screen.value.names)],
    ["state", now ? `${now.head.state}${setWords(now.question)}` : ""],
    ["units", "responses in standard deviations of each neuron's recorded responses"],
    ...(detail.citation ? [["cite", detail.citation]] : []),
    ["licence", detail.licence],
  ].filter(([, value]) => value);
}

function setWords({ behavior, pupilCenter }) {
  const set = [...Object.entries(behavior), ...(pupilCenter ? [["pupil_center", pupilCenter.join(", ")]] : [])];
  return set
    .map(([name, value]) => `; ${name} ${typeof value === "number" ? Number(value.toPrecision(6)) : value}`)
    .join("");
}

function lines() {
  const notes = currentAnswer.value.head.notes.map(({ message }) => `note: ${message}`);
  return [...facts().map(([name, value]) => (name === "title" ? value : `${name}: ${value}`)), ...notes];
}

function fileName(suffix) {
  return `twin-${chosen.value.mouse}-${stimulus.value.kind}.${suffix}`;
}

function figure() {
  const { values, low, high, scale, label } = colors.value;
  const content = {
    screens: [...document.querySelectorAll(".screen .image")],
    neurons: chosen.value.neurons,
    values,
    low,
    high,
    scale,
    label: `What its cortex does: ${label}`,
    facts: lines(),
  };
  return figureSvg(content, shortTasks());
}

function table() {
  const { neurons } = chosen.value;
  const now = currentAnswer.value;
  return csv(lines(), {
    neuron_id: neurons.ids,
    response: now.responses,
    ...(now.spread && { spread: now.spread }),
    ...(difference.value && { minus_b: difference.value }),
    ...(neurons.placed && { x_um: neurons.x, y_um: neurons.y, z_um: neurons.z }),
    ...(neurons.readout && { readout_x_px: neurons.readout.x, readout_y_px: neurons.readout.y }),
    response_std: neurons.std,
    ...neurons.scores,
  });
}
