/** What its cortex does: the map of all neurons. */

import { html, useEffect, useLayoutEffect, useRef, useSignal } from "../library.js";
import { SCALES } from "../drawing/colors.js";
import { CortexMap } from "../drawing/cortex_map.js";
import { waiting } from "../state/answer.js";
import { colors, currentAnswer, difference } from "../state/coloring.js";
import { fields, tuning } from "../state/experiments.js";
import { chosen } from "../state/mice.js";
import { coloring, column, lasso, readColumn, selected } from "../state/selection.js";
import { brief, grouped, roundStep } from "../statistics/summaries.js";

export function CortexPanel() {
  const { neurons } = chosen.value;
  return html`<section class="panel cortex" data-tour="cortex" aria-labelledby="cortex-does">
    <div class="bar">
      <h2 id="cortex-does">What its cortex does</h2>
      <${Coloring} />
    </div>
    <${CortexCanvas} />
    <${Legend} />
    <p class="hint">
      ${
        neurons.placed
          ? "Each disc is a neuron at its place in cortex, seen from above. "
          : "The positions of these neurons are not known: they stand side by side. "
      }
      Click one, or use the arrow keys. Scroll to zoom.
    </p>
  </section>`;
}

function Coloring() {
  const { neurons } = chosen.value;
  const problem = useSignal("");
  const file = useRef(null);
  const options = [
    ["response", "response", true],
    ["difference", "difference to B", Boolean(difference.value)],
    ["orientation", "preferred orientation", Boolean(tuning.value)],
    ["readout_x", "where it looks, across", Boolean(neurons.readout)],
    ["readout_y", "where it looks, down", Boolean(neurons.readout)],
    ["field_x", "receptive field, across", Boolean(fields.value)],
    ["field_y", "receptive field, down", Boolean(fields.value)],
    ...Object.keys(neurons.scores).map((name) => [`score:${name}`, name.replaceAll("_", " "), true]),
    ["depth", "depth", neurons.placed],
    ...(column.value ? [["column", column.value.name, true]] : []),
    ["load", "a column of yours (CSV)…", true],
  ];
  const read = async ([chosenFile]) => {
    problem.value = "";
    if (!chosenFile) return;
    try {
      column.value = readColumn(await chosenFile.text(), neurons.position);
      coloring.value = "column";
    } catch (error) {
      problem.value = error.message;
    }
  };
  return html`<div class="coloring">
    <label class="field"><span>Colour</span>
      <select value=${coloring.value} onChange=${({ target }) => {
        if (target.value !== "load") coloring.value = target.value;
        else {
          target.value = coloring.value;
          file.current.click();
        }
      }}>
        ${options.map(([value, words, enabled]) => html`<option value=${value} disabled=${!enabled} selected=${value === coloring.value}>${words}</option>`)}
      </select>
    </label>
    <button class="quiet" aria-pressed=${lasso.value ? "true" : "false"} onClick=${() => (lasso.value = !lasso.value)} title="Draw around neurons to select them; or hold Shift">Lasso</button>
    <input ref=${file} class="hidden" type="file" accept=".csv,.tsv,.txt,text/*" aria-label="Table of neuron ids and values" onChange=${({
      target,
    }) => {
      void read(target.files);
      target.value = "";
    }} />
    ${problem.value && html`<p class="remark bad" role="alert">${problem.value}</p>`}
  </div>`;
}

function CortexCanvas() {
  const canvas = useRef(null);
  const map = useRef(null);
  const tip = useSignal(null);
  const scale = useSignal({ px: 0, words: "" });
  const now = colors.value;
  const { neurons } = chosen.value;
  useLayoutEffect(() => {
    map.current = new CortexMap(canvas.current);
    const micrometresOf = () => {
      const per = map.current.micrometres;
      if (!Number.isFinite(per)) return { px: 0, words: "" };
      const length = roundStep(90 * per);
      return { px: length / per, words: `${length} µm` };
    };
    map.current.onView = () => {
      const next = micrometresOf();
      if (next.words !== scale.peek().words || Math.abs(next.px - scale.peek().px) > 0.5) scale.value = next;
    };
    const observer = new ResizeObserver(() => map.current.redraw());
    observer.observe(canvas.current);
    const wheel = (event) => {
      event.preventDefault();
      map.current.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY / 400));
    };
    canvas.current.addEventListener("wheel", wheel, { passive: false });
    const { current } = canvas;
    return () => {
      observer.disconnect();
      current.removeEventListener("wheel", wheel);
    };
  }, []);
  useLayoutEffect(() => {
    if (now) map.current.show(neurons, now.values, now.low, now.high, now.scale);
  }, [neurons, now]);
  useEffect(() => map.current.select(selected.value), [selected.value, neurons]);
  const drag = useDragging(map, tip);
  const [first] = selected.value;
  const described =
    first === undefined || !now
      ? `${grouped(neurons.ids.length)} neurons`
      : selected.value.length > 1
        ? `${grouped(selected.value.length)} neurons selected`
        : `Neuron ${neurons.ids[first]}: ${brief(now.values[first])}, ${now.label}`;
  return html`<div class="map ${lasso.value ? "lasso" : ""} ${waiting.value ? "waiting" : ""}">
    <canvas
      ref=${canvas}
      id="cortex"
      tabindex="0"
      role="application"
      aria-label="Map of cortex"
      aria-describedby="cortex-described"
      data-answer=${currentAnswer.value?.head.request_id ?? ""}
      ...${drag}
      onKeyDown=${(event) => moveSelection(event, map.current)}
    ></canvas>
    <div class="above">
      <p class="read" id="cortex-described" aria-live="polite">${described}</p>
      ${first !== undefined && html`<button class="study" onClick=${() => showNeurons()}>Study ${selected.value.length > 1 ? "them" : "it"} ↓</button>`}
    </div>
    ${scale.value.words && html`<div class="scalebar" aria-hidden="true"><i style=${{ width: `${scale.value.px}px` }}></i>${scale.value.words}</div>`}
    ${
      tip.value &&
      html`<div class="tip" style=${{ left: `${tip.value.x}px`, top: `${tip.value.y}px` }}>
      <strong>neuron ${neurons.ids[tip.value.neuron]}</strong> ${now && brief(now.values[tip.value.neuron])}
    </div>`
    }
  </div>`;
}

function showNeurons() {
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.getElementById("neuron").scrollIntoView({ block: "start", behavior: isCalm ? "auto" : "smooth" });
}

/** Pointers on the map: a click selects, dragging draws a lasso or moves the view. */
function useDragging(map, tip) {
  const start = useRef(null);
  const place = (event) => [event.offsetX, event.offsetY];
  return {
    onPointerDown: (event) => {
      event.target.setPointerCapture(event.pointerId);
      start.current = {
        from: place(event),
        path: [place(event)],
        pan: map.current.pan,
        isLasso: lasso.peek() || event.shiftKey,
      };
    },
    onPointerMove: (event) => {
      const [x, y] = place(event);
      const { current } = start;
      if (!current) {
        const near = map.current.nearest(x, y);
        if (near !== map.current.hovered) {
          map.current.hovered = near;
          map.current.redraw();
          tip.value = near < 0 ? null : { neuron: near, x: map.current.at(near)[0], y: map.current.at(near)[1] };
        }
        return;
      }
      current.path.push([x, y]);
      if (current.isLasso) map.current.outline(current.path);
      else if (map.current.zoom > 1) {
        map.current.pan = [current.pan[0] + x - current.from[0], current.pan[1] + y - current.from[1]];
        map.current.redraw();
      }
    },
    onPointerUp: (event) => {
      const { current } = start;
      start.current = null;
      if (!current) return;
      const [x, y] = place(event);
      const moved = Math.hypot(x - current.from[0], y - current.from[1]) > 4 || current.path.length > 12;
      if (current.isLasso && moved) selected.value = map.current.inside(current.path);
      else if (!moved) {
        const near = map.current.nearest(x, y, 16);
        if (near < 0) selected.value = [];
        else if (event.ctrlKey || event.metaKey) selected.value = toggled(selected.peek(), near);
        else selected.value = [near];
      }
      map.current.outline([]);
    },
    onPointerLeave: () => {
      map.current.hovered = -1;
      tip.value = null;
      map.current.redraw();
    },
  };
}

function toggled(list, one) {
  return list.includes(one) ? list.filter((other) => other !== one) : [...list, one];
}

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The arrow keys go to the nearest neuron in their direction; + and - zoom. */
function moveSelection(event, map) {
  const { ids } = chosen.peek().neurons;
  const [first] = selected.peek();
  if (event.key === "Escape") selected.value = [];
  if (["+", "-", "="].includes(event.key)) {
    map.zoomAt(event.target.clientWidth / 2, event.target.clientHeight / 2, event.key === "-" ? 0.8 : 1.25);
  }
  const direction = DIRECTIONS[event.key];
  if (!direction) return;
  event.preventDefault();
  if (first === undefined) {
    selected.value = [Math.max(map.nearest(event.target.clientWidth / 2, event.target.clientHeight / 2, Infinity), 0)];
    return;
  }
  const [x, y] = map.at(first);
  let best = -1;
  let least = Infinity;
  for (let i = 0; i < ids.length; i += 1) {
    const [dx, dy] = [map.at(i)[0] - x, map.at(i)[1] - y];
    const along = dx * direction[0] + dy * direction[1];
    const cost = along + 2 * Math.abs(dx * direction[1] - dy * direction[0]);
    if (i !== first && along > 0.5 && cost < least) [best, least] = [i, cost];
  }
  if (best >= 0) selected.value = [best];
}

/** The scale of colours. */
function Legend() {
  const canvas = useRef(null);
  const now = colors.value;
  useLayoutEffect(() => {
    if (!now) return;
    const context = canvas.current.getContext("2d");
    SCALES[now.scale].forEach((color, k) => {
      context.fillStyle = color;
      context.fillRect(k, 0, 1, 1);
    });
  }, [now?.scale]);
  if (!now) return null;
  return html`<div class="legend">
    <span>${brief(now.low)}</span><canvas ref=${canvas} width="64" height="1" aria-hidden="true"></canvas><span>${brief(now.high)}</span>
    <span class="label">${now.label}</span>
  </div>`;
}
