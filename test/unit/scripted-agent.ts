import { vi } from "vitest";
import { type ArchiveEvent, agentRoutes, type RestoreEvent } from "../../src/protocol.js";

/**
 * Stands in for the development host and its agent, for containers cannot run in the pool; what it answers is what a test
 * says. The system as a whole is tested in `test/e2e`.
 */
export class ScriptedAgent {
  /** Method and path of every request to the agent. */
  readonly requests: string[] = [];
  /** How often the sandbox was started, or asked whether it runs. */
  starts = 0;
  /** Bodies of requests, in the order of `requests`. */
  readonly bodies: unknown[] = [];
  /** Answers to paths that are no operations. */
  readonly answers = new Map<string, () => Response>();
  /** What an operation reports; without a last event it goes on until it is stopped. */
  events: (ArchiveEvent | RestoreEvent)[] = [];
  /** The archive that `takeArchive` gives. */
  archive = "";

  constructor() {
    vi.spyOn(globalThis, "fetch").mockImplementation((input, init) =>
      this.#answer(String(input), (init ?? {}) as RequestInit),
    );
  }

  async #answer(url: string, init: RequestInit): Promise<Response> {
    const { pathname } = new URL(url);
    const [, path] = /^\/v1\/sandboxes\/[^/]+\/agent(\/.*)$/.exec(pathname) ?? [];
    if (path === undefined) {
      this.starts++;
      return Response.json({ instance: "1" });
    }
    const method = init.method ?? "GET";
    this.requests.push(`${method} ${path}`);
    this.bodies.push(typeof init.body === "string" ? JSON.parse(init.body) : init.body);
    const answer = this.answers.get(path);
    if (answer !== undefined) return answer();
    if (path === agentRoutes.archives || path === agentRoutes.restores) return this.#operate(init.signal ?? undefined);
    if (method === "GET" && path.endsWith("/archive")) return new Response(this.archive);
    if (method === "PUT") return Response.json({ path, received: await new Response(init.body).text() });
    return Response.json({});
  }

  #operate(signal: AbortSignal | undefined): Response {
    const lines = this.events.map((event) => `${JSON.stringify(event)}\n`);
    const isEndless = !["done", "error"].includes(this.events.at(-1)?.type ?? "");
    const body = new ReadableStream<Uint8Array>({
      async pull(controller) {
        const line = lines.shift();
        if (line !== undefined) return controller.enqueue(new TextEncoder().encode(line));
        if (!isEndless) return controller.close();
        await new Promise<void>((resolve) => signal?.addEventListener("abort", () => resolve(), { once: true }));
        controller.error(new Error("the connection was closed"));
      },
    });
    return new Response(body);
  }
}
