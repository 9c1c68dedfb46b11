/** HTTP exchanges with the server: key, retries while it is busy, errors in its own words. */

/** An error reply. The fields are those of its body. */
export class ServerError extends Error {
  /**
   * @param {number} status
   * @param {{ code?: string, message?: string, got?: unknown, expected?: unknown, hint?: string | null }} body
   */
  constructor(status, { code = "", message = `status ${status}`, got = null, expected = null, hint = null }) {
    super(message);
    Object.assign(this, { status, code, got, expected, hint });
  }
}

/** Nothing answered. */
export class Unreachable extends Error {}

const BUSY = new Set([429, 503]);
const LONGEST_PAUSE = 10; // seconds

/**
 * The server that this page came from.
 *
 * `onBusy(error, seconds)` is called before each pause, `onReply()` after each reply, `onAway()` if nothing answers.
 * The key is kept here and nowhere else: not in the URL, in no storage.
 */
export class Server {
  key = "";
  onBusy = (/** @type {ServerError} */ _error, /** @type {number} */ _seconds) => {};
  onReply = () => {};
  onAway = () => {};

  /** @param {string} path relative to the page, so that it works below any prefix */
  url(path) {
    return new URL(path, document.baseURI).href;
  }

  /**
   * A reply with a good status. 429 and 503 are retried when the server says, until the signal aborts.
   * @param {string} path
   * @param {{ method?: string, body?: BodyInit, headers?: Record<string, string>, signal?: AbortSignal }} [options]
   * @returns {Promise<Response>}
   */
  async ask(path, options = {}) {
    for (let attempt = 0; ; attempt += 1) {
      const response = await this.askOnce(path, options);
      if (response.ok) return response;
      const error = await errorOf(response);
      if (!BUSY.has(response.status)) throw error;
      const seconds = Math.min(Number(response.headers.get("Retry-After")) || 0.5 * 2 ** attempt, LONGEST_PAUSE);
      this.onBusy(error, seconds);
      await pause(seconds * 1000, options.signal);
    }
  }

  /** Whatever the server replies; raises {@link Unreachable} if it does not. */
  async askOnce(path, { headers = {}, ...options } = {}) {
    const authorization = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    try {
      const response = await fetch(this.url(path), { ...options, headers: { ...headers, ...authorization } });
      this.onReply();
      return response;
    } catch (error) {
      if (options.signal?.aborted) throw error;
      this.onAway();
      throw new Unreachable("The server does not answer.");
    }
  }

  /** A reply's JSON. */
  async json(path, options) {
    return (await this.ask(path, options)).json();
  }
}

/** @param {Response} response */
async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  return new ServerError(response.status, typeof body.error === "object" ? body.error : { message: body.error });
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} [signal] ends the pause with its reason
 */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve(undefined);
    }, milliseconds);
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Whether a request was cancelled because nobody waits for it any more. */
export function wasCancelled(error) {
  return error instanceof DOMException && error.name === "AbortError";
}
