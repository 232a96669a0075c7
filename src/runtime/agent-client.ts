import type { z } from "zod";
import type { TransferHandler } from "../backups/transport.js";
import { errorFromJSON, SandboxUnavailableError } from "../errors.js";
import { allEnded, withResolvers } from "../promises.js";
import {
  type ArchiveEvent,
  type ArchiveRequest,
  type ArchiveResult,
  agentRoutes,
  archiveEventSchema,
  archiveResultSchema,
  type ExecEventMessage,
  type ExecRequest,
  execEventSchema,
  existsResultSchema,
  type FileRequest,
  fileResultSchema,
  type GitCheckoutRequest,
  gitCheckoutResultSchema,
  HEARTBEAT_INTERVAL,
  listResultSchema,
  type ProgressEvent,
  type RestoreEvent,
  type RestoreRequest,
  restoreEventSchema,
  type Urls,
} from "../protocol.js";
import { withLength } from "../streams.js";
import { NotDeliveredError, type Runtime } from "./runtime.js";

/** An agent that says nothing for this long, not even a heartbeat, is gone; in ms. */
const SILENCE = 6 * HEARTBEAT_INTERVAL;

/** How long an agent may take to stop what it does, in ms. */
const STOP_TIMEOUT = 15_000;

/** How long the agent's own account of a failure is waited for when its client's part has failed, in ms. */
const LAST_WORDS = 1_000;

/** An operation that runs in the agent, as far as its client moves the archive. */
export interface AgentOperation {
  /** The archive that was made. */
  takeArchive(): Promise<ReadableStream<Uint8Array>>;
  /** Brings the archive to restore, of `size` bytes. Resolves when the agent has all of it. */
  giveArchive(archive: ReadableStream<Uint8Array>, size: number): Promise<void>;
}

export interface OperationOptions {
  signal: AbortSignal;
  onProgress: (progress: Omit<ProgressEvent, "type">) => void;
}

/** Typed calls of the agent's HTTP API. */
export class AgentClient {
  /** @param restart starts the sandbox again; for a request that begins something and found it stopped */
  constructor(
    private readonly runtime: Runtime,
    private readonly restart: () => Promise<void>,
  ) {}

  /**
   * Makes an archive and has it sent to the bucket.
   * When this rejects, for whatever reason, nothing of it runs any more.
   */
  async archive(request: ArchiveRequest, handler: TransferHandler, options: OperationOptions): Promise<ArchiveResult> {
    const done = await this.#operate(agentRoutes.archives, request, archiveEventSchema, handler, options);
    return archiveResultSchema.parse(done);
  }

  /**
   * Restores a directory from an archive that is fetched from the bucket.
   * When this rejects, for whatever reason, nothing of it runs any more.
   * @returns what still runs when the directory is restored: the rest of its archive is fetched, by URLs that are signed
   *   meanwhile. It never rejects.
   */
  async restore(
    request: RestoreRequest,
    handler: TransferHandler,
    options: OperationOptions,
  ): Promise<{ rest: Promise<void> }> {
    const mounted = withResolvers<void>();
    const ended = this.#operate(agentRoutes.restores, request, restoreEventSchema, handler, options, mounted.resolve);
    await Promise.race([mounted.promise, ended]);
    // The agent logs what comes of it.
    return { rest: allEnded([ended]).catch(() => {}) };
  }

  /** Runs a command. Ends with the event `complete`; stopping to read, or the signal, ends the command. */
  async *exec(
    request: ExecRequest,
    signal?: AbortSignal,
  ): AsyncGenerator<Exclude<ExecEventMessage, { type: "heartbeat" | "error" }>> {
    const response = await this.#post(agentRoutes.exec, request, signal);
    let complete = false;
    for await (const event of readEvents(response, execEventSchema)) {
      if (event.type === "error") throw errorFromJSON(event.error);
      if (event.type !== "heartbeat") yield event;
      complete ||= event.type === "complete";
    }
    if (!complete) throw stopped();
  }

  async gitCheckout(request: GitCheckoutRequest): Promise<z.infer<typeof gitCheckoutResultSchema>> {
    return gitCheckoutResultSchema.parse(await (await this.#post(agentRoutes.gitCheckout, request)).json());
  }

  /** The file's bytes, with its media type. The size is undefined where only reading tells, as in /proc. */
  async readFile(
    path: string,
  ): Promise<{ stream: ReadableStream<Uint8Array>; size: number | undefined; mimeType: string }> {
    const response = await this.#begin(contentPath(path));
    const length = response.headers.get("content-length");
    return {
      stream: bodyOf(response),
      size: length === null ? undefined : Number(length),
      mimeType: response.headers.get("content-type") ?? "application/octet-stream",
    };
  }

  async writeFile(path: string, content: ReadableStream<Uint8Array> | Uint8Array): Promise<void> {
    const response = await this.#begin(contentPath(path), { method: "PUT", body: content });
    fileResultSchema.parse(await response.json());
  }

  /** `mkdir`, `delete`, `rename` and `move`. */
  async changeFile(request: Exclude<FileRequest, { action: "exists" | "list" }>): Promise<void> {
    fileResultSchema.parse(await (await this.#post(agentRoutes.files, request)).json());
  }

  async exists(path: string): Promise<boolean> {
    const response = await this.#post(agentRoutes.files, { action: "exists", path } satisfies FileRequest);
    return existsResultSchema.parse(await response.json()).exists;
  }

  async listFiles(
    request: Extract<FileRequest, { action: "list" }>,
  ): Promise<z.infer<typeof listResultSchema>["files"]> {
    return listResultSchema.parse(await (await this.#post(agentRoutes.files, request)).json()).files;
  }

  /** Starts an operation, answers what it needs while it runs, and returns its last event. */
  async #operate(
    route: string,
    request: ArchiveRequest | RestoreRequest,
    schema: z.ZodType<ArchiveEvent | RestoreEvent>,
    handler: TransferHandler,
    { signal, onProgress }: OperationOptions,
    onMounted = () => {},
  ): Promise<ArchiveEvent | RestoreEvent> {
    const id = request.operationId;
    const operation: AgentOperation = {
      takeArchive: async () => bodyOf(await this.#request(agentRoutes.operationArchive(id), { signal })),
      giveArchive: (archive, size) => this.#give(id, archive, size, signal),
    };
    const answers = new Answers();
    try {
      signal.throwIfAborted();
      const aborted = this.#stopOnAbort(id, signal);
      const response = await Promise.race([this.#post(route, request), aborted]);
      let last: ArchiveEvent | RestoreEvent | undefined;
      for await (const event of readEvents(response, schema, [answers.failure, aborted])) {
        switch (event.type) {
          case "progress":
            onProgress({ phase: event.phase, bytesDone: event.bytesDone, bytesExpected: event.bytesExpected });
            break;
          case "need-urls":
            answers.add(handler.urls(event.parts).then((urls) => this.#answer(id, { urls })));
            break;
          case "need-transfer":
            answers.add(handler.move(operation, event.size));
            break;
          case "mounted":
            onMounted();
            break;
          case "error":
            throw errorFromJSON(event.error);
          case "done":
            last = event;
        }
      }
      if (last === undefined) throw stopped();
      await answers.ended();
      return last;
    } catch (error) {
      await this.#stop(id);
      // What failed first is thrown; these follow from it.
      await answers.ended().catch(() => {});
      throw error;
    }
  }

  /**
   * Stops an operation when the signal aborts, and rejects with the signal's reason when it has stopped. One that is done
   * meanwhile says so before.
   */
  #stopOnAbort(id: string, signal: AbortSignal): Promise<never> {
    const { promise, reject } = withResolvers<never>();
    const stop = async () => {
      await this.#stop(id);
      setTimeout(() => reject(signal.reason), LAST_WORDS);
    };
    signal.addEventListener("abort", () => void stop(), { once: true });
    if (signal.aborted) void stop();
    return promise;
  }

  async #answer(id: string, urls: Urls): Promise<void> {
    const response = await this.#request(agentRoutes.operationUrls(id), jsonPost(urls));
    await response.text();
  }

  async #give(id: string, archive: ReadableStream<Uint8Array>, size: number, signal: AbortSignal): Promise<void> {
    const answer = await withLength(archive, size, (body) =>
      this.#request(agentRoutes.operationArchive(id), { method: "PUT", body, signal }),
    );
    await answer.text();
  }

  /** Makes sure that nothing of an operation runs any more. */
  async #stop(id: string): Promise<void> {
    try {
      const response = await this.#request(agentRoutes.operation(id), {
        method: "DELETE",
        signal: AbortSignal.timeout(STOP_TIMEOUT),
      });
      await response.text();
    } catch {
      // The sandbox has stopped, and its operation with it; or its agent hangs, and the URLs that it has expire.
    }
  }

  #post(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
    return this.#begin(path, { ...jsonPost(body), ...(signal ? { signal } : {}) });
  }

  /** Sends a request that begins something, for which a sandbox that has stopped is started again. */
  async #begin(path: string, init: RequestInit = {}): Promise<Response> {
    try {
      return await this.#request(path, init);
    } catch (error) {
      if (!(error instanceof NotDeliveredError) || init.body instanceof ReadableStream) throw error;
      await this.restart();
      return this.#request(path, init);
    }
  }

  async #request(path: string, init?: RequestInit): Promise<Response> {
    const response = await this.runtime.fetch(path, init);
    if (response.ok) return response;
    const answer = await response.text();
    throw (
      errorFromAnswer(answer) ?? new SandboxUnavailableError(`The agent answered HTTP ${response.status}: ${answer}`)
    );
  }
}

/** The answers to an operation's needs, given while its events are read. */
class Answers {
  readonly #pending: Promise<void>[] = [];
  readonly #failure = withResolvers<never>();
  /** Rejects when an answer has failed, and the agent did not say meanwhile what its own part in that was. */
  readonly failure = this.#failure.promise;

  add(answer: Promise<void>): void {
    this.#pending.push(answer);
    answer.catch((error: unknown) => setTimeout(() => this.#failure.reject(error), LAST_WORDS));
  }

  /** Resolves when all answers were given; rejects, also not before all have ended, with the first that could not be. */
  ended(): Promise<void> {
    return allEnded(this.#pending);
  }
}

/** Reads events until the stream ends, one of `endings` rejects, or the agent is silent for too long. */
async function* readEvents<Event>(
  response: Response,
  schema: z.ZodType<Event>,
  endings: readonly Promise<never>[] = [],
): AsyncGenerator<Event> {
  const reader = bodyOf(response).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await withTimeout(
        Promise.race([reader.read().catch(rethrowAsStopped), ...endings]),
        SILENCE,
      );
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) yield schema.parse(JSON.parse(line));
    }
  } finally {
    // The agent stops what it does when the stream is closed. It fails when the sandbox has closed it already.
    await reader.cancel().catch(() => {});
  }
}

function rethrowAsStopped(cause: unknown): never {
  throw stopped({ cause });
}

function stopped(options?: ErrorOptions): SandboxUnavailableError {
  return new SandboxUnavailableError("The sandbox stopped during the call", {}, options);
}

async function withTimeout<Value>(work: Promise<Value>, timeout: number): Promise<Value> {
  const { promise, reject } = withResolvers<never>();
  const timer = setTimeout(
    () => reject(new SandboxUnavailableError(`The agent was silent for ${timeout / 1000} s`)),
    timeout,
  );
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

function bodyOf(response: Response): ReadableStream<Uint8Array> {
  if (response.body === null) throw new SandboxUnavailableError("The agent's answer has no body");
  return response.body;
}

function jsonPost(body: unknown): RequestInit {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}

function contentPath(path: string): string {
  return `${agentRoutes.fileContent}?${new URLSearchParams({ path })}`;
}

/** The agent's error, or undefined when the answer is not one. */
function errorFromAnswer(answer: string): Error | undefined {
  try {
    return errorFromJSON(JSON.parse(answer));
  } catch {
    // Not JSON, or not an error of ours: the caller reports the answer as it is.
    return undefined;
  }
}
