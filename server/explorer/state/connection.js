/** Whether the server answers, and what it says if it does not answer as it should. */

import { Server, ServerError, Unreachable, pause, wasCancelled } from "../api/server.js";
import { Twin } from "../api/twin.js";
import { signal } from "../library.js";

export const server = new Server();
export const twin = new Twin(server);

/**
 * "ok"; "busy": it asked to wait; "away": nothing answers; "key": it wants a key; "refused": an error of its own.
 * @type {import("../library.js").Signal<{ status: string, words: string, error?: ServerError }>}
 */
export const connection = signal({ status: "ok", words: "" });

/** Counts how often the server came back, so that what was loaded before is loaded again. */
export const returns = signal(0);

server.onBusy = (error, seconds) => {
  const words = `The server is busy: ${error.message}. Trying again in ${seconds.toFixed(seconds < 10 ? 1 : 0)} s.`;
  connection.value = { status: "busy", words };
};
server.onReply = () => {
  if (connection.value.status === "busy") connection.value = { status: "ok", words: "" };
};
server.onAway = () => {
  if (connection.value.status === "away") return;
  connection.value = { status: "away", words: "The server does not answer. Trying again until it does." };
  void waitForReturn();
};

async function waitForReturn() {
  for (let seconds = 0.5; connection.peek().status === "away"; seconds = Math.min(seconds * 1.5, 5)) {
    await pause(1000 * seconds);
    const ready = await fetch(server.url("readyz"), { cache: "no-store" }).catch(() => null);
    if (!ready) continue;
    if (ready.ok) {
      connection.value = { status: "ok", words: "" };
      returns.value += 1;
    } else {
      const words = (await ready.json().catch(() => ({}))).error?.message ?? `status ${ready.status}`;
      connection.value = { status: "away", words: `The server is starting: ${words}.` };
    }
  }
}

/** Shows an error where it belongs. Cancelled requests are nobody's error. */
export function report(error) {
  if (wasCancelled(error) || error instanceof Unreachable) return; // the latter is shown already
  if (error instanceof ServerError && error.status === 401) {
    connection.value = { status: "key", words: error.message, error };
  } else if (error instanceof ServerError) {
    connection.value = { status: "refused", words: error.message, error };
  } else {
    console.error(error);
    connection.value = { status: "refused", words: `The page failed: ${error.message}.` };
  }
}

/** Takes an error message away, once an answer shows that it is over. */
export function allIsWell() {
  if (["refused", "key"].includes(connection.peek().status)) connection.value = { status: "ok", words: "" };
}
