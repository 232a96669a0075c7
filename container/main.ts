import { SERVE_ARCHIVE } from "./remote/argument.js";

/** One program, two processes: the agent, and one that serves an archive, which loads nothing of the agent. */
if (process.argv[2] === SERVE_ARCHIVE) {
  const { serveArchive } = await import("./remote/serve.js");
  await serveArchive();
} else {
  const { main, UsageError, USAGE } = await import("./agent.js");
  try {
    await main(process.argv.slice(2));
  } catch (error) {
    const usage = error instanceof UsageError;
    process.stderr.write(`${error instanceof Error ? error.message : error}\n${usage ? `${USAGE}\n` : ""}`);
    process.exit(usage ? 2 : 1);
  }
}
