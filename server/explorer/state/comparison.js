/** What the answer is compared with: B, an image and state that were put aside; or another mouse or model. */

import { computed, effect, signal } from "../library.js";
import { wordsFor } from "../stimuli/stimulus.js";
import { levelsOf } from "../stimuli/pictures.js";
import { planeOf } from "../stimuli/stimulus.js";
import { ask } from "./answer.js";
import { report } from "./connection.js";
import { Latest } from "./latest.js";
import { chosen, describe, screen } from "./mice.js";
import { given, question, questionAbout, state, stimulus } from "./question.js";

/**
 * B: the stimulus, state and behaviour that the current ones are compared with.
 * @type {import("../library.js").Signal<{ stimulus: any, state: string, given: Record<string, number> } | null>}
 */
export const pinned = signal(null);

/** The answer to B, by the chosen mouse. @type {import("../library.js").Signal<import("./answer.js").Answer | null>} */
export const pinnedAnswer = signal(null);

/** Another mouse or model, shown the same. @type {import("../library.js").Signal<any>} */
export const other = signal(null);

/** @type {import("../library.js").Signal<import("./answer.js").Answer | null>} */
export const otherAnswer = signal(null);

/** What is shown now becomes B. */
export function pin() {
  pinned.value = { stimulus: stimulus.value, state: state.value, given: given.value };
}

export const pinnedPlane = computed(() => {
  if (!pinned.value || !screen.value) return null;
  const shown = pinned.value.stimulus;
  return planeOf(shown, screen.value, shown.kind === "picture" ? levelsOf(shown.png, screen.value) : null);
});

export const pinnedWords = computed(
  () => pinned.value && `${wordsFor(pinned.value.stimulus, screen.value?.names ?? [])} · ${pinned.value.state}`,
);

/** Chooses the other mouse, or none. */
export async function compareWith(mouse, model) {
  otherAnswer.value = null;
  other.value = null;
  if (!mouse) return;
  try {
    other.value = await describe(mouse, model);
  } catch (error) {
    report(error);
  }
}

const livePinned = new Latest(
  ([asked, about], cancelled) => ask(asked, about, cancelled),
  (got) => (pinnedAnswer.value = got),
  report,
);
const liveOther = new Latest(
  ([asked, about], cancelled) => ask(asked, about, cancelled),
  (got) => (otherAnswer.value = got),
  report,
);

/** Starts asking; called once. */
export function startComparing() {
  effect(() => {
    if (!pinned.value || !chosen.value || !pinnedPlane.value) {
      pinnedAnswer.value = null;
      return;
    }
    const { given: behavior, state: filledBy, stimulus: shown } = pinned.value;
    const asked = questionAbout(chosen.value, [pinnedPlane.value], behavior, filledBy, shown.channel);
    livePinned.want([asked, chosen.value]);
  });
  effect(() => {
    if (!other.value || !question.value) return;
    const { detail } = other.value;
    const shown = stimulus.value;
    const [C, H, W] = detail.image_shape;
    const itsScreen = { ...screen.value, C, H, W, standardized: detail.standardized_inputs };
    if (itsScreen.standardized !== screen.value.standardized) Object.assign(itsScreen, { middle: 0, amplitude: 2 });
    const itsPlane = planeOf(shown, itsScreen, shown.kind === "picture" ? levelsOf(shown.png, itsScreen) : null);
    liveOther.want([questionAbout(other.value, [itsPlane], given.value, state.value, shown.channel), other.value]);
  });
}
