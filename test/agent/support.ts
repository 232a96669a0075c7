import { mkdtemp, readFile, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type AgentServer, type Backups, createServer } from "../../container/server.js";
import { listenOnLoopback } from "../../dev/loopback.js";
import { sandboxErrorSchema } from "../../src/errors.js";
import { agentRoutes, type ExecEventMessage, type ExecRequest } from "../../src/protocol.js";

/** A new directory, without links in its path, that goes away with its scope. */
export async function temporaryDirectory(): Promise<{ path: string } & AsyncDisposable> {
  const path = await realpath(await mkdtemp(join(tmpdir(), "agent-test-")));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

export { eventually } from "../support/eventually.js";

/** Stands in where a test has no backups. */
const noBackups: Backups = {
  archive: () => Promise.reject(new Error("no archive expected")),
  restore: () => Promise.reject(new Error("no restore expected")),
  answerUrls: () => {},
  takeArchive: () => {
    throw new Error("no transfer expected");
  },
  giveArchive: () => Promise.reject(new Error("no transfer expected")),
  stop: () => Promise.resolve(),
  shutdown: () => Promise.resolve(),
};

/** The agent's real server on a loopback port, with typed calls. */
export class TestAgent implements AsyncDisposable {
  private constructor(
    private readonly server: AgentServer,
    readonly url: string,
  ) {}

  static async start(backups: Partial<Backups> = {}): Promise<TestAgent> {
    const server = createServer({ ...noBackups, ...backups });
    return new TestAgent(server, `http://127.0.0.1:${await listenOnLoopback(server.http)}`);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.server.close();
  }

  fetch(path: string, init?: RequestInit): Promise<Response> {
    return fetch(this.url + path, init);
  }

  post(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
    return this.fetch(path, {
      method: "POST",
      body: JSON.stringify(body),
      ...(signal === undefined ? {} : { signal }),
    });
  }

  /** The events of a command, as they come. */
  async *exec(request: ExecRequest, signal?: AbortSignal): AsyncGenerator<ExecEventMessage> {
    yield* eventsOf<ExecEventMessage>(await this.post(agentRoutes.exec, request, signal));
  }

  /** A command's output and its last event. */
  async run(request: ExecRequest): Promise<{ stdout: string; stderr: string; last: ExecEventMessage }> {
    const written = { stdout: "", stderr: "" };
    let last: ExecEventMessage | undefined;
    for await (const event of this.exec(request)) {
      if (event.type === "stdout" || event.type === "stderr") written[event.type] += event.data;
      last = event;
    }
    if (last === undefined) throw new Error("The command reported nothing");
    return { ...written, last };
  }

  contentPath(path: string): string {
    return `${agentRoutes.fileContent}?path=${encodeURIComponent(path)}`;
  }

  read(path: string): Promise<Response> {
    return this.fetch(this.contentPath(path));
  }

  write(path: string, body: NonNullable<RequestInit["body"]>): Promise<Response> {
    return this.fetch(this.contentPath(path), { method: "PUT", body, duplex: "half" } as RequestInit);
  }

  files(request: object): Promise<Response> {
    return this.post(agentRoutes.files, request);
  }
}

/** Reads a stream of events to its end. */
export async function* eventsOf<Event>(response: Response): AsyncGenerator<Event> {
  if (response.body === null) throw new Error("The response has no body");
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) yield JSON.parse(line) as Event;
  }
}

export async function allOf<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const all: Item[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** A promise that the test settles. */
export function deferred<Value = void>() {
  let resolve: (value: Value) => void = () => {};
  let reject: (reason: unknown) => void = () => {};
  const promise = new Promise<Value>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  return { promise, resolve, reject };
}

/** The error that a response carries, with the response's status. */
export async function errorOf(response: Response) {
  const { name, code, message, context } = sandboxErrorSchema.parse(await response.json());
  return { status: response.status, name, code, message, context };
}

/** True while a process of this id runs (and is no zombie that nobody waits for). */
export async function isRunning(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return stat !== undefined && !/^\d+ \(.*\) [ZX]/s.test(stat);
}
