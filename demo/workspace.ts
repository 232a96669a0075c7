import { formatBytes, type Progress } from "./report.ts";

/** A client of `examples/worker`, as an application of a user's own would have one. */

export interface Server {
  url: string;
  token: string;
  signal: AbortSignal;
}

/** The Worker answered with an error. */
export class Refused extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export interface Handle {
  id: string;
  dir: string;
  localBucket?: true;
}

type OnProgress = (progress: Progress) => void;

export class Workspace {
  readonly name: string;
  readonly #server: Server;

  constructor(server: Server, name: string) {
    this.#server = server;
    this.name = name;
  }

  async clone(repoUrl: string): Promise<void> {
    await this.#send("POST", "clone", { repoUrl });
  }

  /** Runs a command that is to succeed, and gives its output. */
  async exec(command: string, env: Record<string, string> = {}): Promise<string> {
    const response = await this.#send("POST", "exec", { command, env });
    const result = (await response.json()) as { exitCode: number; stdout: string; stderr: string };
    if (result.exitCode === 0) return result.stdout;
    throw new Error(`exit code ${result.exitCode} of: ${command}\n${result.stderr.slice(-2000)}`);
  }

  async writeFile(path: string, content: string): Promise<void> {
    await this.#send("PUT", `files${path}`, content);
  }

  /** Gives the handle as it was answered, and the size of the archive as it was last reported. */
  async checkpoint(
    name: string,
    options: { ttl?: number; localBucket?: boolean },
    onProgress: OnProgress,
  ): Promise<{ handle: Handle; size: string }> {
    let size = "";
    const handle = (await this.#follow(`checkpoints/${name}`, options, (progress) => {
      size = formatBytes(progress.done);
      onProgress(progress);
    })) as Handle;
    return { handle, size };
  }

  /** The handle as KV has it. */
  async handle(name: string): Promise<Handle> {
    return (await (await this.#send("GET", `checkpoints/${name}`)).json()) as Handle;
  }

  async deleteCheckpoint(name: string): Promise<void> {
    await this.#send("DELETE", `checkpoints/${name}`);
  }

  async rollback(checkpoint: string, onProgress: OnProgress = () => {}): Promise<void> {
    await this.#follow("rollback", { checkpoint }, onProgress);
  }

  async fork(from: Workspace, checkpoint: string, onProgress: OnProgress = () => {}): Promise<void> {
    await this.#follow("fork", { from: from.name, checkpoint }, onProgress);
  }

  async stop(): Promise<void> {
    await this.#send("DELETE", "");
  }

  /** Sends a request that is told of progress, and gives its result. */
  async #follow(path: string, body: object, onProgress: OnProgress): Promise<unknown> {
    const response = await this.#send("POST", path, body, { accept: "text/event-stream" });
    // What was refused before the work began is plain JSON.
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response.json();
    for await (const { event, data } of readEvents(response)) {
      if (event === "result") return data;
      if (event === "error") throw refusal(response.status, data);
      const { phase, bytesDone, bytesExpected } = data as {
        phase: string;
        bytesDone: number;
        bytesExpected: number | null;
      };
      onProgress({ phase, done: bytesDone, expected: bytesExpected });
    }
    throw new Error(`${path}: the answer ended without a result`);
  }

  async #send(method: string, path: string, body?: object | string, headers = {}): Promise<Response> {
    const { url, token, signal } = this.#server;
    const response = await fetch(`${url}/${this.name}/${path}`.replace(/\/$/, ""), {
      method,
      headers: { authorization: `Bearer ${token}`, ...headers },
      signal,
      ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    });
    if (response.ok) return response;
    throw refusal(response.status, await response.json());
  }
}

function refusal(status: number, body: unknown): Refused {
  const { code, message } = (body as { error: { code: string; message: string } }).error;
  return new Refused(status, code, message);
}

async function* readEvents(response: Response): AsyncGenerator<{ event: string; data: unknown }> {
  let rest = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    rest += decoder.decode(chunk, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const [, event, data] = /^event: (.*)\ndata: (.*)$/s.exec(block) ?? [];
      if (event !== undefined && data !== undefined) yield { event, data: JSON.parse(data) };
    }
  }
}
