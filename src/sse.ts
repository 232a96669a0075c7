/** Server-sent events (HTML Living Standard, section 9.2): the form in which `execStream` reports a running command. */

/** One event of `execStream`; `timestamp` is ISO 8601, `duration` in milliseconds. */
export type ExecEvent =
  | { type: "start"; command: string; timestamp: string }
  | { type: "stdout" | "stderr"; data: string; timestamp: string }
  | { type: "complete"; exitCode: number; duration: number; timestamp: string }
  | { type: "error"; error: string; code: string; timestamp: string };

const encoder = new TextEncoder();

export function encodeEvent(event: ExecEvent): Uint8Array {
  return encoder.encode(`data: ${JSON.stringify(event)}\n\n`);
}

/**
 * Reads server-sent events whose data is JSON, such as those of `execStream`.
 * @throws the signal's reason when it aborts; a SyntaxError when an event's data is not JSON
 */
export async function* parseSSEStream<Event = ExecEvent>(
  stream: ReadableStream<Uint8Array>,
  signal?: AbortSignal,
): AsyncGenerator<Event, void, undefined> {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const cancel = () => void reader.cancel(signal?.reason).catch(() => {});
  signal?.addEventListener("abort", cancel, { once: true });
  let rest = "";
  try {
    while (true) {
      signal?.throwIfAborted();
      const { done, value } = await reader.read();
      signal?.throwIfAborted();
      rest += done ? `${decoder.decode()}\n\n` : decoder.decode(value, { stream: true });
      const blocks = rest.split(/\r\n\r\n|\n\n|\r\r/);
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const data = readData(block);
        if (data !== "") yield JSON.parse(data);
      }
      if (done) return;
    }
  } finally {
    signal?.removeEventListener("abort", cancel);
    // Ends the command of a stream that is not read to its end; fails when the stream has failed, which was thrown.
    await reader.cancel().catch(() => {});
  }
}

/** The `data` of an event: its lines, joined. */
function readData(block: string): string {
  return block
    .split(/\r\n|\n|\r/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(line.startsWith("data: ") ? 6 : 5))
    .join("\n");
}
