/** The whole page. */

import { html } from "../library.js";
import { openAddress } from "../state/address.js";
import { chosen, mice } from "../state/mice.js";
import { BehaviorPanel } from "./behavior_panel.js";
import { ComparePanel } from "./compare_panel.js";
import { CortexPanel } from "./cortex_panel.js";
import { Header } from "./header.js";
import { KeyDialog } from "./key_dialog.js";
import { NeuronPanel } from "./neuron_panel.js";
import { Notices } from "./notices.js";
import { PopulationPanel } from "./population_panel.js";
import { StimulusPanel } from "./stimulus_panel.js";
import { TakePanel } from "./take_panel.js";
import { Tour } from "./tour.js";

export function App() {
  return html`<${Header} />
    <main id="main">
      <${Notices} />
      ${chosen.value ? html`<${Twin} />` : html`<${Empty} />`}
    </main>
    <footer class="foot">
      <p>
        A digital twin is a model that was trained on the recorded responses of one animal. What is shown here is what the
        model predicts, not what an animal did.
      </p>
      <p><a href="docs">API</a> <a href="docs.json">OpenAPI document</a> <a href="metrics">Metrics</a></p>
    </footer>
    <${KeyDialog} onKey=${() => openAddress(location.hash.slice(1))} />
    <${Tour} />`;
}

function Twin() {
  return html`<div class="columns">
      <div class="inputs">
        <${StimulusPanel} />
        <${BehaviorPanel} />
      </div>
      <div class="outputs">
        <${CortexPanel} />
        <${PopulationPanel} />
      </div>
    </div>
    <${NeuronPanel} />
    <div class="pair">
      <${ComparePanel} />
      <${TakePanel} />
    </div>`;
}

function Empty() {
  if (mice.value?.length === 0) {
    return html`<section class="panel empty">
      <h2>This server serves no mouse yet</h2>
      <p>Put a bundle into the folder that <code>V1T_BUNDLES</code> names, and start the server again.</p>
    </section>`;
  }
  return html`<section class="panel empty" aria-busy="true"><h2>Waiting for the server</h2></section>`;
}
