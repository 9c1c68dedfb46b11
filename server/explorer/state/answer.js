/** The answer to the page's question, asked again whenever the question changes. */

import { Unreachable } from "../api/server.js";
import { effect, signal } from "../library.js";
import { allIsWell, report, returns, twin } from "./connection.js";
import { Latest } from "./latest.js";
import { checkHash, chosen, loadMice } from "./mice.js";
import { question } from "./question.js";

/**
 * @typedef {object} Answer
 * @property {import("../api/twin.js").Question} question
 * @property {import("../api/twin.js").Head} head
 * @property {Float32Array} responses (n,) standardised: in units of each neuron's response std
 * @property {Float32Array | null} spread (n,) std over the ensemble's members
 * @property {number} milliseconds from the question to the answer
 */

/** @type {import("../library.js").Signal<Answer | null>} */
export const answer = signal(null);

/** Whether a newer question is on its way. */
export const waiting = signal(false);

/** How long an answer usually takes [ms]: follows faster ones at once, slower ones slowly. */
export const pace = signal(Infinity);

/** Asks a question about one image. */
export async function ask(asked, about, cancelled) {
  const start = performance.now();
  const spread = about.detail.members > 1;
  const { head, responses, spread: over } = await twin.predict(asked, { spread, signal: cancelled });
  return { question: asked, head, responses, spread: over, milliseconds: performance.now() - start };
}

const live = new Latest(
  (asked, cancelled) => ask(asked, chosen.peek(), cancelled),
  (got) => {
    waiting.value = question.peek() !== got.question;
    pace.value = Math.min(got.milliseconds, 1.5 * pace.peek());
    allIsWell();
    checkHash(got.head);
    if (got.question.mouse === chosen.peek()?.mouse && got.question.model === chosen.peek()?.model) answer.value = got;
  },
  (error) => {
    if (!(error instanceof Unreachable)) waiting.value = false; // it is asked again when the server is back
    report(error);
  },
);

/** Starts asking; called once. */
export function startAsking() {
  effect(() => {
    const { value } = question;
    if (!value) return;
    waiting.value = true;
    live.want(value);
  });
  let seen = 0;
  effect(() => {
    if (returns.value === seen) return;
    seen = returns.value;
    void loadMice(); // the mouse's new description changes the question, which is then asked again
  });
}
