import { z } from "zod";
import { BackupExpiredError } from "../errors.js";
import { type ChunkDigests, chunkDigestsSchema } from "../protocol.js";
import { DEFAULT_TTL } from "./options.js";

/**
 * `backups/{id}/meta.json`. Sandbox SDK 0.12 writes and reads the first six keys; the others are ours, and it ignores them.
 */
export interface BackupMetadata {
  id: string;
  /** The directory that was backed up. */
  dir: string;
  name: string | null;
  /** Size of the archive. */
  sizeBytes: number;
  /** Seconds that the backup can be restored for. */
  ttl: number;
  /** ISO 8601. */
  createdAt: string;
  /** ETag of the archive's object, without quotes. */
  etag?: string | undefined;
  /** SHA-256 of the archive's chunks. */
  digests?: ChunkDigests | undefined;
  /** SHA-256 of the whole archive in hexadecimal, as the first versions of this package wrote. */
  sha256?: string | undefined;
}

/** Keys that an older writer may have left out get what it meant. */
export const metadataSchema = z.object({
  id: z.string(),
  dir: z.string(),
  name: z
    .string()
    .nullish()
    .transform((name) => name ?? null),
  sizeBytes: z.number().int().nonnegative(),
  ttl: z
    .number()
    .nullish()
    .transform((ttl) => ttl ?? DEFAULT_TTL),
  createdAt: z.string().refine((time) => !Number.isNaN(Date.parse(time)), { error: "is not a time" }),
  etag: z.string().optional(),
  digests: chunkDigestsSchema.optional(),
  sha256: z.string().optional(),
}) satisfies z.ZodType<BackupMetadata>;

/** A backup counts as expired this long before its time, in ms: a restore takes a while. The rule of Sandbox SDK 0.12. */
const EXPIRY_BUFFER = 60_000;

/** @throws {BackupExpiredError} when the time to live of the backup has elapsed */
export function assertNotExpired({ id, ttl, createdAt }: BackupMetadata, now: Date): void {
  const expiresAt = Date.parse(createdAt) + ttl * 1000;
  if (now.getTime() + EXPIRY_BUFFER <= expiresAt) return;
  const expiredAt = formatTime(expiresAt);
  throw new BackupExpiredError(
    `Backup ${id} has expired: it was created at ${createdAt} with a ttl of ${ttl} s, and cannot be restored from 60 s before ${expiredAt} on`,
    { backupId: id, expiredAt },
  );
}

/** ISO 8601; the last time that a Date can hold, where a huge ttl goes beyond that. */
function formatTime(milliseconds: number): string {
  const LAST = 8.64e15;
  return new Date(Math.min(milliseconds, LAST)).toISOString();
}
