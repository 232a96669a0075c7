import { unitTests } from "./pool.ts";

/** The earliest date that is supported: of an error, RPC keeps the message only. */
export default unitTests("unit-earliest", "2025-05-06");
