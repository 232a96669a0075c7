import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { stat } from "node:fs/promises";
import { relative } from "node:path";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  BackupCreateError,
  BackupRestoreError,
  InvalidBackupConfigError,
  isSandboxError,
  OperationAbortedError,
  ValidationError,
} from "../../src/errors.js";
import {
  type ArchiveEvent,
  type ArchiveRequest,
  isAtOrUnder,
  type ProgressEvent,
  type RestoreEvent,
  type RestoreRequest,
  type UploadResult,
  type Urls,
} from "../../src/protocol.js";
import { ToolError } from "../run.js";
import { makeArchive } from "./archive.js";
import { isMissing, resolveDirectory } from "./directory.js";
import { downloadFile } from "./download.js";
import { writeExcludeFile } from "./exclude.js";
import { replaceDirectory } from "./extract.js";
import { Mounts } from "./mount.js";
import { DEFAULT_REQUEST_LIMITS, type RequestLimits, type UrlSource } from "./object-request.js";
import { Scratch, STORE_DIR } from "./scratch.js";
import { planParts, uploadFile } from "./upload.js";

/**
 * The agent's two operations on backups, each readable top to bottom, and what its client sends while one runs.
 */

/** URLs asked for at once: one round trip for many parts, in an event of bounded size. */
const URL_BATCH = 100;

type Emit<Event> = (event: Event) => Promise<void>;

/** What the client brings to an operation that runs. */
interface Operation {
  controller: AbortController;
  /** Resolves when nothing of it runs any more. */
  ended: Promise<void>;
  urls?: UrlRequests;
  /** Set while the archive waits to be taken. */
  takeArchive?: () => { size: number; stream: Readable };
  /** Set while the archive waits to be brought. */
  giveArchive?: (body: Readable) => Promise<void>;
}

export class BackupOperations {
  readonly #operations = new Map<string, Operation>();
  readonly #mounts = new Mounts();
  /** Restores change the mounts of the container, so there is one at a time. */
  #lastRestore: Promise<unknown> = Promise.resolve();

  constructor(private readonly limits: RequestLimits = limitsFromEnv()) {}

  /** Makes an archive and sends it to the bucket. Nothing of it is left in the container. */
  archive(request: ArchiveRequest, emit: Emit<ArchiveEvent>, signal: AbortSignal): Promise<ArchiveEvent> {
    return this.#run(request.operationId, signal, async (operation) => {
      try {
        return await this.#archive(request, emit, operation);
      } catch (error) {
        throw asBackupError(
          error,
          (message, facts) => new BackupCreateError(message, { dir: request.dir, ...facts }, { cause: error }),
        );
      }
    });
  }

  /** Brings a directory back from an archive in the bucket. */
  restore(request: RestoreRequest, emit: Emit<RestoreEvent>, signal: AbortSignal): Promise<RestoreEvent> {
    return this.#run(request.operationId, signal, async (operation) => {
      const { dir, backupId } = request;
      const previous = this.#lastRestore;
      const current = previous.then(() => this.#restore(request, emit, operation));
      this.#lastRestore = current.catch(() => {});
      try {
        return await current;
      } catch (error) {
        throw asBackupError(
          error,
          (message, facts) => new BackupRestoreError(message, { dir, backupId, ...facts }, { cause: error }),
        );
      }
    });
  }

  /** Takes the client's answer to `need-urls`. */
  answerUrls(id: string, { urls }: Urls): void {
    const waiting = this.#find(id).urls;
    for (const { part, url } of urls) waiting?.answer(part, url);
  }

  /** Gives the archive that was made to the client. */
  takeArchive(id: string): { size: number; stream: Readable } {
    const { takeArchive } = this.#find(id);
    if (takeArchive === undefined) throw new ValidationError(`Operation ${id} has no archive to be taken now`);
    return takeArchive();
  }

  /** Takes the archive to restore from the client. Resolves when all of it is on the disk. */
  async giveArchive(id: string, body: Readable): Promise<void> {
    const { giveArchive } = this.#find(id);
    if (giveArchive === undefined) throw new ValidationError(`Operation ${id} waits for no archive now`);
    await giveArchive(body);
  }

  /** Stops an operation; resolves when nothing of it runs any more. Does nothing when there is no such operation. */
  async stop(id: string): Promise<void> {
    const operation = this.#operations.get(id);
    operation?.controller.abort(new OperationAbortedError());
    await operation?.ended;
  }

  /** Stops all operations and takes all mounts down. */
  async shutdown(): Promise<void> {
    await Promise.all([...this.#operations.keys()].map((id) => this.stop(id)));
    await this.#mounts.shutdown();
  }

  async #archive(request: ArchiveRequest, emit: Emit<ArchiveEvent>, operation: Operation): Promise<ArchiveEvent> {
    const { signal } = operation.controller;
    const dir = await resolveSource(request.dir);
    await using scratch = await Scratch.create(request.operationId);
    const file = scratch.file("archive.sqsh");

    await emit({ type: "progress", phase: "archive", bytesDone: 0, bytesExpected: null });
    await this.#mounts.countLinks(dir, signal);
    const excludeFile = scratch.file("exclude");
    const excludes = await writeExcludeFile(excludeFile, {
      dir,
      gitignore: request.gitignore,
      excludes: request.excludes,
      paths: isAtOrUnder(STORE_DIR, dir) ? [relative(dir, STORE_DIR)] : [],
      signal,
    });
    const size = await makeArchive({
      dir,
      file,
      excludeFile: excludes ? excludeFile : undefined,
      compression: request.compression,
      signal,
      onProgress: reporter(emit, "archive", null),
    });
    const [sha256, upload] = await bothOrNeither(operation.controller, [
      digest(file, signal),
      this.#send(request, file, size, emit, operation),
    ]);
    return { type: "done", size, sha256, upload };
  }

  async #send(
    request: ArchiveRequest,
    file: string,
    size: number,
    emit: Emit<ArchiveEvent>,
    operation: Operation,
  ): Promise<UploadResult> {
    const { signal } = operation.controller;
    if (request.transfer === "stream") {
      await waitUntilTaken(file, size, emit, reporter(emit, "upload", size), operation);
      return { kind: "stream" };
    }
    const parts = planParts(size, request.multipart);
    const urls = this.#openUrls(operation, emit, parts.at(-1)?.number ?? 0);
    return uploadFile({ file, parts, urls, limits: this.limits, signal, onProgress: reporter(emit, "upload", size) });
  }

  async #restore(request: RestoreRequest, emit: Emit<RestoreEvent>, operation: Operation): Promise<RestoreEvent> {
    const { signal } = operation.controller;
    signal.throwIfAborted();
    const dir = await resolveDirectory(request.dir);
    await using scratch = await Scratch.create(request.operationId);
    const file = scratch.file("archive.sqsh");

    await this.#fetch(request, file, emit, operation);
    await verify(request, file, emit, signal);
    if (request.method === "mount") {
      await emit({ type: "progress", phase: "mount", bytesDone: 0, bytesExpected: null });
      await this.#mounts.mount(dir, scratch.path, signal);
      scratch.keep();
    } else {
      await emit({ type: "progress", phase: "extract", bytesDone: 0, bytesExpected: null });
      const stagingName = `.sandbox-backup-${request.operationId}`;
      await replaceDirectory({ archive: file, dir, stagingName, mounts: this.#mounts, signal });
    }
    return { type: "done" };
  }

  async #fetch(request: RestoreRequest, file: string, emit: Emit<RestoreEvent>, operation: Operation): Promise<void> {
    const { signal } = operation.controller;
    const { size, etag } = request.archive;
    const onProgress = reporter(emit, "download", size);
    if (request.transfer === "stream") return waitUntilGiven(file, size, emit, onProgress, operation);
    const urls = this.#openUrls(operation, emit, 0);
    await downloadFile({ file, size, etag, urls, limits: this.limits, signal, onProgress });
  }

  #openUrls(operation: Operation, emit: Emit<ArchiveEvent & RestoreEvent>, lastPart: number): UrlSource {
    operation.urls = new UrlRequests(
      (parts) => emit({ type: "need-urls", parts }),
      lastPart,
      operation.controller.signal,
    );
    return operation.urls;
  }

  #find(id: string): Operation {
    const operation = this.#operations.get(id);
    if (operation === undefined) throw new ValidationError(`There is no operation ${id}; it may have ended`);
    return operation;
  }

  /** Registers an operation while it runs. It is aborted by its client's `signal` or by `stop`. */
  async #run<Result>(
    id: string,
    signal: AbortSignal,
    work: (operation: Operation) => Promise<Result>,
  ): Promise<Result> {
    if (this.#operations.has(id)) throw new ValidationError(`Operation ${id} runs already`);
    const controller = new AbortController();
    const abort = () => controller.abort(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    if (signal.aborted) abort();
    let markEnded = () => {};
    const ended = new Promise<void>((resolve) => {
      markEnded = resolve;
    });
    const operation: Operation = { controller, ended };
    this.#operations.set(id, operation);
    try {
      return await work(operation);
    } finally {
      signal.removeEventListener("abort", abort);
      this.#operations.delete(id);
      markEnded();
    }
  }
}

/** Asks the client for URLs, many at once, and waits for the answers. */
class UrlRequests implements UrlSource {
  readonly #answers = new Map<number, PromiseWithResolversOf<string>>();

  constructor(
    private readonly ask: (parts: number[]) => Promise<void>,
    private readonly lastPart: number,
    private readonly signal: AbortSignal,
  ) {
    signal.addEventListener("abort", () => {
      for (const answer of this.#answers.values()) answer.reject(signal.reason);
    });
  }

  async get(part: number): Promise<string> {
    const known = this.#answers.get(part);
    if (known !== undefined) return known.promise;
    const count = Math.min(URL_BATCH, this.lastPart - part + 1);
    return this.#request(
      Array.from({ length: Math.max(count, 1) }, (_, index) => part + index),
      part,
    );
  }

  async renew(part: number, refused: string): Promise<string> {
    const known = this.#answers.get(part);
    // The ranges of a download share one URL: the first that is refused asks for another, the others wait for that.
    if (known !== undefined && (await known.promise) !== refused) return known.promise;
    if (this.#answers.get(part) !== known) return this.renew(part, refused);
    return this.#request([part], part);
  }

  answer(part: number, url: string): void {
    this.#answers.get(part)?.resolve(url);
  }

  async #request(parts: number[], wanted: number): Promise<string> {
    this.signal.throwIfAborted();
    for (const part of parts) this.#answers.set(part, withResolvers());
    const answer = this.#answers.get(wanted);
    await this.ask(parts);
    if (answer === undefined) throw new Error(`part ${wanted} is not among the ones asked for`);
    return answer.promise;
  }
}

interface PromiseWithResolversOf<Value> {
  promise: Promise<Value>;
  resolve: (value: Value) => void;
  reject: (reason: unknown) => void;
}

/** `Promise.withResolvers`, which Node 20 lacks. A rejection that nobody awaits any more is not an error. */
function withResolvers<Value>(): PromiseWithResolversOf<Value> {
  let resolve: (value: Value) => void = () => {};
  let reject: (reason: unknown) => void = () => {};
  const promise = new Promise<Value>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  promise.catch(() => {});
  return { promise, resolve, reject };
}

/** Offers the archive to the client and waits until all of it has been taken. */
async function waitUntilTaken(
  file: string,
  size: number,
  emit: Emit<ArchiveEvent>,
  onProgress: (bytesDone: number) => void,
  operation: Operation,
): Promise<void> {
  const taken = withResolvers<void>();
  const { signal } = operation.controller;
  signal.addEventListener("abort", () => taken.reject(signal.reason));
  operation.takeArchive = () => {
    const stream = createReadStream(file, { signal });
    countBytes(stream, onProgress);
    stream.once("end", taken.resolve).once("error", taken.reject);
    return { size, stream };
  };
  await emit({ type: "need-transfer", size });
  signal.throwIfAborted();
  await taken.promise;
}

/** Asks the client for the archive and waits until it is on the disk. */
async function waitUntilGiven(
  file: string,
  size: number,
  emit: Emit<RestoreEvent>,
  onProgress: (bytesDone: number) => void,
  operation: Operation,
): Promise<void> {
  const given = withResolvers<void>();
  const { signal } = operation.controller;
  signal.addEventListener("abort", () => given.reject(signal.reason));
  operation.giveArchive = async (body) => {
    countBytes(body, onProgress);
    const written = pipeline(body, createWriteStream(file, { mode: 0o600 }), { signal });
    written.then(given.resolve, given.reject);
    await written;
  };
  await emit({ type: "need-transfer", size });
  signal.throwIfAborted();
  await given.promise;
}

/** Reports the bytes that pass; whoever reads the stream sets its pace. */
function countBytes(stream: Readable, onProgress: (bytesDone: number) => void): void {
  let bytesDone = 0;
  stream.on("data", (chunk: Buffer) => {
    bytesDone += chunk.length;
    onProgress(bytesDone);
  });
}

/** The archive has to be, byte for byte, the one that was stored. One that has no digest is known by its size alone. */
async function verify(
  request: RestoreRequest,
  file: string,
  emit: Emit<RestoreEvent>,
  signal: AbortSignal,
): Promise<void> {
  const { size, sha256 } = request.archive;
  const { dir, backupId } = request;
  const got = (await stat(file)).size;
  if (got !== size) {
    throw new BackupRestoreError(`The archive arrived with ${got} bytes instead of ${size}`, { dir, backupId });
  }
  if (sha256 === null) return;
  await emit({ type: "progress", phase: "verify", bytesDone: 0, bytesExpected: size });
  if ((await digest(file, signal, reporter(emit, "verify", size))) !== sha256) {
    throw new BackupRestoreError("The archive is damaged: its SHA-256 is not the one recorded when it was made", {
      dir,
      backupId,
    });
  }
}

async function digest(file: string, signal: AbortSignal, onProgress = (_bytesDone: number) => {}): Promise<string> {
  const hash = createHash("sha256");
  const stream = createReadStream(file, { highWaterMark: 1 << 20 });
  countBytes(stream, onProgress);
  await pipeline(stream, hash, { signal });
  return hash.digest("hex");
}

async function resolveSource(dir: string): Promise<string> {
  const real = await resolveDirectory(dir);
  const stats = await stat(real).catch((error: unknown) => {
    if (isMissing(error)) throw new BackupCreateError(`The directory ${dir} does not exist`, { dir });
    throw error;
  });
  if (!stats.isDirectory()) throw new BackupCreateError(`${dir} is not a directory`, { dir });
  return real;
}

/** Waits for both; when one fails, stops the other and waits until it has ended. */
async function bothOrNeither<A, B>(controller: AbortController, work: [Promise<A>, Promise<B>]): Promise<[A, B]> {
  try {
    return await Promise.all(work);
  } catch (error) {
    controller.abort(error);
    await Promise.allSettled(work);
    throw error;
  }
}

/** Reports progress a few times a second at most. */
function reporter(
  emit: Emit<ProgressEvent>,
  phase: ProgressEvent["phase"],
  bytesExpected: number | null,
): (bytesDone: number) => void {
  let last = 0;
  return (bytesDone) => {
    const now = Date.now();
    if (now - last < 200 && bytesDone !== bytesExpected) return;
    last = now;
    void emit({ type: "progress", phase, bytesDone, bytesExpected });
  };
}

/** What a failure is called at the caller. Errors that say already what was wrong, and the caller's own abort, stay. */
function asBackupError(
  error: unknown,
  build: (message: string, facts: { exitCode?: number; stderr?: string }) => Error,
): Error {
  if (isSandboxError(error)) return error;
  if (error instanceof ToolError) {
    const { exitCode, stderr } = error.facts;
    return build(error.message, { ...(exitCode === undefined ? {} : { exitCode }), stderr: stderr.toString() });
  }
  return build(describe(error), {});
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (!("code" in error)) return error.message;
  switch (error.code) {
    case "ENOSPC":
      return "No space left on the container's disk";
    case "EACCES":
      return `${error.message} (the agent keeps its files in ${STORE_DIR}; SANDBOX_BACKUP_DIR names another place)`;
    default:
      return error.message;
  }
}

/** SANDBOX_BACKUP_STALL_TIMEOUT, in ms, is for networks on which a minute without a byte is normal, or too long. */
function limitsFromEnv(): RequestLimits {
  const stallTimeout = process.env.SANDBOX_BACKUP_STALL_TIMEOUT;
  if (stallTimeout === undefined) return DEFAULT_REQUEST_LIMITS;
  const milliseconds = Number(stallTimeout);
  if (!(milliseconds > 0)) {
    throw new InvalidBackupConfigError(
      `SANDBOX_BACKUP_STALL_TIMEOUT is ${stallTimeout} and has to be a number of ms above 0`,
    );
  }
  return { ...DEFAULT_REQUEST_LIMITS, stallTimeout: milliseconds };
}
