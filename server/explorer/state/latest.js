/** The newest wish is the one that counts: older requests are left to finish only while they still help. */

import { wasCancelled } from "../api/server.js";

const PATIENCE = 120; // ms that a stale request may take: a fast server then answers while a slider moves
const OVERDUE = 700; // ms without an answer, after which the next is let through, stale or not

/**
 * Runs one request at a time. A new wish replaces the one that waits, and cancels the one that runs if that takes
 * long, unless nothing has been answered for a while: otherwise a slow server would show nothing as long as a slider
 * moves.
 * @template Input, Output
 */
export class Latest {
  #work;
  #onResult;
  #onError;
  #running = /** @type {{ controller: AbortController, start: number } | null} */ (null);
  #waiting = /** @type {Input | null} */ (null);
  #lastAnswer = -Infinity;
  #timer = 0;

  /**
   * @param {(input: Input, signal: AbortSignal) => Promise<Output>} work
   * @param {(output: Output, input: Input) => void} onResult
   * @param {(error: unknown) => void} onError
   */
  constructor(work, onResult, onError) {
    this.#work = work;
    this.#onResult = onResult;
    this.#onError = onError;
  }

  /** @param {Input} input */
  want(input) {
    this.#waiting = input;
    if (!this.#running) void this.#run();
    else this.#cancelWhenStale();
  }

  /** Cancels everything. */
  stop() {
    this.#waiting = null;
    this.#running?.controller.abort();
  }

  #cancelWhenStale() {
    clearTimeout(this.#timer);
    const running = this.#running;
    if (!running || this.#waiting === null) return;
    const now = performance.now();
    const left = running.start + PATIENCE - now;
    if (left > 0) this.#timer = setTimeout(() => this.#cancelWhenStale(), left);
    else if (now - this.#lastAnswer < OVERDUE) running.controller.abort();
  }

  async #run() {
    while (this.#waiting !== null) {
      const input = this.#waiting;
      this.#waiting = null;
      const controller = new AbortController();
      this.#running = { controller, start: performance.now() };
      try {
        const output = await this.#work(input, controller.signal);
        if (controller.signal.aborted) continue;
        this.#lastAnswer = performance.now();
        this.#onResult(output, input);
      } catch (error) {
        if (!wasCancelled(error)) this.#onError(error);
      } finally {
        this.#running = null;
      }
    }
  }
}
