import { COMPRESSION } from "./compression.ts";
import { CREATE } from "./create.ts";
import { LOCAL_BUCKET } from "./local-bucket.ts";
import type { Measurement } from "./measurement.ts";
import { MEMORY } from "./memory.ts";
import { RESTORE } from "./restore.ts";
import { RESTORED } from "./restored.ts";
import { SAME_CONTAINER } from "./same-container.ts";

/** All that is measured. */
export const MEASUREMENTS: readonly Measurement[] = [
  ...CREATE,
  ...COMPRESSION,
  ...RESTORE,
  ...RESTORED,
  ...SAME_CONTAINER,
  ...LOCAL_BUCKET,
  ...MEMORY,
];
