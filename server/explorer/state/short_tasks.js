/** Long work in short tasks, so that the page stays alive meanwhile. */

const LONGEST = 8; // ms

/**
 * A function to await now and then: once a task has taken long enough, it lets the page have its turn.
 * @returns {() => Promise<void> | undefined}
 */
export function shortTasks() {
  let start = performance.now();
  return () => {
    if (performance.now() - start < LONGEST) return undefined;
    return new Promise((resolve) => {
      setTimeout(() => {
        start = performance.now();
        resolve();
      });
    });
  };
}
