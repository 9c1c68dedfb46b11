/** A against B: another image or state; another mouse or model. */

import { html, useLayoutEffect, useRef } from "../library.js";
import { Chart } from "../drawing/chart.js";
import { CortexMap } from "../drawing/cortex_map.js";
import { drawGrey } from "../drawing/planes.js";
import { colors, currentAnswer, difference } from "../state/coloring.js";
import {
  compareWith,
  other,
  otherAnswer,
  pin,
  pinned,
  pinnedAnswer,
  pinnedPlane,
  pinnedWords,
} from "../state/comparison.js";
import { chosen, mice, screen } from "../state/mice.js";
import { coloring } from "../state/selection.js";
import { brief, correlation, largest, mean } from "../statistics/summaries.js";
import { MouseChoice } from "./header.js";

export function ComparePanel() {
  return html`<section class="panel compare" data-tour="compare" aria-labelledby="compare">
    <h2 id="compare">Compare</h2>
    <div class="row">
      <button class="run" id="pin" onClick=${() => {
        pin();
        coloring.value = "difference";
      }}>${pinned.value ? "Make what is shown now B" : "Keep what is shown now as B"}</button>
      ${
        pinned.value &&
        html`<button class="quiet" onClick=${() => {
          pinned.value = null;
          if (coloring.peek() === "difference") coloring.value = "response";
        }}>Forget B</button>`
      }
    </div>
    ${
      pinned.value
        ? html`<${Pinned} />`
        : html`<p class="hint">Then change the image or the state: the map shows how each neuron's response differs from B.</p>`
    }
    ${(mice.value?.length ?? 0) > 1 && html`<${MouseChoice} label="Show the same to" value=${other.value} none="no other mouse" onChoose=${compareWith} />`}
    ${other.value && html`<${Other} />`}
  </section>`;
}

function Pinned() {
  const canvas = useRef(null);
  const { H, W, standardized } = screen.value;
  const shown = pinnedPlane.value;
  useLayoutEffect(() => drawGrey(canvas.current, shown, H, W, ...(standardized ? [-2, 2] : [0, 255])), [shown, H, W]);
  const change = difference.value;
  const { ids } = chosen.value.neurons;
  const up = change && largest(change, 1)[0];
  const down =
    change &&
    largest(
      change.map((value) => -value),
      1,
    )[0];
  return html`<div class="pinned">
    <canvas ref=${canvas} role="img" aria-label="Image B"></canvas>
    <p>B: ${pinnedWords.value}.${
      change &&
      html` Now minus B: mean <strong data-mean-difference=${mean(change)}>${brief(mean(change))}</strong>;
        most up neuron ${ids[up]} (${brief(change[up])}), most down neuron ${ids[down]} (${brief(change[down])});
        correlation of the two <strong>${brief(correlation(currentAnswer.value.responses, pinnedAnswer.value.responses))}</strong>.`
    }
    </p>
  </div>`;
}

function Other() {
  const canvas = useRef(null);
  const map = useRef(null);
  const { neurons, detail } = other.value;
  const got = otherAnswer.value;
  const shown = got && got.responses.length === neurons.ids.length ? got.responses : null;
  const isSame = colors.value?.scale === "response";
  const [low, high] = isSame ? [colors.value.low, colors.value.high] : [0, 2];
  useLayoutEffect(() => {
    map.current ??= new CortexMap(canvas.current);
    if (shown) map.current.show(neurons, shown, low, high, "response");
  }, [neurons, shown, low, high]);
  const colorWords = isSame ? "Same colours as above." : `Colours from ${brief(low)} to ${brief(high)} std.`;
  const mine = currentAnswer.value;
  const same =
    mine && shown && chosen.value.neurons.ids.join() === neurons.ids.join() && other.value.mouse === chosen.value.mouse;
  return html`<div class="other">
    <canvas ref=${canvas} class="small-map" role="img" aria-label="Map of cortex of the other mouse"></canvas>
    ${
      shown &&
      mine &&
      html`<p>
        ${detail.simulated ? "Simulated mouse" : "Mouse"} <strong>${detail.mouse}</strong>, model ${detail.model.name}:
        ${" "}mean response <strong>${brief(mean(shown))}</strong>, against ${brief(mean(mine.responses))} of
        ${" "}${chosen.value.mouse}. ${colorWords}
      </p>`
    }
    ${
      same &&
      html`<${Chart}
      title="Responses of the same neurons in the two models"
      x=${{ label: `${chosen.value.model} [std]` }}
      y=${{ label: `${other.value.model} [std]` }}
      marks=${[{ xs: mine.responses, ys: shown, kind: "points" }]}
    />`
    }
  </div>`;
}
