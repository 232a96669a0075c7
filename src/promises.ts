/** Promises that others may have lost interest in; for the Worker and for the agent. */

export interface Resolvers<Value> {
  promise: Promise<Value>;
  resolve: (value: Value) => void;
  reject: (reason: unknown) => void;
}

/**
 * `Promise.withResolvers`, which Node 20 lacks, but its rejection is no error when nobody waits for it any more.
 * @param signal rejects it with its reason when it aborts
 */
export function withResolvers<Value>(signal?: AbortSignal): Resolvers<Value> {
  let resolve: (value: Value) => void = () => {};
  let reject: (reason: unknown) => void = () => {};
  const promise = new Promise<Value>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  promise.catch(() => {});
  signal?.addEventListener("abort", () => reject(signal.reason));
  if (signal?.aborted) reject(signal.reason);
  return { promise, resolve, reject };
}

/** Resolves when all have; rejects, not before all have ended, with the first failure of the list. */
export async function allEnded(promises: readonly Promise<unknown>[]): Promise<void> {
  await Promise.allSettled(promises);
  await Promise.all(promises);
}
