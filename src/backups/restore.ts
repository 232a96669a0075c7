import { BackupNotFoundError, BackupRestoreError, InvalidBackupConfigError, isSandboxError } from "../errors.js";
import type { AgentClient, OperationOptions } from "../runtime/agent-client.js";
import { archiveKey, headArchive, readMetadata, type StoredArchive } from "./bucket.js";
import { assertNotExpired, type BackupMetadata } from "./metadata.js";
import type { RestoreBackupResult } from "./options.js";
import type { Transport } from "./transport.js";

export interface RestoreDeps extends OperationOptions {
  bucket: R2Bucket;
  transport: Transport;
  /** Starts the sandbox if need be. */
  connect: () => Promise<AgentClient>;
  now: () => Date;
  newId: () => string;
  /** Keeps the Durable Object running for what goes on after the call. */
  waitUntil: (work: Promise<unknown>) => void;
}

/**
 * Checks that a backup is there, whole and in time, and has the agent bring it back.
 * @throws {BackupNotFoundError} {@link BackupExpiredError} {@link BackupRestoreError}; then the directory is as before
 */
export async function restoreBackup(
  deps: RestoreDeps,
  { id, dir }: { id: string; dir: string },
  lazy: boolean,
): Promise<RestoreBackupResult> {
  try {
    const [metadata, stored] = await Promise.all([readMetadata(deps.bucket, id, dir), headArchive(deps.bucket, id)]);
    assertNotExpired(metadata, deps.now());
    const archive = assertUnchanged(stored, metadata, dir);
    await fetchArchive(deps, dir, archive, metadata, lazy);
    return { success: true, dir, id };
  } catch (error) {
    deps.signal.throwIfAborted();
    throw asRestoreError(error, dir, id);
  }
}

/** The archive has to be the object that the metadata was written for. */
function assertUnchanged(
  stored: StoredArchive | null,
  { id, sizeBytes, etag }: BackupMetadata,
  dir: string,
): StoredArchive {
  const context = { dir, backupId: id };
  if (stored === null) {
    throw new BackupNotFoundError(`Backup ${id} has lost its archive: the bucket has no ${archiveKey(id)}`, {
      backupId: id,
    });
  }
  if (stored.size !== sizeBytes) {
    throw new BackupRestoreError(`The archive has ${stored.size} bytes, but ${sizeBytes} were stored`, context);
  }
  if (etag !== undefined && stored.etag !== etag) {
    throw new BackupRestoreError("The archive was changed after the backup was made: its ETag is another", context);
  }
  return stored;
}

async function fetchArchive(
  { connect, transport, newId, waitUntil, signal, onProgress }: RestoreDeps,
  dir: string,
  stored: StoredArchive,
  { id, digests, sha256 }: BackupMetadata,
  lazy: boolean,
): Promise<void> {
  const { transfer, method } = transport;
  const download = transport.download(id, stored);
  const [urls, agent] = await Promise.all([download.firstUrls(), connect()]);
  const archive = { ...stored, digests: digests ?? null, sha256: sha256 ?? null };
  const request = { operationId: newId(), backupId: id, dir, archive, transfer, method, lazy, urls };
  const { rest } = await agent.restore(request, download, { signal, onProgress });
  waitUntil(rest);
}

const OWN_CODES = new Set(["INVALID_BACKUP_CONFIG", "BACKUP_NOT_FOUND", "BACKUP_EXPIRED"]);

function asRestoreError(error: unknown, dir: string, backupId: string): Error {
  if (error instanceof InvalidBackupConfigError || (isSandboxError(error) && OWN_CODES.has(error.code))) return error;
  const message = error instanceof Error ? error.message : String(error);
  const context =
    error instanceof BackupRestoreError ? error.context : isSandboxError(error) ? { cause: error.code } : {};
  return new BackupRestoreError(message, { ...context, dir, backupId }, { cause: error });
}
