import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat, statfs } from "node:fs/promises";
import { dirname, relative } from "node:path";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  BackupCreateError,
  BackupRestoreError,
  isSandboxError,
  OperationAbortedError,
  ValidationError,
} from "../../src/errors.js";
import { withResolvers } from "../../src/promises.js";
import {
  type ArchiveEvent,
  type ArchiveRequest,
  isAtOrUnder,
  MiB,
  type PartUrl,
  type ProgressEvent,
  type RestoreEvent,
  type RestoreRequest,
  type Urls,
  WHOLE_OBJECT,
} from "../../src/protocol.js";
import { log } from "../log.js";
import { ToolError } from "../run.js";
import { numberSetting } from "../settings.js";
import { makeArchive } from "./archive.js";
import { ArchiveCache } from "./cache.js";
import { Delivery, Offer } from "./client-transfer.js";
import { DamagedArchiveError, ExpectedDigests } from "./digests.js";
import { isKnownToHold, isMissing, resolveDirectory } from "./directory.js";
import { downloadFile, type RemoteArchive } from "./download.js";
import { writeExcludeFile } from "./exclude.js";
import { replaceDirectory } from "./extract.js";
import { archivePath, stopLayer } from "./layers.js";
import { Mounts } from "./mount.js";
import { DEFAULT_REQUEST_LIMITS, type RequestLimits, type UrlSource } from "./object-request.js";
import { mountRemote, type RemoteLayer } from "./remote-layer.js";
import { Scratch, STORE_DIR } from "./scratch.js";
import {
  CERTAINLY_IN_PARTS,
  MOST_PARTS,
  type SentArchive,
  type UploadSizes,
  uploadArchive,
  uploadSizes,
} from "./upload.js";
import { UrlRequests } from "./url-requests.js";

/**
 * The agent's two operations on backups, each readable top to bottom, and what its client sends while one runs.
 */

/** A larger archive is mounted before it is fetched; a smaller one is there sooner than the process that would serve it. In MiB. */
const LAZY_THRESHOLD = 32;

type Emit<Event> = (event: Event) => Promise<void>;

/** What the client brings to an operation that runs. */
interface Operation {
  controller: AbortController;
  /** Resolves when nothing of it runs any more. */
  ended: Promise<void>;
  urls?: UrlRequests;
  /** The archive that waits to be taken. */
  offer?: Offer;
  /** The archive that waits to be brought. */
  delivery?: Delivery;
}

export class BackupOperations {
  readonly #operations = new Map<string, Operation>();
  readonly #mounts = new Mounts();
  readonly #cache = new ArchiveCache();
  /** Resolves when nothing changes the mounts of the container any more. */
  #mounting: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly limits: RequestLimits = limitsFromEnv(),
    /** In bytes. SANDBOX_BACKUP_LAZY, in MiB, is for those who want more archives mounted before they are fetched, or less. */
    private readonly lazyThreshold = (numberSetting("SANDBOX_BACKUP_LAZY", "MiB", 0) ?? LAZY_THRESHOLD) * MiB,
  ) {}

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
      try {
        const remote = await this.#inTurn(() => this.#restore(request, emit, operation));
        if (remote !== undefined) {
          await emit({ type: "mounted" });
          await this.#keepWhenFilled(remote, request, operation);
        }
        return { type: "done" };
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
    const { offer } = this.#find(id);
    if (offer === undefined) throw new ValidationError(`Operation ${id} has no archive to be taken now`);
    return offer.take();
  }

  /** Takes the archive to restore from the client. Resolves when all of it is on the disk. */
  async giveArchive(id: string, body: Readable): Promise<void> {
    const { delivery } = this.#find(id);
    if (delivery === undefined) throw new ValidationError(`Operation ${id} waits for no archive now`);
    await delivery.give(body);
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
    await this.#cache.trim();

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
    const archive = makeArchive({
      dir,
      file,
      excludeFile: excludes ? excludeFile : undefined,
      compression: request.compression,
      signal,
      onProgress: reporter(emit, "archive"),
    });
    const sent = await this.#send(request, file, archive, emit, operation);
    const size = await archive;
    await this.#cache.keep(file, { backupId: request.backupId, size, digests: sent.digests });
    return { type: "done", size, ...sent };
  }

  /** Sends the archive; when it cannot be made or cannot be sent, nothing of either runs any more. */
  async #send(
    request: ArchiveRequest,
    file: string,
    archive: Promise<number>,
    emit: Emit<ArchiveEvent>,
    operation: Operation,
  ): Promise<SentArchive> {
    const { signal } = operation.controller;
    const { dir, gitignore, excludes, transfer, multipart } = request;
    const onProgress = reporter(emit, "upload");
    try {
      const sizes = await sizesFor(dir, file);
      if (transfer === "stream") {
        const size = await archive;
        operation.offer = new Offer({ file, size, chunkSize: sizes.chunk, signal, onProgress });
        await emit({ type: "need-transfer", size });
        return await operation.offer.taken;
      }
      const urls = this.#openUrls(operation, request.urls, emit, MOST_PARTS);
      const { limits } = this;
      // While mksquashfs looks at every file. What is left out may be the most of a directory.
      const beginAtOnce =
        gitignore || excludes.length > 0 ? Promise.resolve(false) : isKnownToHold(dir, CERTAINLY_IN_PARTS);
      const options = { file, finished: archive, multipart, beginAtOnce, sizes, urls, limits, signal, onProgress };
      // mksquashfs has given its memory back then, and the last parts alone would not fill the bandwidth.
      return await uploadArchive({ ...options, moreWhenWhole: limits.concurrency });
    } catch (error) {
      operation.controller.abort(error);
      await archive.catch(() => {}); // It was stopped; or its failure is the one that is thrown.
      throw error;
    }
  }

  /** @returns what still fetches the archive, when the directory was mounted before */
  async #restore(
    request: RestoreRequest,
    emit: Emit<RestoreEvent>,
    operation: Operation,
  ): Promise<RemoteLayer | undefined> {
    const { signal } = operation.controller;
    signal.throwIfAborted();
    const dir = await resolveDirectory(request.dir);
    await using scratch = await Scratch.create(request.operationId);
    const file = archivePath(scratch.path);

    const remote = await this.#provide(request, file, emit, operation);
    if (request.method === "mount") {
      await emit({ type: "progress", phase: "mount", bytesDone: 0, bytesExpected: null });
      try {
        await this.#mounts.mount(dir, scratch.path, signal, remote?.layer);
      } catch (error) {
        if (remote === undefined) throw error;
        const reason = signal.aborted ? undefined : remote.failure();
        await stopLayer(remote.layer);
        throw reason ?? error;
      }
      scratch.keep();
    } else {
      await emit({ type: "progress", phase: "extract", bytesDone: 0, bytesExpected: null });
      const stagingName = `.sandbox-backup-${request.operationId}`;
      await replaceDirectory({ archive: file, dir, stagingName, mounts: this.#mounts, signal });
    }
    return remote;
  }

  /** Has the archive be at `file`: from the cache, or while it is being fetched, or when it was fetched. */
  async #provide(
    request: RestoreRequest,
    file: string,
    emit: Emit<RestoreEvent>,
    operation: Operation,
  ): Promise<RemoteLayer | undefined> {
    const identity = { backupId: request.backupId, ...request.archive };
    await this.#cache.trim();
    if (await this.#cache.lend(identity, file)) return undefined;
    const remote = await this.#mountRemote(request, file, emit, operation);
    if (remote !== undefined) return remote;
    await this.#fetch(request, file, emit, operation);
    await verify(request, file, emit, operation.controller.signal);
    await this.#cache.keep(file, identity);
    return undefined;
  }

  /** @returns undefined when the archive is to be fetched first */
  async #mountRemote(
    request: RestoreRequest,
    file: string,
    emit: Emit<RestoreEvent>,
    operation: Operation,
  ): Promise<RemoteLayer | undefined> {
    const { backupId, archive, method, transfer, lazy } = request;
    const { digests, size } = archive;
    if (!lazy || method !== "mount" || transfer !== "urls" || size <= this.lazyThreshold) return undefined;
    // Without them no part of it can be checked before all of it is there.
    if (digests === null) return undefined;
    const { signal } = operation.controller;
    const urls = this.#openUrls(operation, request.urls, emit, WHOLE_OBJECT);
    const layers = dirname(file);
    try {
      return await mountRemote({
        layers,
        backupId,
        archive: { ...archive, digests },
        urls,
        limits: this.limits,
        signal,
      });
    } catch (error) {
      if (!(error instanceof ToolError)) throw error;
      log("remote-archive", { outcome: "not-allowed", backupId, message: error.message });
      return undefined;
    }
  }

  /** The directory works, whatever comes of this; what it cannot bring, its readers are told. */
  async #keepWhenFilled(
    { layer, filled }: RemoteLayer,
    { backupId, archive }: RestoreRequest,
    { controller: { signal } }: Operation,
  ): Promise<void> {
    const kept = filled.then(async (file) => {
      await this.#cache.keep(file, { backupId, ...archive });
      await this.#inTurn(() => this.#mounts.endSource(layer, file));
    });
    // It was logged, or the directory was replaced meanwhile, or there is nobody any more who waits.
    await Promise.race([kept, withResolvers<never>(signal).promise]).catch(() => {});
  }

  async #fetch(request: RestoreRequest, file: string, emit: Emit<RestoreEvent>, operation: Operation): Promise<void> {
    const { signal } = operation.controller;
    const archive = remoteArchive(request);
    const onProgress = reporter(emit, "download", archive.size);
    if (request.transfer === "stream") {
      operation.delivery = new Delivery({ file, archive, signal, onProgress });
      await emit({ type: "need-transfer", size: archive.size });
      return operation.delivery.given;
    }
    const urls = this.#openUrls(operation, request.urls, emit, WHOLE_OBJECT);
    await downloadFile({ file, archive, urls, limits: this.limits, signal, onProgress });
  }

  #openUrls(
    operation: Operation,
    known: readonly PartUrl[],
    emit: Emit<ArchiveEvent & RestoreEvent>,
    lastPart: number,
  ): UrlSource {
    const ask = (parts: number[]) => emit({ type: "need-urls", parts });
    operation.urls = new UrlRequests(known, ask, lastPart, operation.controller.signal);
    return operation.urls;
  }

  #find(id: string): Operation {
    const operation = this.#operations.get(id);
    if (operation === undefined) throw new ValidationError(`There is no operation ${id}; it may have ended`);
    return operation;
  }

  /** Does what changes the mounts of the container when nothing else does. */
  #inTurn<Result>(work: () => Promise<Result>): Promise<Result> {
    const current = this.#mounting.then(work);
    this.#mounting = current.catch(() => {}); // Its caller is told.
    return current;
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
    const ended = withResolvers<void>();
    const operation: Operation = { controller, ended: ended.promise };
    this.#operations.set(id, operation);
    try {
      return await work(operation);
    } finally {
      signal.removeEventListener("abort", abort);
      this.#operations.delete(id);
      // Whoever still asks for a URL, as what serves an archive may, gets no answer any more.
      controller.abort(new Error("the operation has ended"));
      ended.resolve();
    }
  }
}

/** The disk of the archive limits what it can be, and that of the directory tells what it is likely to be. */
async function sizesFor(dir: string, file: string): Promise<UploadSizes> {
  const [store, source] = await Promise.all([statfs(dirname(file)), statfs(dir)]);
  return uploadSizes(store.bavail * store.bsize, (source.blocks - source.bfree) * source.bsize);
}

function remoteArchive({ archive: { size, etag, digests } }: RestoreRequest): RemoteArchive {
  return { size, etag, digests: digests === null ? undefined : new ExpectedDigests(digests, size) };
}

/** An archive has to have its size; and its digest, where there is only one for the whole. */
async function verify(
  request: RestoreRequest,
  file: string,
  emit: Emit<RestoreEvent>,
  signal: AbortSignal,
): Promise<void> {
  const { size, digests, sha256 } = request.archive;
  const got = (await stat(file)).size;
  if (got !== size) throw new Error(`The archive arrived with ${got} bytes instead of ${size}`);
  if (digests !== null || sha256 === null) return;
  const onProgress = reporter(emit, "verify", size);
  const hash = createHash("sha256");
  const stream = createReadStream(file, { highWaterMark: MiB });
  let bytesDone = 0;
  stream.on("data", (bytes) => {
    bytesDone += bytes.length;
    onProgress(bytesDone);
  });
  await pipeline(stream, hash, { signal });
  if (hash.digest("hex") !== sha256) throw new DamagedArchiveError();
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

/** Reports progress a few times a second at most, and the end. */
function reporter(
  emit: Emit<ProgressEvent>,
  phase: ProgressEvent["phase"],
  total: number | null = null,
): (bytesDone: number, bytesExpected?: number | null) => void {
  let last = 0;
  return (bytesDone, bytesExpected = total) => {
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
  const stallTimeout = numberSetting("SANDBOX_BACKUP_STALL_TIMEOUT", "ms", 1);
  return stallTimeout === undefined ? DEFAULT_REQUEST_LIMITS : { ...DEFAULT_REQUEST_LIMITS, stallTimeout };
}
