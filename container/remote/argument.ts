/** The argument by which the agent's program becomes the process that serves a remote archive. */
export const SERVE_ARCHIVE = "--serve-archive";
