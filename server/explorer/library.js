/** What the views are written with: Preact, signals, and `html` for markup without a build step. */

import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export { Fragment, render } from "./vendor/preact.js";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact-hooks.js";
export { batch, computed, effect, signal, untracked } from "./vendor/signals-core.js";
export { useComputed, useSignal, useSignalEffect } from "./vendor/signals.js";

export const html = htm.bind(h);
