import { z } from "zod";

/**
 * Backups that were begun and have not ended, in the Durable Object's storage. What is still there when the object starts
 * belongs to a call that was cut off, and is removed from the bucket.
 */

const PREFIX = "sandbox-backup:unfinished:";

/** What such a backup may have left in the bucket. */
export interface UnfinishedBackup {
  backupId: string;
  /** Of the S3 API, when parts were being sent. */
  uploadId?: string | undefined;
}

const recordSchema = z.object({ backupId: z.string(), uploadId: z.string().optional() });

export class UnfinishedBackups {
  constructor(private readonly storage: Pick<DurableObjectStorage, "put" | "delete" | "list">) {}

  /** Before anything is sent; again when parts are, with the upload's id. */
  async record(backup: UnfinishedBackup): Promise<void> {
    await this.storage.put(PREFIX + backup.backupId, backup);
  }

  /** When the backup is stored, or nothing of it is left. */
  async forget(backupId: string): Promise<void> {
    await this.storage.delete(PREFIX + backupId);
  }

  async list(): Promise<UnfinishedBackup[]> {
    const records = await this.storage.list({ prefix: PREFIX });
    return [...records.values()].map((record) => recordSchema.parse(record));
  }
}
