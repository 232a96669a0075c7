/** What the Worker is asked over HTTP, and what it answers. */

/** Calls of one sandbox's client, one after another. */
export interface Calls {
  /** By presigned URLs over the benchmark's store, or with `localBucket` over the R2 binding. */
  path: "production" | "localBucket";
  sandbox: string;
  steps: Step[];
}

export interface Step {
  method: string;
  args: unknown[];
}

/** What came of one of them. */
export interface StepResult {
  value: unknown;
  /** How long the Worker waited for it, in ms. */
  duration: number;
}
