import { DurableObject } from "cloudflare:workers";
import { BindingTransport } from "./backups/binding.js";
import { hasMetadata } from "./backups/bucket.js";
import { createBackup } from "./backups/create.js";
import {
  type BackupOptions,
  type BackupProgress,
  type DirectoryBackup,
  parseBackupOptions,
  parseHandle,
  parseRestoreOptions,
  type RestoreBackupResult,
  type RestoreOptions,
} from "./backups/options.js";
import { PresignedTransport } from "./backups/presigned.js";
import { restoreBackup } from "./backups/restore.js";
import { backupBucket, presignSettings } from "./backups/settings.js";
import type { Transport } from "./backups/transport.js";
import { UnfinishedBackups } from "./backups/unfinished.js";
import {
  FileSystemError,
  isSandboxError,
  OperationAbortedError,
  SandboxUnavailableError,
  ValidationError,
} from "./errors.js";
import {
  durationSchema,
  type ExecOptions,
  type ExecResult,
  type ExistsResult,
  envSchema,
  execArguments,
  type FileResult,
  type GitCheckoutOptions,
  type GitCheckoutResult,
  gitCheckoutArguments,
  type ListFilesOptions,
  type ListFilesResult,
  listFilesArguments,
  type MkdirResult,
  type MovedFileResult,
  mkdirArguments,
  parseArguments,
  pathArguments,
  type ReadFileOptions,
  type ReadFileResult,
  readFileArguments,
  twoPathsArguments,
  type WriteFileOptions,
  writeFileArguments,
} from "./options.js";
import { type ExecRequest, type GitCheckoutRequest, MiB } from "./protocol.js";
import { Queue } from "./queue.js";
import type { ClientCall, ClientFacing, Envelope } from "./rpc.js";
import { AgentClient } from "./runtime/agent-client.js";
import { ContainerRuntime } from "./runtime/container-runtime.js";
import { findHost, HostRuntime } from "./runtime/host-runtime.js";
import type { Runtime } from "./runtime/runtime.js";
import { encodeEvent } from "./sse.js";
import { decodeBase64, decodeText, encodeBase64 } from "./text.js";

/** Where the variables of `setEnvVars` are kept. */
const ENV_VARS_KEY = "sandbox-backup:env-vars";

/** A file read into a string has to fit into one RPC message of 32 MiB, also in base64; in bytes. */
const LARGEST_STRING_FILE = 20 * MiB;

/** Methods of a Durable Object that are the platform's to call. */
const PLATFORM_METHODS = new Set([
  "constructor",
  "fetch",
  "alarm",
  "webSocketMessage",
  "webSocketClose",
  "webSocketError",
  "callFromClient",
  "abortCall",
]);

/**
 * A sandbox: a Durable Object that owns one container, or one sandbox of the development host.
 * Export it from the Worker, or a subclass of it; reach it by `getSandbox`.
 */
export class Sandbox<Env = unknown> extends DurableObject<Env> implements ClientFacing {
  /** Time without a call after which the container stops: seconds, or a number with `s`, `m` or `h`. @default "10m" */
  sleepAfter: string | number = "10m";
  /** Environment of everything that runs in the container; takes effect when it starts. @default {} */
  envVars: Record<string, string> = {};
  /** Whether the container may reach the Internet; presigned URLs need it. @default true */
  enableInternet = true;

  readonly #backups = new Queue();
  readonly #calls = new Map<string, AbortController>();
  readonly #unfinished: UnfinishedBackups;
  #runtime: Runtime | undefined;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#unfinished = new UnfinishedBackups(ctx.storage);
    void this.#backups.run(() => this.#removeUnfinished());
  }

  /**
   * Archives a directory and stores it in the bucket. Calls of `createBackup` and `restoreBackup` run one after another.
   * @throws {InvalidBackupConfigError} when an option or a setting is wrong or missing
   * @throws {BackupCreateError} when it cannot be made or stored; then nothing of it is left
   * @throws the signal's reason when `options.signal` aborts
   */
  async createBackup(options: BackupOptions): Promise<DirectoryBackup> {
    const parsed = parseBackupOptions(options);
    const deps = this.#backupDeps(parsed.localBucket, parsed);
    return this.#backups.run(() => createBackup(deps, parsed), deps.signal);
  }

  /**
   * Brings a directory back: by `localBucket` it is replaced, otherwise it is mounted copy-on-write over the archive, until
   * the container stops.
   * @throws {InvalidBackupConfigError} when the handle or a setting is wrong or missing
   * @throws {BackupNotFoundError} when the bucket does not have the backup
   * @throws {BackupExpiredError} when its time to live has elapsed
   * @throws {BackupRestoreError} when it cannot be restored; then the directory is as before
   * @throws the signal's reason when `options.signal` aborts
   */
  async restoreBackup(backup: DirectoryBackup, options: RestoreOptions = {}): Promise<RestoreBackupResult> {
    const handle = parseHandle(backup);
    const { lazy = true, ...parsed } = parseRestoreOptions(options);
    const deps = this.#backupDeps(handle.localBucket, parsed);
    return this.#backups.run(() => restoreBackup(deps, handle, lazy), deps.signal);
  }

  /**
   * Runs a command by the container's shell. An exit code other than 0 is a result, not an error.
   * @throws {CommandTimeoutError} when it takes longer than `timeout`
   * @throws the signal's reason when `options.signal` aborts
   */
  async exec(command: string, options?: ExecOptions): Promise<ExecResult> {
    const { options: parsed, ...rest } = parseArguments("exec", execArguments, { command, options });
    const { stream, onOutput, signal, ...request } = parsed;
    const output = { stdout: "", stderr: "" };
    let timestamp = new Date().toISOString();
    let result: ExecResult | undefined;
    for await (const event of (await this.#connect()).exec(
      await this.#withSessionEnv<ExecRequest>({ ...rest, ...request }),
      signal,
    )) {
      if (event.type === "start") timestamp = event.timestamp;
      else if (event.type === "complete") {
        const { exitCode, duration } = event;
        result = { success: exitCode === 0, exitCode, ...output, command, duration, timestamp };
      } else {
        output[event.type] += event.data;
        if (stream !== false && onOutput) await onOutput(event.type, event.data);
      }
    }
    if (result === undefined) throw new SandboxUnavailableError("The command's stream ended without its result");
    return result;
  }

  /**
   * Runs a command and gives its events as server-sent events, for `parseSSEStream`. Cancelling the stream kills it.
   * What goes wrong after the start is an event of type `error`.
   */
  async execStream(
    command: string,
    options?: Omit<ExecOptions, "stream" | "onOutput">,
  ): Promise<ReadableStream<Uint8Array>> {
    const { options: parsed, ...rest } = parseArguments("execStream", execArguments, { command, options });
    const { stream: _stream, onOutput: _onOutput, signal, ...request } = parsed;
    const events = (await this.#connect()).exec(
      await this.#withSessionEnv<ExecRequest>({ ...rest, ...request }),
      signal,
    );
    // RPC carries byte streams only.
    return new ReadableStream({
      type: "bytes",
      async pull(controller) {
        try {
          const { done, value } = await events.next();
          if (done) return controller.close();
          controller.enqueue(encodeEvent(value));
        } catch (error) {
          const { message, code, timestamp } = isSandboxError(error)
            ? error
            : new SandboxUnavailableError(String(error));
          controller.enqueue(encodeEvent({ type: "error", error: message, code, timestamp }));
          controller.close();
        }
      },
      async cancel() {
        await events.return(undefined);
      },
    });
  }

  /**
   * Writes a file; an existing one is replaced when all of the content has arrived.
   * @throws {FileNotFoundError} when the directory of the file does not exist; {PermissionDeniedError}, {FileSystemError}
   */
  async writeFile(
    path: string,
    content: string | Uint8Array | ReadableStream<Uint8Array>,
    options?: WriteFileOptions,
  ): Promise<FileResult> {
    const parsed = parseArguments("writeFile", writeFileArguments, { path, content, options });
    const encoded = encodeContent(parsed.content, parsed.options.encoding);
    await (await this.#connect(encoded instanceof ReadableStream)).writeFile(path, encoded);
    return fileResult(path);
  }

  /**
   * Reads a file. With `encoding: "none"` the content is a stream of its bytes, otherwise a string.
   * @throws {FileNotFoundError} {PermissionDeniedError} {FileSystemError}, also when a string would be larger than 20 MiB
   */
  async readFile(path: string, options: { encoding: "none" }): Promise<ReadFileResult<ReadableStream<Uint8Array>>>;
  async readFile(
    path: string,
    options?: { encoding?: "utf-8" | "utf8" | "base64" | undefined },
  ): Promise<ReadFileResult>;
  async readFile(path: string, options?: ReadFileOptions): Promise<ReadFileResult<string | ReadableStream<Uint8Array>>>;
  async readFile(
    path: string,
    options?: ReadFileOptions,
  ): Promise<ReadFileResult<string | ReadableStream<Uint8Array>>> {
    const { encoding } = parseArguments("readFile", readFileArguments, { path, options }).options;
    const { stream, size, mimeType } = await (await this.#connect()).readFile(path);
    const result = { ...fileResult(path), size: size ?? 0, mimeType };
    if (encoding === "none") return { ...result, content: stream, encoding };
    if (size !== undefined && size > LARGEST_STRING_FILE) {
      await stream.cancel();
      const limit = `${LARGEST_STRING_FILE / MiB} MiB`;
      throw new FileSystemError(
        `${path} has ${size} bytes, more than the ${limit} of a string: read it with encoding "none"`,
        { path },
      );
    }
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    result.size = bytes.length;
    const text = encoding === "base64" ? undefined : decodeText(bytes, encoding === undefined);
    if (text === undefined) return { ...result, content: encodeBase64(bytes), encoding: "base64" };
    return { ...result, content: text, encoding: "utf-8" };
  }

  /** Whether there is a file, directory or link of that path. */
  async exists(path: string): Promise<ExistsResult> {
    parseArguments("exists", pathArguments, { path });
    return { ...fileResult(path), exists: await (await this.#connect()).exists(path) };
  }

  /** Makes a directory; with `recursive` also its parents, and it may exist already. */
  async mkdir(path: string, options?: { recursive?: boolean | undefined }): Promise<MkdirResult> {
    const { recursive = false } = parseArguments("mkdir", mkdirArguments, { path, options }).options;
    await (await this.#connect()).changeFile({ action: "mkdir", path, recursive });
    return { ...fileResult(path), recursive };
  }

  /** Removes a file or a link. */
  async deleteFile(path: string): Promise<FileResult> {
    parseArguments("deleteFile", pathArguments, { path });
    await (await this.#connect()).changeFile({ action: "delete", path });
    return fileResult(path);
  }

  /** Gives a file or directory another path in the same file system. */
  async renameFile(path: string, newPath: string): Promise<MovedFileResult> {
    parseArguments("renameFile", twoPathsArguments, { path, newPath });
    await (await this.#connect()).changeFile({ action: "rename", path, newPath });
    return { ...fileResult(path), newPath };
  }

  /** Moves a file or directory, also to another file system, or into a directory that exists. */
  async moveFile(path: string, newPath: string): Promise<MovedFileResult> {
    parseArguments("moveFile", twoPathsArguments, { path, newPath });
    await (await this.#connect()).changeFile({ action: "move", path, newPath });
    return { ...fileResult(path), newPath };
  }

  /** What is in a directory. */
  async listFiles(path: string, options?: ListFilesOptions): Promise<ListFilesResult> {
    const { recursive = false, includeHidden = false } = parseArguments("listFiles", listFilesArguments, {
      path,
      options,
    }).options;
    const files = await (await this.#connect()).listFiles({ action: "list", path, recursive, includeHidden });
    return { ...fileResult(path), files, count: files.length };
  }

  /**
   * Clones a git repository.
   * @throws {GitCloneError} with git's own words
   */
  async gitCheckout(repoUrl: string, options?: GitCheckoutOptions): Promise<GitCheckoutResult> {
    const parsed = parseArguments("gitCheckout", gitCheckoutArguments, { repoUrl, options });
    const request = await this.#withSessionEnv<GitCheckoutRequest>({ repoUrl, ...parsed.options });
    const { branch, targetDir } = await (await this.#connect()).gitCheckout(request);
    return { success: true, repoUrl, branch, targetDir, timestamp: new Date().toISOString() };
  }

  /** Adds to the environment of the commands that follow; a variable that is undefined is taken out of it. */
  async setEnvVars(envVars: Record<string, string | undefined>): Promise<void> {
    parseArguments("setEnvVars", envSchema, envVars);
    const env: Record<string, string | undefined> = { ...(await this.#sessionEnv()), ...envVars };
    await this.ctx.storage.put(ENV_VARS_KEY, envSchema.parse(env));
  }

  /** Stops the sandbox; its files are gone, and so are the variables of `setEnvVars`. Backups stay. */
  async destroy(): Promise<void> {
    await this.ctx.storage.delete(ENV_VARS_KEY);
    await this.#findRuntime().stop();
  }

  /** For the client that `getSandbox` returns. @internal */
  async callFromClient({ method, args, callId, signalAt, sleepAfter }: ClientCall): Promise<Envelope> {
    if (sleepAfter !== undefined) this.sleepAfter = sleepAfter;
    const controller = new AbortController();
    if (callId !== undefined) this.#calls.set(callId, controller);
    try {
      const withSignal = args.map((arg, index) =>
        index === signalAt ? { ...(arg as object), signal: controller.signal } : arg,
      );
      return { ok: true, value: await this.#findMethod(method)(...withSignal) };
    } catch (error) {
      if (controller.signal.aborted && error === controller.signal.reason)
        return { ok: false, error: new OperationAbortedError().toJSON() };
      if (isSandboxError(error)) return { ok: false, error: error.toJSON() };
      throw error;
    } finally {
      if (callId !== undefined) this.#calls.delete(callId);
    }
  }

  /** For the client that `getSandbox` returns. @internal */
  async abortCall(callId: string): Promise<void> {
    this.#calls.get(callId)?.abort(new OperationAbortedError());
  }

  #findMethod(name: string): (...args: unknown[]) => unknown {
    const method = PLATFORM_METHODS.has(name) || name in DurableObject.prototype ? undefined : Reflect.get(this, name);
    if (typeof method === "function") return method.bind(this);
    throw new ValidationError(`The sandbox has no method ${name}`);
  }

  /** Removes what a backup has left in the bucket that was cut off with the Durable Object's last run. */
  async #removeUnfinished(): Promise<void> {
    for (const unfinished of await this.#unfinished.list()) {
      try {
        const bucket = backupBucket(this.env);
        // With its metadata there it is stored; only the note of that was cut off.
        if (!(await hasMetadata(bucket, unfinished.backupId)))
          await this.#transport(unfinished.uploadId === undefined).discard(unfinished);
        await this.#unfinished.forget(unfinished.backupId);
      } catch (error) {
        // The next start tries again.
        console.warn(`What backup ${unfinished.backupId} left in the bucket could not be removed: ${error}`);
      }
    }
  }

  #transport(localBucket: boolean): Transport {
    const bucket = backupBucket(this.env);
    return localBucket ? new BindingTransport(bucket) : new PresignedTransport(presignSettings(this.env));
  }

  #backupDeps(localBucket: boolean, options: RestoreOptions) {
    return {
      bucket: backupBucket(this.env),
      transport: this.#transport(localBucket),
      unfinished: this.#unfinished,
      connect: () => this.#connect(),
      now: () => new Date(),
      newId: () => crypto.randomUUID(),
      waitUntil: (work: Promise<unknown>) => this.ctx.waitUntil(work),
      signal: options.signal ?? new AbortController().signal,
      onProgress: (progress: BackupProgress) => report(options.onProgress, progress),
    };
  }

  /**
   * The agent of the running sandbox.
   * @param certain asks whether it runs: for a request that cannot be sent twice
   */
  async #connect(certain = false): Promise<AgentClient> {
    const runtime = this.#findRuntime();
    const sleepAfter = parseArguments("sleepAfter", durationSchema, this.sleepAfter);
    const start = () => runtime.start({ env: this.envVars, enableInternet: this.enableInternet, sleepAfter }, certain);
    await start();
    return new AgentClient(runtime, start);
  }

  #findRuntime(): Runtime {
    this.#runtime ??= this.#chooseRuntime();
    return this.#runtime;
  }

  #chooseRuntime(): Runtime {
    const host = findHost(this.env);
    if (host !== undefined) return new HostRuntime(host, this.ctx.id.toString());
    if (this.ctx.container !== undefined) return new ContainerRuntime(this.ctx.container);
    throw new SandboxUnavailableError(
      "This Durable Object has no container. Add its class to `containers` in the Wrangler configuration, or start local development with `npx sandbox-backup dev`.",
    );
  }

  async #sessionEnv(): Promise<Record<string, string>> {
    return (await this.ctx.storage.get<Record<string, string>>(ENV_VARS_KEY)) ?? {};
  }

  async #withSessionEnv<Request extends { env?: Record<string, string> | undefined }>(
    request: Request,
  ): Promise<Request> {
    return { ...request, env: { ...(await this.#sessionEnv()), ...request.env } };
  }
}

function fileResult(path: string): FileResult {
  return { success: true, path, timestamp: new Date().toISOString() };
}

function encodeContent(
  content: string | Uint8Array | ReadableStream<Uint8Array>,
  encoding: string,
): Uint8Array | ReadableStream<Uint8Array> {
  if (typeof content !== "string") return content;
  if (encoding !== "base64") return new TextEncoder().encode(content);
  const bytes = decodeBase64(content);
  if (bytes === undefined) throw new ValidationError("Invalid arguments of writeFile: `content` is not base64");
  return bytes;
}

/** A callback that came by RPC answers with a promise; when its client has gone away, there is nobody left to tell. */
function report(onProgress: RestoreOptions["onProgress"], progress: BackupProgress): void {
  const told: unknown = onProgress?.(progress);
  Promise.resolve(told).catch(() => {});
}
