import type { BackupProgress } from "../../src/backups/options.js";

/** What the Worker of the end-to-end tests is asked over HTTP, and what it answers. */

/** One call of a client. */
export interface Call {
  sandbox: string;
  faulty?: boolean;
  method: string;
  args: unknown[];
  /** Index of the argument that gets an `onProgress`, and a `signal` where one of the next two is set. */
  optionsAt?: number;
  /** Aborts when this phase is reported. */
  abortAtPhase?: string;
  /** Aborts after so many milliseconds. */
  abortAfter?: number;
}

/** What came of a call. */
export interface Outcome {
  value?: unknown;
  error?: {
    name: string;
    message: string;
    code?: unknown;
    context?: unknown;
    httpStatus?: unknown;
    isSandboxError: boolean;
  };
  progress: BackupProgress[];
}
