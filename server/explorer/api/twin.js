/** The routes that the explorer asks, as the OpenAPI document has them. */

import { decodeNpy, encodeNpy } from "./npy.js";
import { ServerError } from "./server.js";
import { readEvents } from "./stream.js";

/**
 * @typedef {object} Question what is asked about one or more images
 * @property {string} mouse
 * @property {string} model the bundle's name
 * @property {string} state what fills in behaviour that is left out
 * @property {Float32Array | Uint8Array} pixels (B, C, H, W)
 * @property {number[]} shape
 * @property {Record<string, number | number[]>} behavior only what is not left to the state
 * @property {number[] | number[][]} [pupilCenter] [x, y], one for all images or one each
 */

/**
 * @typedef {object} Head what every reply says
 * @property {{ name: string, version: string, hash: string, members: number, simulated: boolean, notice: string | null }} model
 * @property {string} mouse
 * @property {string} state
 * @property {string[]} assumed
 * @property {{ code: string, input: string | null, message: string }[]} notes
 */

const BOUNDARY = "image-of-the-explorer-7f3c";
const HEADERS = { Accept: "application/x-npy", "Content-Type": `multipart/form-data; boundary=${BOUNDARY}` };

/** Asks a {@link Server} in the terms of the contract. */
export class Twin {
  /** @param {import("./server.js").Server} server */
  constructor(server) {
    this.server = server;
  }

  async mice(signal) {
    return (await this.server.json("mice", { signal })).mice;
  }

  mouse(mouse, model, signal) {
    return this.server.json(`mice/${encodeURIComponent(mouse)}?model=${encodeURIComponent(model)}`, { signal });
  }

  neurons(mouse, model, signal) {
    return this.server.json(`mice/${encodeURIComponent(mouse)}/neurons?model=${encodeURIComponent(model)}`, { signal });
  }

  /**
   * Responses (B, n), and their spread over members if it is asked for.
   * @param {Question} question
   * @param {{ neuronIds?: number[], spread?: boolean, signal?: AbortSignal }} [options]
   * @returns {Promise<{ head: Head, responses: Float32Array, spread: Float32Array | null, n: number }>}
   */
  async predict(question, { neuronIds, spread = false, signal } = {}) {
    const form = formOf(question, { neuron_ids: neuronIds, spread: spread || undefined });
    const { head, arrays } = await this.#arrays("predict", form, signal);
    const [{ data, shape }] = arrays;
    const size = question.shape[0] * shape[shape.length - 1];
    return {
      head,
      responses: data.subarray(0, size),
      spread: spread ? data.subarray(size) : null,
      n: shape[shape.length - 1],
    };
  }

  /** Derivative of the mean response of some neurons with respect to the image (C, H, W). */
  async gradient(question, neuronIds, signal) {
    const weights = neuronIds.map(() => 1 / neuronIds.length);
    const { head, arrays } = await this.#arrays(
      "gradient",
      formOf(question, { neuron_ids: neuronIds, weights }),
      signal,
    );
    return { head, data: arrays[0].data, shape: arrays[0].shape.slice(1) };
  }

  /** Attention rollout, averaged over members: (h, w) in [0, 1]. */
  async attention(question, signal) {
    const { head, arrays } = await this.#arrays("attention", formOf(question, {}), signal);
    const [, members, h, w] = arrays[0].shape;
    const mean = new Float32Array(h * w);
    arrays[0].data.forEach((value, i) => (mean[i % mean.length] += value / members));
    return { head, data: mean, shape: [h, w] };
  }

  /**
   * Sums of responses to noise, weighted by the noise: the four arrays of POST /receptive_fields.
   * @param {object} body of the request
   * @param {(done: number, total: number) => void} onProgress
   */
  async receptiveFields(body, onProgress, signal) {
    const response = await this.server.ask("receptive_fields", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
      signal,
    });
    const head = JSON.parse(response.headers.get("V1T-Reply") ?? "{}");
    for await (const { line, bytes } of readEvents(response.body)) {
      if (line.event === "progress") onProgress(line.done, line.total);
      if (line.event === "error") throw new ServerError(line.status, line.error);
      if (line.event === "part") {
        const [maps, noise, total] = decodeNpy(bytes);
        return { head: { ...head, notes: line.notes }, maps, noise, total };
      }
    }
    throw new ServerError(0, { message: "the stream of receptive fields ended too early" });
  }

  async #arrays(path, body, signal) {
    const response = await this.server.ask(path, { method: "POST", body, headers: HEADERS, signal });
    const head = JSON.parse(response.headers.get("V1T-Reply") ?? "{}");
    return { head, arrays: decodeNpy(await response.arrayBuffer()) };
  }
}

/**
 * A form in bytes. FormData would take longer to send, as its files pass through another process.
 * @param {Question} question
 */
function formOf(question, more) {
  const { mouse, model, state, behavior, pupilCenter, pixels, shape } = question;
  const named = Object.keys(behavior).length ? behavior : undefined;
  const fields = { mouse, model, state, behavior: named, pupil_center: pupilCenter, ...more };
  const parts = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => part(name, typeof value === "string" ? value : JSON.stringify(value)));
  const head = new TextEncoder().encode(
    `${parts.join("")}${part('image"; filename="image.npy', "").trimEnd()}\r\n\r\n`,
  );
  const npy = encodeNpy(pixels, shape);
  const end = new TextEncoder().encode(`\r\n--${BOUNDARY}--\r\n`);
  const bytes = new Uint8Array(head.length + npy.length + end.length);
  bytes.set(head);
  bytes.set(npy, head.length);
  bytes.set(end, head.length + npy.length);
  return bytes;
}

function part(name, value) {
  return `--${BOUNDARY}\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`;
}
