/** What the mouse sees: the screen, and how to change what is on it. */

import { html, useEffect, useLayoutEffect, useRef, useSignal } from "../library.js";
import { drawGrey, drawSigned, drawSpotlight, largestOf } from "../drawing/planes.js";
import { attention, attentionProblem, fields, gradient, overlay } from "../state/experiments.js";
import { chosen, screen } from "../state/mice.js";
import { question, stimulus } from "../state/question.js";
import { selected } from "../state/selection.js";
import { fieldOf } from "../statistics/receptive_field.js";
import { UnreadablePicture, readPicture } from "../stimuli/pictures.js";
import { FIRST } from "../stimuli/stimulus.js";
import { Choice, Slider } from "./controls.js";

const KINDS = [
  { value: "example", words: "Example" },
  { value: "leaves", words: "Leaves" },
  { value: "grating", words: "Grating" },
  { value: "gabor", words: "Gabor" },
  { value: "noise", words: "Noise" },
  { value: "picture", words: "Yours…", title: "Choose a picture file" },
];

const MARKED = 1000; // neurons, of which it is marked where they look

/** Shows another pattern, in the channels that are chosen. */
function show(pattern) {
  const { channel } = stimulus.peek();
  stimulus.value = channel === undefined ? pattern : { ...pattern, channel };
}

export function StimulusPanel() {
  const problem = useSignal("");
  const isOver = useSignal(false);
  const file = useRef(null);
  const noPictures = chosen.value.detail.standardized_inputs;
  const take = async (blob, name) => {
    problem.value = "";
    try {
      if (noPictures) throw new UnreadablePicture("This mouse takes no pictures. Choose a pattern instead.");
      show(await readPicture(blob, name, screen.peek()));
    } catch (error) {
      if (!(error instanceof UnreadablePicture)) console.error(error);
      problem.value = error.message;
    }
  };
  useEffect(() => {
    const paste = (event) => {
      const pasted = [...(event.clipboardData?.files ?? [])][0];
      if (pasted) void take(pasted, pasted.name || "the pasted picture");
    };
    addEventListener("paste", paste);
    return () => removeEventListener("paste", paste);
  });
  const drop = (event) => {
    event.preventDefault();
    isOver.value = false;
    const [dropped] = event.dataTransfer.files;
    if (dropped) void take(dropped, dropped.name);
    else problem.value = "Nothing to show was dropped. Drop a picture file from your computer.";
  };
  const choose = async (kind) => {
    problem.value = "";
    if (kind === "picture") file.current.click();
    else if (kind === "example") await takeExample(take);
    else show(FIRST[kind]);
  };
  const shown = stimulus.value;
  const kind = shown.kind === "picture" ? (shown.name === EXAMPLE ? "example" : "picture") : shown.kind;
  const { H, W } = screen.value;
  return html`<section
    class="panel stimulus ${isOver.value ? "over" : ""}"
    data-tour="stimulus"
    aria-labelledby="sees"
    onDragOver=${(event) => {
      event.preventDefault();
      isOver.value = true;
    }}
    onDragLeave=${() => (isOver.value = false)}
    onDrop=${drop}
  >
    <h2 id="sees">What the mouse sees</h2>
    <${Choice}
      label="Image"
      value=${kind}
      options=${KINDS.map((one) => ({ ...one, disabled: noPictures && ["example", "picture"].includes(one.value) }))}
      onChoose=${choose}
    />
    <${Screen} />
    <input
      ref=${file}
      class="hidden"
      type="file"
      accept="image/*"
      aria-label="Picture file"
      onChange=${({ target }) => {
        if (target.files[0]) void take(target.files[0], target.files[0].name);
        target.value = "";
      }}
    />
    ${problem.value && html`<p class="remark bad" role="alert">${problem.value}</p>`}
    <${Parameters} />
    <p class="hint">
      ${shown.kind === "picture" ? `${shown.name}${shown.note ? `: ${shown.note}` : ""}. ` : ""}${
        noPictures ? "" : "Drop or paste a picture anywhere here. "
      }
      The mouse's screen has ${W} × ${H} pixels.
    </p>
  </section>`;
}

const EXAMPLE = "leaves.png";

async function takeExample(take) {
  const reply = await fetch(new URL(`explorer/examples/${EXAMPLE}`, document.baseURI)).catch(() => null);
  if (reply?.ok) await take(await reply.blob(), EXAMPLE);
}

/** The screen with the layer that is chosen over it; one for each channel of the image. */
function Screen() {
  const { names } = screen.value;
  const kind = overlay.value;
  const over = layerOf(kind, selected.value[0]);
  const { crop } = chosen.value.detail;
  const seen = crop && crop.fraction < 1 ? inside(crop.fraction) : null;
  return html`<div class="screens">
      ${names.map((name, c) => html`<${Channel} c=${c} name=${names.length > 1 ? name.replaceAll("_", " ") : ""} over=${over} kind=${kind} seen=${seen} />`)}
    </div>
    ${names.length > 1 && html`<${ShownIn} names=${names} />`}
    ${seen && html`<p class="hint">Dashed: the ${Math.round(100 * crop.fraction)} % of the width and height that the twin's core sees${crop.follows_gaze ? ", for a gaze straight ahead; it moves with the eye" : ""}.</p>`}
    ${chosen.value.neurons.readout && selected.value.length > 0 && html`<p class="hint">${selected.value.length > 1 ? "Dots: where these neurons' readouts look" : "Cross: where this neuron's readout looks"}, at the median gaze.</p>`}
    <${Layers} />`;
}

function Channel({ c, name, over, kind, seen }) {
  const image = useRef(null);
  const layer = useRef(null);
  const { H, W, standardized } = screen.value;
  const { pixels } = question.value;
  useLayoutEffect(() => {
    const [low, high] = standardized ? [-2, 2] : [0, 255];
    drawGrey(image.current, pixels.subarray(c * H * W, (c + 1) * H * W), H, W, low, high);
  }, [pixels, H, W]);
  useLayoutEffect(() => {
    if (!over) return;
    const [h, w] = over.shape;
    const { data } = over;
    const own = data.length > h * w ? data.subarray(c * h * w, (c + 1) * h * w) : data;
    if (kind === "attention") drawSpotlight(layer.current, own, h, w);
    else drawSigned(layer.current, own, h, w, kind === "field" ? 1.5 : 0.7, largestOf(data));
  }, [over?.data]);
  return html`<div class="screen">
    <canvas ref=${image} class="image" id=${c ? `screen-${c}` : "screen"} role="img" aria-label="The image on the mouse's screen${name && `, ${name}`}"></canvas>
    <canvas
      ref=${layer}
      class="layer ${over ? "" : "hidden"}"
      style=${kind === "attention" && seen ? seen : inside(1)}
      role="img"
      aria-label=${{ gradient: "What would make the selected neurons respond more", field: "Receptive field", attention: "Attention" }[kind] ?? "No layer"}
    ></canvas>
    ${seen && html`<div class="crop" style=${seen}></div>`}
    <${Looks} H=${H} W=${W} />
    ${name && html`<span class="channel">${name}</span>`}
  </div>`;
}

/** Where the readouts of the selected neurons look: a cross for one, dots for many. */
function Looks({ H, W }) {
  const { neurons } = chosen.value;
  const at = selected.value.slice(0, MARKED).filter((i) => i < neurons.ids.length);
  if (!neurons.readout || at.length === 0) return null;
  const places = at.map((i) => [neurons.readout.x[i] + 0.5, neurons.readout.y[i] + 0.5]);
  const arm = H / 24;
  const path = places.map(([x, y]) =>
    at.length > 1 ? `M${x} ${y}h0` : `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}`,
  );
  const [edge, dot] = at.length > 1 ? [5, 3] : [4, 1.8];
  const label = at.length > 1 ? "Where the selected neurons look" : "Where the selected neuron looks";
  return html`<svg class="looks" viewBox="0 0 ${W} ${H}" preserveAspectRatio="none" role="img" aria-label=${label} data-looks=${JSON.stringify(places[0])}>
    <path class="edge" stroke-width=${edge} d=${path.join("")} />
    <path class="dot" stroke-width=${dot} d=${path.join("")} />
  </svg>`;
}

/** Which channels show the image; the others are a grey screen. */
function ShownIn({ names }) {
  const { channel, ...rest } = stimulus.value;
  const options = [
    { value: "all", words: names.length === 2 ? "both" : "all" },
    ...names.map((name, c) => ({ value: String(c), words: `${name.replaceAll("_", " ")} only` })),
  ];
  const choose = (value) => (stimulus.value = value === "all" ? rest : { ...rest, channel: Number(value) });
  return html`<${Choice} label="Channels that show the image" value=${String(channel ?? "all")} options=${options} onChoose=${choose} />`;
}

/** The place of a share of the screen's width and height around its centre. */
function inside(share) {
  const size = `${100 * share}%`;
  const start = `${50 * (1 - share)}%`;
  return { left: start, top: start, width: size, height: size };
}

let lastField = { key: "", value: null };

function layerOf(kind, position) {
  if (kind === "attention") return attention.value;
  if (position === undefined) return null;
  if (kind === "gradient" && gradient.value) return { data: gradient.value.data, shape: gradient.value.shape.slice(1) };
  if (kind === "field" && fields.value) {
    const { sums, row } = fields.value;
    const at = row.get(chosen.value.neurons.ids[position]) ?? -1;
    const key = `${at} ${sums.images}`;
    if (at >= 0 && lastField.key !== key) lastField = { key, value: { data: fieldOf(sums, [at]), shape: sums.grid } };
    return at >= 0 ? lastField.value : null;
  }
  return null;
}

function Layers() {
  const one = selected.value.length > 0;
  const options = [
    { value: "none", words: "Image" },
    {
      value: "gradient",
      words: "Gradient",
      disabled: !one,
      title: "What would make the selected neurons respond more",
    },
    {
      value: "field",
      words: "Field",
      disabled: !one || !fields.value,
      title: "Receptive field of the selected neuron, once it is mapped below",
    },
    {
      value: "attention",
      words: "Attention",
      disabled: attentionProblem.value !== "",
      title: "Where the twin's core looks",
    },
  ];
  const words =
    {
      gradient: "Orange: brighter pixels here would make the selected neurons respond more; blue: darker ones.",
      field: "Orange: light here drives the neuron; blue: darkness does.",
      attention: "Where the twin's core looks, by attention rollout, averaged over its members.",
    }[overlay.value] ?? attentionProblem.value;
  return html`<${Choice} label="Layer over the image" value=${overlay.value} options=${options} onChoose=${(value) => (overlay.value = value)} />
    ${words && html`<p class="hint">${words}</p>`}`;
}

const SLIDERS = {
  orientation: { label: "Orientation", unit: "°", min: 0, max: 175, step: 5 },
  frequency: { label: "Frequency", unit: "cycles/width", min: 1, max: 32, step: 0.5 },
  contrast: { label: "Contrast", min: 0, max: 1, step: 0.05 },
  size: { label: "Size", unit: "of the width", min: 0.05, max: 1, step: 0.05 },
  phase: { label: "Phase", unit: "°", min: 0, max: 345, step: 15 },
  x: { label: "Centre, across", min: 0, max: 1, step: 0.02 },
  y: { label: "Centre, down", min: 0, max: 1, step: 0.02 },
  square: { label: "Squares", unit: "px", min: 1, max: 32, step: 1 },
};

function Parameters() {
  const shown = stimulus.value;
  if (shown.kind === "picture") return null;
  const set = (name) => (value) => (stimulus.value = { ...stimulus.peek(), [name]: value });
  const names = Object.keys(SLIDERS).filter((name) => name in shown);
  const [main, more] = [
    names.filter((name) => !["phase", "x", "y"].includes(name)),
    names.filter((name) => ["phase", "x", "y"].includes(name)),
  ];
  const slider = (name) => html`<${Slider} ...${SLIDERS[name]} value=${shown[name]} onInput=${set(name)} />`;
  return html`<div class="sliders">
    ${main.map(slider)}
    ${"seed" in shown && html`<button class="run" onClick=${() => set("seed")(shown.seed + 1)}>Another one</button>`}
    ${more.length > 0 && html`<details><summary>Phase and position</summary>${more.map(slider)}</details>`}
  </div>`;
}
