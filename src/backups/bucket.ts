import { BackupNotFoundError, BackupRestoreError } from "../errors.js";
import { type BackupMetadata, metadataSchema } from "./metadata.js";

/** Where backups are in the bucket, and the small calls on its binding. */

/** Keys of a backup's two objects: the layout of Sandbox SDK 0.12. */
export const archiveKey = (id: string) => `backups/${id}/data.sqsh`;
export const metadataKey = (id: string) => `backups/${id}/meta.json`;

/** What the bucket says of an archive's object. */
export interface StoredArchive {
  /** In bytes. */
  size: number;
  /** Without quotes. */
  etag: string;
}

/** The archive's object, or null when there is none. */
export async function headArchive(bucket: R2Bucket, id: string): Promise<StoredArchive | null> {
  const object = await bucket.head(archiveKey(id));
  return object && { size: object.size, etag: object.etag };
}

/** Makes the backup exist: a backup is there if and only if its metadata is. */
export async function writeMetadata(bucket: R2Bucket, metadata: BackupMetadata): Promise<void> {
  await bucket.put(metadataKey(metadata.id), JSON.stringify(metadata), {
    httpMetadata: { contentType: "application/json" },
  });
}

/**
 * @throws {BackupNotFoundError} when the bucket has none of this id
 * @throws {BackupRestoreError} when it cannot be read as metadata
 */
export async function readMetadata(bucket: R2Bucket, id: string, dir: string): Promise<BackupMetadata> {
  const object = await bucket.get(metadataKey(id));
  if (object === null) {
    throw new BackupNotFoundError(`Backup ${id} was not found: the bucket has no ${metadataKey(id)}`, { backupId: id });
  }
  const text = await object.text();
  try {
    return metadataSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new BackupRestoreError(
      `${metadataKey(id)} is damaged: it is not the metadata of a backup`,
      { dir, backupId: id },
      { cause: error },
    );
  }
}

/** Whether the backup exists. */
export async function hasMetadata(bucket: R2Bucket, id: string): Promise<boolean> {
  return (await bucket.head(metadataKey(id))) !== null;
}

/** Removes what there is of a backup. */
export async function deleteBackup(bucket: R2Bucket, id: string): Promise<void> {
  await bucket.delete([metadataKey(id), archiveKey(id)]);
}
