/** The page's state in its URL, after the #, so that a link shows a colleague the same thing. */

import { batch, effect } from "../library.js";
import { restorePicture } from "../stimuli/pictures.js";
import { FIRST } from "../stimuli/stimulus.js";
import { compareWith, other, pinned } from "./comparison.js";
import { report } from "./connection.js";
import { chosen, loadMice, screen } from "./mice.js";
import { given, state, stimulus } from "./question.js";
import { coloring, selected } from "./selection.js";

const PAUSE = 250; // ms: browsers limit how often the URL changes

/** @returns {URLSearchParams} */
export function addressOf() {
  const parameters = new URLSearchParams();
  if (!chosen.value) return parameters;
  // First, so that a channel which has the name of one of the others does not replace it.
  for (const [name, value] of Object.entries(given.value)) parameters.set(name, String(value));
  parameters.set("mouse", chosen.value.mouse);
  parameters.set("model", chosen.value.model);
  for (const [name, value] of Object.entries(stimulus.value)) parameters.set(`show.${name}`, String(value));
  parameters.set("state", state.value);
  if (pinned.value) parameters.set("b", JSON.stringify(pinned.value));
  if (other.value) parameters.set("other", JSON.stringify([other.value.mouse, other.value.model]));
  const ids = selected.value.map((i) => chosen.value.neurons.ids[i]);
  if (ids.length && ids.length <= 200) parameters.set("neurons", ids.join(" "));
  if (!["response", "column"].includes(coloring.value)) parameters.set("color", coloring.value);
  return parameters;
}

/** Shows what an address says, as far as this server has it. */
export async function openAddress(text) {
  const parameters = new URLSearchParams(text);
  const mouse = parameters.get("mouse");
  await loadMice(mouse ? { mouse, model: parameters.get("model") ?? undefined } : null);
  if (!chosen.value) return;
  const fields = [...parameters].filter(([name]) => name.startsWith("show."));
  const shown = stimulusFrom(Object.fromEntries(fields.map(([name, value]) => [name.slice("show.".length), value])));
  const b = parse(parameters.get("b"));
  const [otherMouse, otherModel] = parse(parameters.get("other")) ?? [];
  try {
    for (const one of [shown, b?.stimulus]) if (one?.kind === "picture") await restorePicture(one, screen.value);
  } catch (error) {
    report(error);
    return;
  }
  const { neurons, detail } = chosen.value;
  const names = [...detail.behavior, ...detail.pupil_center].map(({ name }) => name);
  const set = names
    .filter((name) => parameters.has(name) && Number.isFinite(Number(parameters.get(name))))
    .map((name) => [name, Number(parameters.get(name))]);
  batch(() => {
    if (shown) stimulus.value = shown;
    state.value = parameters.get("state") ?? "median";
    if (set.length || Object.keys(given.value).length) given.value = Object.fromEntries(set);
    if (b && stimulusFrom(b.stimulus)) {
      pinned.value = { stimulus: stimulusFrom(b.stimulus), state: String(b.state), given: b.given ?? {} };
    }
    const ids = (parameters.get("neurons") ?? "").split(" ").filter(Boolean).map(Number);
    selected.value = ids.map((id) => neurons.position.get(id)).filter((i) => i !== undefined);
    coloring.value = parameters.get("color") ?? "response";
  });
  if (otherMouse) await compareWith(otherMouse, otherModel);
}

/** A stimulus from text, with the usual value for what is missing or is not a number; null if it is of no known kind. */
function stimulusFrom(fields = {}) {
  const only = fields.channel !== undefined && Number.isInteger(Number(fields.channel)) ? { channel: Number(fields.channel) } : {};
  if (fields.kind === "picture") {
    return fields.png
      ? { kind: "picture", name: fields.name ?? "picture", png: fields.png, note: fields.note ?? "", ...only }
      : null;
  }
  const usual = FIRST[fields.kind];
  if (!usual) return null;
  const read = ([name, value]) => {
    const number = Number(fields[name]);
    return [name, name === "kind" || fields[name] === undefined || !Number.isFinite(number) ? value : number];
  };
  return { ...Object.fromEntries(Object.entries(usual).map(read)), ...only };
}

function parse(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

/** Keeps the URL up to date, and follows it when it is changed by hand; called once, after the first is opened. */
export function followAddress() {
  let timer = 0;
  let written = location.hash.slice(1);
  effect(() => {
    const text = addressOf().toString();
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (!text || text === written) return;
      written = text;
      history.replaceState(null, "", `${location.pathname}${location.search}#${text}`);
    }, PAUSE);
  });
  addEventListener("hashchange", () => {
    if (location.hash.slice(1) !== written) void openAddress(location.hash.slice(1));
  });
}
