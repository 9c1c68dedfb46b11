/** What all neurons do together: the distribution of responses, and the most active neurons. */

import { html } from "../library.js";
import { Chart, ChartLegend } from "../drawing/chart.js";
import { pinnedAnswer, pinnedWords } from "../state/comparison.js";
import { currentAnswer, difference } from "../state/coloring.js";
import { chosen } from "../state/mice.js";
import { selected } from "../state/selection.js";
import { brief, correlation, extent, histogram, largest, mean } from "../statistics/summaries.js";

const BINS = 40;
const TOP = 8;

export function PopulationPanel() {
  const now = currentAnswer.value;
  if (!now) return null;
  return html`<section class="panel population" aria-labelledby="population">
    <h2 id="population">All neurons</h2>
    <div class="split">
      <${Distribution} now=${now} b=${difference.value ? pinnedAnswer.value : null} />
      <${MostActive} now=${now} />
    </div>
  </section>`;
}

function Distribution({ now, b }) {
  const all = b ? [now.responses, b.responses] : [now.responses];
  const [low, high] = extent(all.map(extent).flat());
  const middles = Array.from({ length: BINS }, (_, k) => low + ((k + 0.5) * (high - low)) / BINS);
  const marks = all.map((responses, series) => ({
    xs: middles,
    ys: histogram(responses, low, high, BINS),
    kind: series ? "thin" : "bars",
    series,
  }));
  return html`<figure>
    ${b && html`<${ChartLegend} names=${["A, shown now", `B, ${pinnedWords.value}`]} />`}
    <${Chart}
      title=${`Distribution of the responses of ${now.responses.length} neurons: mean ${brief(mean(now.responses))}`}
      x=${{ label: "response [std of the neuron]" }}
      y=${{ label: "neurons", low: 0 }}
      marks=${marks}
      at=${mean(now.responses)}
      width=${460}
      height=${230}
    />
    <figcaption>
      mean ${brief(mean(now.responses))}${
        b &&
        html`; B ${brief(mean(b.responses))}; correlation of A and B ${brief(correlation(now.responses, b.responses))}`
      }
    </figcaption>
  </figure>`;
}

function MostActive({ now }) {
  const { ids } = chosen.value.neurons;
  const top = largest(now.responses, TOP);
  const most = now.responses[top[0]];
  return html`<div class="most">
    <table>
      <caption>Most active neurons</caption>
      <thead><tr><th scope="col">neuron</th><th scope="col">response</th></tr></thead>
      <tbody>
        ${top.map(
          (i) => html`<tr key=${i} class=${selected.value.includes(i) ? "chosen" : ""}>
          <td><button class="link" onClick=${() => (selected.value = [i])}>${ids[i]}</button></td>
          <td><span class="amount" style=${{ width: `${Math.max(0, (60 * now.responses[i]) / most)}%` }}></span>
            <span class="number" data-response=${now.responses[i]}>${now.responses[i].toFixed(2)}${now.spread ? html`<small> ± ${now.spread[i].toFixed(2)}</small>` : ""}</span></td>
        </tr>`,
        )}
      </tbody>
    </table>
    ${now.spread && html`<p class="hint">± is the std over the ${now.head.model.members} members of the ensemble.</p>`}
  </div>`;
}
