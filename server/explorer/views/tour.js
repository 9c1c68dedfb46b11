/** A tour of three steps. */

import { html, signal, useEffect, useRef } from "../library.js";

const STEPS = [
  {
    at: "stimulus",
    title: "Show it something",
    words:
      "Choose what is on the mouse's screen: drop a picture, or move a slider of a grating. The answer follows at once.",
  },
  {
    at: "behavior",
    title: "Let it run",
    words:
      "The same image drives cortex differently when the mouse runs or its pupil widens. Set a state, or one variable; the bars show what was recorded.",
  },
  {
    at: "cortex",
    title: "Ask one neuron",
    words: "Each disc is a neuron. Click one to see what it wants, where it looks, and how sure the twin is.",
  },
];

/** The current step, or -1. */
const step = signal(-1);

export function startTour() {
  step.value = 0;
}

export function Tour() {
  const box = useRef(null);
  const at = STEPS[step.value];
  useEffect(() => {
    if (!at) return undefined;
    const target = document.querySelector(`[data-tour="${at.at}"]`);
    target?.classList.add("toured");
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    target?.scrollIntoView({ block: "center", behavior: isCalm ? "auto" : "smooth" });
    box.current.focus();
    return () => target?.classList.remove("toured");
  }, [step.value]);
  if (!at) return null;
  const last = step.value === STEPS.length - 1;
  return html`<div
    ref=${box}
    class="tour"
    role="dialog"
    aria-labelledby="tour-title"
    tabindex="-1"
    onKeyDown=${({ key }) => key === "Escape" && (step.value = -1)}
  >
    <p class="hint">${step.value + 1} of ${STEPS.length}</p>
    <h2 id="tour-title">${at.title}</h2>
    <p>${at.words}</p>
    <div class="row">
      ${step.value > 0 && html`<button class="quiet" onClick=${() => (step.value -= 1)}>Back</button>`}
      <button class="run primary" onClick=${() => (step.value = last ? -1 : step.value + 1)}>${last ? "Done" : "Next"}</button>
      ${!last && html`<button class="quiet" onClick=${() => (step.value = -1)}>Leave the tour</button>`}
    </div>
  </div>`;
}
