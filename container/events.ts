import { once } from "node:events";
import type { ServerResponse } from "node:http";
import { InternalError, isSandboxError, OperationAbortedError, type SandboxError } from "../src/errors.js";
import { HEARTBEAT_INTERVAL } from "../src/protocol.js";

/** Gives any thrown value the form that crosses the wire. */
export function toSandboxError(error: unknown): SandboxError {
  if (isSandboxError(error)) return error;
  if (error instanceof Error && error.name === "AbortError") return new OperationAbortedError();
  return new InternalError(error instanceof Error ? error.message : String(error), {}, { cause: error });
}

/**
 * Answers with a stream of events (NDJSON) while `work` runs: what it emits, then what it returns, or its error.
 * The signal that `work` gets aborts when the client closes the stream. Resolves when `work` has ended.
 */
export async function streamEvents<Event extends { type: string }>(
  response: ServerResponse,
  work: (emit: (event: Event) => Promise<void>, signal: AbortSignal) => Promise<Event>,
): Promise<void> {
  const gone = new AbortController();
  response.on("close", () => {
    if (!response.writableFinished) gone.abort(new OperationAbortedError("The client closed the connection."));
  });
  response.writeHead(200, { "content-type": "application/x-ndjson", "cache-control": "no-store" });

  /** Waits while the client reads slower than `work` writes, so that nothing piles up in memory. */
  const emit = async (event: Event | { type: string }): Promise<void> => {
    if (gone.signal.aborted || response.write(`${JSON.stringify(event)}\n`)) return;
    // Rejects when the client goes away meanwhile; `work` learns that from its signal.
    await once(response, "drain", { signal: gone.signal }).catch(() => {});
  };
  const heartbeat = setInterval(() => {
    // Where the client has not read what there is, one more line would only pile up.
    if (!response.writableNeedDrain) void emit({ type: "heartbeat" });
  }, HEARTBEAT_INTERVAL);
  try {
    await emit(await work(emit, gone.signal));
  } catch (error) {
    await emit({ type: "error", error: toSandboxError(error) } as { type: string });
  } finally {
    clearInterval(heartbeat);
    response.end();
  }
}
