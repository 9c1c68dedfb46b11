/** What is asked: the stimulus, the state, and the behaviour that the sliders set. */

import { computed, signal } from "../library.js";
import { levelsOf } from "../stimuli/pictures.js";
import { FIRST, imagesOf, planeOf, screenOf } from "../stimuli/stimulus.js";
import { chosen, screen } from "./mice.js";

/** @type {import("../library.js").Signal<import("../stimuli/stimulus.js").Stimulus>} */
export const stimulus = signal(FIRST.leaves);

/** What fills in the behaviour that is not given: median, mean, rest or running. */
export const state = signal("median");

/** Behaviour that the sliders set, by channel; what is missing is left to the state. */
export const given = signal(/** @type {Record<string, number>} */ ({}));

/** The channels that sliders can set: behaviour and gaze, if the mouse's twin uses them. */
export const channels = computed(() => (chosen.value ? channelsOf(chosen.value.detail) : []));

export function channelsOf(detail) {
  const uses = (input) => detail.uses.includes(input);
  return [...(uses("behavior") ? detail.behavior : []), ...(uses("pupil_center") ? detail.pupil_center : [])];
}

/** The states that this mouse has. */
export function statesOf(detail) {
  return ["median", "mean", ...detail.states.map(({ name }) => name)];
}

/** What a channel is if it is left to the state. */
export function valueIn(detail, channel, name) {
  const recorded = detail.states.find((one) => one.name === name);
  if (recorded) {
    const gaze = { pupil_center_x: 0, pupil_center_y: 1 }[channel.name];
    const k = detail.behavior.findIndex((one) => one.name === channel.name);
    const value = gaze === undefined ? recorded.behavior?.[k] : recorded.pupil_center?.[gaze];
    if (value !== undefined && value !== null) return value;
  }
  return (name === "mean" ? channel.mean : channel.median) ?? channel.mean ?? channel.median ?? 0;
}

/** One plane (H, W) of what is shown. */
export const plane = computed(() => {
  if (!screen.value) return null;
  const { value } = stimulus;
  return planeOf(value, screen.value, value.kind === "picture" ? levelsOf(value.png, screen.value) : null);
});

/** The question that the whole page is about. */
export const question = computed(() =>
  chosen.value && plane.value
    ? questionAbout(chosen.value, [plane.value], given.value, state.value, stimulus.value.channel)
    : null,
);

/**
 * @param {{ mouse: string, model: string, detail: any }} about
 * @param {(Float32Array | Uint8Array)[]} planes one image each
 * @param {Record<string, number | number[]>} behavior by channel
 * @param {string} filledBy a state
 * @param {number} [channel] the only one that shows the planes
 * @returns {import("../api/twin.js").Question}
 */
export function questionAbout(about, planes, behavior, filledBy, channel) {
  const { detail } = about;
  const known = channelsOf(detail).map(({ name }) => name);
  const set = Object.fromEntries(Object.entries(behavior).filter(([name]) => known.includes(name)));
  const { pupil_center_x: x, pupil_center_y: y, ...rest } = set;
  if (detail.standardized_inputs) {
    // Nothing is known that a state could fill in: zero is the mean of standardised inputs.
    if (detail.uses.includes("behavior")) detail.behavior.forEach(({ name }) => (rest[name] ??= 0));
  }
  return {
    mouse: about.mouse,
    model: about.model,
    state: statesOf(detail).includes(filledBy) ? filledBy : "median",
    behavior: rest,
    pupilCenter: gazeOf(detail, x, y, filledBy, planes.length),
    ...imagesOf(planes, screenFor(detail, planes[0]), channel),
  };
}

function screenFor(detail, plane) {
  const its = screenOf(detail);
  if (plane.length !== its.H * its.W) throw new Error("the plane does not have the mouse's size");
  return its;
}

/** Gaze as the contract wants it: both coordinates or none. */
function gazeOf(detail, x, y, filledBy, B) {
  const needed = detail.standardized_inputs && detail.uses.includes("pupil_center");
  if (x === undefined && y === undefined && !needed) return undefined;
  const [first, second] = detail.pupil_center;
  const [gx, gy] = [x ?? valueIn(detail, first, filledBy), y ?? valueIn(detail, second, filledBy)];
  if (!Array.isArray(gx) && !Array.isArray(gy)) return [gx, gy];
  const at = (value, b) => (Array.isArray(value) ? value[b] : value);
  return Array.from({ length: B }, (_, b) => [at(gx, b), at(gy, b)]);
}
