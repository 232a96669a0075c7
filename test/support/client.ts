import { readFile } from "node:fs/promises";
import type { BackupOptions, BackupProgress, DirectoryBackup } from "../../src/backups/options.js";
import type { Call, Outcome } from "./call.js";

/** Talks to the Worker of the end-to-end tests (`test/e2e/worker`), wherever that runs. */

type Options = Pick<Call, "optionsAt" | "abortAtPhase" | "abortAfter">;

/** Where the Worker is, and the token that it may ask for. */
export interface Target {
  url: string;
  token?: string | undefined;
}

export class Worker {
  constructor(private readonly target: Target) {}

  sandbox(name: string, options: { faulty?: boolean } = {}): TestSandbox {
    return new TestSandbox(this, name, options.faulty ?? false);
  }

  /** Keys of the bucket's objects. */
  async listKeys(prefix: string): Promise<string[]> {
    return (await this.fetch(`/objects?prefix=${encodeURIComponent(prefix)}`)).json() as Promise<string[]>;
  }

  async getObject(key: string): Promise<Buffer> {
    return Buffer.from(await (await this.fetch(`/object?key=${encodeURIComponent(key)}`)).arrayBuffer());
  }

  /** @returns its new ETag */
  async putObject(key: string, content: Buffer | string): Promise<string> {
    const response = await this.fetch(`/object?key=${encodeURIComponent(key)}`, { method: "PUT", body: content });
    return ((await response.json()) as { etag: string }).etag;
  }

  async deleteObject(key: string): Promise<void> {
    await this.fetch(`/object?key=${encodeURIComponent(key)}`, { method: "DELETE" });
  }

  /** The Worker's own keys and tokens. */
  async secrets(): Promise<string[]> {
    const secrets = (await (await this.fetch("/secrets")).json()) as (string | null)[];
    return secrets.filter((secret) => secret !== null);
  }

  async call(call: Call): Promise<Outcome> {
    return (await this.fetch("/call", { method: "POST", body: JSON.stringify(call) })).json() as Promise<Outcome>;
  }

  private async fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = this.target.token === undefined ? {} : { authorization: `Bearer ${this.target.token}` };
    const response = await fetch(this.target.url + path, { ...init, headers });
    if (!response.ok) throw new Error(`${path}: HTTP ${response.status}: ${await response.text()}`);
    return response;
  }
}

/** What a call was refused with. */
export type CallError = NonNullable<Outcome["error"]>;

export class TestSandbox {
  constructor(
    private readonly worker: Worker,
    readonly name: string,
    private readonly faulty: boolean,
  ) {}

  /** Calls a method of the client, whatever comes of it. */
  call(method: string, args: unknown[], options: Options = {}): Promise<Outcome> {
    return this.worker.call({ sandbox: this.name, faulty: this.faulty, method, args, ...options });
  }

  /** Calls a method that is to succeed. */
  async do<Value>(method: string, args: unknown[], options: Options = {}): Promise<Value> {
    const { value, error } = await this.call(method, args, options);
    if (error !== undefined)
      throw new Error(`${method}: ${error.name}: ${error.message} ${JSON.stringify(error.context)}`);
    return value as Value;
  }

  /** Calls a method that is to fail. */
  async fail(method: string, args: unknown[], options: Options = {}): Promise<CallError> {
    const { value, error } = await this.call(method, args, options);
    if (error === undefined) throw new Error(`${method} succeeded with ${JSON.stringify(value)}`);
    return error;
  }

  /** Runs a command that is to succeed, and gives its output. */
  async exec(command: string, options: Record<string, unknown> = {}): Promise<string> {
    const result = await this.do<{ success: boolean; exitCode: number; stdout: string; stderr: string }>("exec", [
      command,
      options,
    ]);
    if (!result.success) throw new Error(`${command}: exit code ${result.exitCode}: ${result.stderr}`);
    return result.stdout;
  }

  createBackup(options: BackupOptions): Promise<DirectoryBackup> {
    return this.do("createBackup", [options]);
  }

  async restoreBackup(backup: DirectoryBackup, options: { lazy?: boolean } = {}): Promise<BackupProgress[]> {
    const { error, progress } = await this.call("restoreBackup", [backup, options], { optionsAt: 1 });
    if (error !== undefined) throw new Error(`restoreBackup: ${error.name}: ${error.message}`);
    return progress;
  }

  /** Makes a tree in the sandbox, as `make-tree.mjs` does. */
  async makeTree(kind: "special" | "random" | "many", dir: string, argument?: number): Promise<void> {
    await this.exec(`node ${await this.#script("make-tree.mjs")} ${kind} ${dir} ${argument ?? ""}`);
  }

  /** Describes a tree in the sandbox, as `manifest.mjs` does. */
  async manifest(dir: string): Promise<string> {
    return this.exec(`node ${await this.#script("manifest.mjs")} ${dir}`);
  }

  /** A digest of that description, for a tree whose description is too long for one answer. */
  async manifestDigest(dir: string): Promise<string> {
    return this.exec(`node ${await this.#script("manifest.mjs")} ${dir} | sha256sum`);
  }

  async #script(name: string): Promise<string> {
    const path = `/root/${name}`;
    await this.do("writeFile", [path, await readFile(new URL(name, import.meta.url), "utf8")]);
    return path;
  }
}
