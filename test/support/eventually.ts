import { setTimeout as sleep } from "node:timers/promises";

/** Waits until `check` gives something other than undefined or false. */
export async function eventually<Value>(
  check: () => Value | Promise<Value>,
): Promise<Exclude<Value, undefined | false>> {
  const deadline = Date.now() + 10_000;
  for (;;) {
    const value = await check();
    if (value !== undefined && value !== false) return value as Exclude<Value, undefined | false>;
    if (Date.now() > deadline) throw new Error(`Still not the case: ${check}`);
    await sleep(20);
  }
}
