/** Promises that others may have lost interest in. */

/** `Promise.withResolvers`, whose rejection is no error when nobody waits for it any more. */
export function withResolvers<Value>(): PromiseWithResolvers<Value> {
  const resolvers = Promise.withResolvers<Value>();
  resolvers.promise.catch(() => {});
  return resolvers;
}

/** Resolves when all have; rejects, not before all have ended, with the first failure of the list. */
export async function allEnded(promises: readonly Promise<unknown>[]): Promise<void> {
  await Promise.allSettled(promises);
  await Promise.all(promises);
}
