import { toSandboxError } from "./events.js";

/** What a line of the log says about an operation beside its name and outcome. Never a URL, a token, an environment or contents. */
export type Facts = Record<string, string | number | boolean | null | undefined>;

/** Writes one JSON line to stderr. */
export function log(op: string, facts: Facts = {}): void {
  process.stderr.write(`${JSON.stringify({ time: new Date().toISOString(), op, ...facts })}\n`);
}

/**
 * Runs `work` and writes one line about it: its outcome (`ok` or the error's code) and its duration in ms.
 * @param describe adds facts that are known only from the result
 */
export async function logOperation<Result>(
  op: string,
  facts: Facts,
  work: () => Promise<Result>,
  describe: (result: Result) => Facts = () => ({}),
): Promise<Result> {
  const start = performance.now();
  const duration = () => Math.round(performance.now() - start);
  try {
    const result = await work();
    log(op, { outcome: "ok", duration: duration(), ...facts, ...describe(result) });
    return result;
  } catch (error) {
    const { code, message } = toSandboxError(error);
    log(op, { outcome: code, duration: duration(), ...facts, message });
    throw error;
  }
}
