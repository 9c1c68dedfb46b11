/** Starts the explorer. */

import { html, render } from "./library.js";
import { followAddress, openAddress } from "./state/address.js";
import { startAsking } from "./state/answer.js";
import { startComparing } from "./state/comparison.js";
import { startExperiments } from "./state/experiments.js";
import { App } from "./views/app.js";

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
startAsking();
startComparing();
startExperiments();
await openAddress(location.hash.slice(1));
followAddress();
