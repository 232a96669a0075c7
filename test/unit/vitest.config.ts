import { unitTests } from "./pool.ts";

/** The newest date that the pool's workerd knows: errors keep their own fields over RPC. */
export default unitTests("unit", "2026-08-15");
