import { BackupCreateError, InvalidBackupConfigError, isSandboxError } from "../errors.js";
import { allEnded } from "../promises.js";
import type { ArchiveResult } from "../protocol.js";
import type { AgentClient, OperationOptions } from "../runtime/agent-client.js";
import { deleteBackup, headArchive, writeMetadata } from "./bucket.js";
import type { BackupMetadata } from "./metadata.js";
import type { DirectoryBackup, ResolvedBackupOptions } from "./options.js";
import type { Transport, Upload } from "./transport.js";
import type { UnfinishedBackups } from "./unfinished.js";

export interface CreateDeps extends OperationOptions {
  bucket: R2Bucket;
  transport: Transport;
  unfinished: UnfinishedBackups;
  /** Starts the sandbox if need be. */
  connect: () => Promise<AgentClient>;
  now: () => Date;
  newId: () => string;
}

/**
 * Archives a directory, sends the archive to the bucket and, when that is there, writes the backup's metadata: a backup
 * exists if and only if its metadata does.
 * @throws {BackupCreateError} when any of this fails; then nothing of the backup is left
 */
export async function createBackup(deps: CreateDeps, options: ResolvedBackupOptions): Promise<DirectoryBackup> {
  const backupId = deps.newId();
  const upload = deps.transport.upload(backupId, (uploadId) => deps.unfinished.record({ backupId, uploadId }));
  try {
    await deps.unfinished.record({ backupId });
    const archive = await sendArchive(deps, options, backupId, upload);
    const etag = await upload.complete(archive);
    deps.signal.throwIfAborted();
    const metadata = describeBackup(backupId, options, archive, etag, deps.now());
    // Side by side: nobody knows the backup's id before both have succeeded.
    await allEnded([assertStored(deps.bucket, backupId, archive.size, etag), writeMetadata(deps.bucket, metadata)]);
    await deps.unfinished.forget(backupId);
    return { id: backupId, dir: options.dir, ...(options.localBucket ? { localBucket: true } : {}) };
  } catch (error) {
    const leftover = await removeTraces(deps, backupId, upload);
    deps.signal.throwIfAborted();
    throw asCreateError(error, options.dir, backupId, leftover);
  }
}

async function sendArchive(
  { connect, transport, signal, onProgress }: CreateDeps,
  { dir, gitignore, excludes, compression, multipart }: ResolvedBackupOptions,
  backupId: string,
  upload: Upload,
): Promise<ArchiveResult> {
  const { transfer } = transport;
  const [urls, agent] = await Promise.all([upload.firstUrls(), connect()]);
  const request = { operationId: backupId, backupId, dir, gitignore, excludes, compression, multipart, transfer, urls };
  return agent.archive(request, upload, { signal, onProgress });
}

/** The bucket has to hold what was sent, by its own account. */
async function assertStored(bucket: R2Bucket, backupId: string, size: number, etag: string): Promise<void> {
  const stored = await headArchive(bucket, backupId);
  const expected = `${size} bytes with ETag ${etag}`;
  if (stored === null) {
    throw new Error(
      "the archive was sent, but BACKUP_BUCKET does not have it. Is BACKUP_BUCKET_NAME the bucket of that binding?",
    );
  }
  if (stored.size !== size || stored.etag !== etag) {
    throw new Error(`the bucket stored ${stored.size} bytes with ETag ${stored.etag} instead of ${expected}`);
  }
}

function describeBackup(
  id: string,
  { dir, name, ttl }: ResolvedBackupOptions,
  { size, digests }: ArchiveResult,
  etag: string,
  now: Date,
): BackupMetadata {
  return { id, dir, name, sizeBytes: size, ttl, createdAt: now.toISOString(), etag, digests };
}

/** @returns why something could not be removed, or undefined when all is gone */
async function removeTraces(
  { bucket, unfinished }: CreateDeps,
  backupId: string,
  upload: Upload,
): Promise<string | undefined> {
  const removals = await Promise.allSettled([upload.abort(), deleteBackup(bucket, backupId)]);
  const failed = removals.find((removal) => removal.status === "rejected");
  if (failed !== undefined) return String(failed.reason);
  await unfinished.forget(backupId);
  return undefined;
}

function asCreateError(error: unknown, dir: string, backupId: string, leftover: string | undefined): Error {
  if (error instanceof InvalidBackupConfigError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const context =
    error instanceof BackupCreateError ? error.context : isSandboxError(error) ? { cause: error.code } : {};
  const warning =
    leftover === undefined ? "" : `. What had been sent could not be removed from the bucket: ${leftover}`;
  return new BackupCreateError(`${message}${warning}`, { ...context, dir, backupId }, { cause: error });
}
