import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { type DevServer, freePort, startDevServer } from "../test/support/dev-server.ts";
import { type Disk, mountDisk } from "./disk.ts";
import { BenchSandbox, type SandboxKind } from "./sandbox.ts";
import { Store } from "./store/client.ts";
import type { Calls, StepResult } from "./worker/src/calls.ts";

const WORKER_CONFIG = new URL("./worker/wrangler.jsonc", import.meta.url).pathname;

/** The store, and `sandbox-backup dev` with the benchmark's Worker. */
export class System {
  readonly store: Store;
  /** For files of the benchmark itself. */
  readonly directory: string;
  /** Of the file system that sandboxes are in; undefined for the machine's own. */
  readonly disk: Disk | undefined;
  readonly #server: DevServer;
  readonly #url: string;
  #sandboxes = 0;

  private constructor(store: Store, server: DevServer, url: string, directory: string, disk: Disk | undefined) {
    this.store = store;
    this.directory = directory;
    this.disk = disk;
    this.#server = server;
    this.#url = url;
  }

  /** When it rejects, as it does when `signal` aborts meanwhile, nothing is left running. */
  static async start(signal: AbortSignal): Promise<System> {
    const directory = await mkdtemp(join(tmpdir(), "sbb-"));
    const store = await Store.start();
    const disk = await mountDisk(directory);
    try {
      const temp = join(disk?.directory ?? directory, "t");
      await mkdir(temp);
      const port = await freePort();
      const server = await startDevServer({
        config: WORKER_CONFIG,
        // Not on the disk: a Durable Object's writes do not wait for what a container writes.
        directory: join(directory, "dev"),
        port,
        args: ["--var", `BACKUP_BUCKET_ENDPOINT:${store.origin}`],
        env: { TMPDIR: temp, WRANGLER_SEND_METRICS: "false" },
        signal,
      });
      return new System(store, server, `http://127.0.0.1:${port}`, directory, disk);
    } catch (error) {
      await store.stop();
      await disk?.remove();
      await rm(directory, { recursive: true, force: true });
      throw error;
    }
  }

  async stop(): Promise<void> {
    await this.#server.stop();
    await this.store.stop();
    await this.disk?.remove();
    await rm(this.directory, { recursive: true, force: true });
  }

  /** Starts a sandbox with nothing in it. */
  async newSandbox(kind: SandboxKind = {}): Promise<BenchSandbox> {
    this.#sandboxes += 1;
    const name = `${kind.layers === undefined ? "" : `${kind.layers}@`}s${this.#sandboxes}`;
    const sandbox = new BenchSandbox(this, name, kind);
    await sandbox.start();
    return sandbox;
  }

  /** What the Worker made of the calls. */
  async perform(calls: Calls): Promise<StepResult[]> {
    return JSON.parse(await this.ask("POST", "/calls", JSON.stringify(calls))) as StepResult[];
  }

  /**
   * Asks the Worker, however long it takes.
   * @throws with the Worker's words when it fails
   */
  async ask(
    method: string,
    path: string,
    body?: string | { stream: NodeJS.ReadableStream; size: number },
    receive: (answer: NodeJS.ReadableStream) => Promise<string> = text,
  ): Promise<string> {
    return new Promise((resolve, reject) => {
      const length = typeof body === "string" ? Buffer.byteLength(body) : body?.size;
      const headers = length === undefined ? {} : { "content-length": length };
      const outgoing = request(`${this.#url}${path}`, { method, headers }, (response) => {
        const ok = response.statusCode !== undefined && response.statusCode < 300;
        (ok ? receive(response) : text(response)).then(
          (answer) => (ok ? resolve(answer) : reject(new Error(answer))),
          reject,
        );
      });
      outgoing.once("error", reject);
      if (typeof body === "object") body.stream.pipe(outgoing);
      else outgoing.end(body);
    });
  }
}
