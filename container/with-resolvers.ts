export interface PromiseWithResolversOf<Value> {
  promise: Promise<Value>;
  resolve: (value: Value) => void;
  reject: (reason: unknown) => void;
}

/**
 * `Promise.withResolvers`, which Node 20 lacks. A rejection that nobody awaits any more is not an error.
 * @param signal rejects it with its reason when it aborts
 */
export function withResolvers<Value>(signal?: AbortSignal): PromiseWithResolversOf<Value> {
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
