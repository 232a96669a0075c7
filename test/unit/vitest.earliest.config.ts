import { unitTests } from "./pool.ts";

/**
 * The earliest date that is supported: of an error, RPC keeps the message only. The flag lets the runner see rejections as
 * later dates do, for here they count as unhandled when nobody waits for them at once.
 */
export default unitTests("unit-earliest", "2025-05-06", ["unhandled_rejection_after_microtask_checkpoint"]);
