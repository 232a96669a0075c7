import { z } from "zod";
import { InvalidBackupConfigError } from "../errors.js";
import { BACKUP_ROOTS, COMPRESSION_FORMATS, isAtOrUnder, uuidSchema } from "../protocol.js";

/** What callers may ask for. The only place that checks caller input to `createBackup` and `restoreBackup`. */

/** Seconds that a backup can be restored for when `ttl` is not given: three days. */
export const DEFAULT_TTL = 259_200;

const LONGEST_NAME = 256;

/** Told while a backup is made or restored. */
export interface BackupProgress {
  /** What is being done: `archive`, `upload` for a backup; `download`, `verify`, `mount` or `extract` for a restore. */
  phase: "archive" | "upload" | "download" | "verify" | "mount" | "extract";
  /** Bytes of the archive that are done with in this phase. */
  bytesDone: number;
  /** Bytes that this phase has in all; null where that is not known. */
  bytesExpected: number | null;
}

/** How an archive is compressed. */
export interface CompressionOptions {
  /** zstd at level 1 is about as fast as lz4 and a quarter smaller. @default "zstd" */
  format: "gzip" | "lz4" | "zstd";
  /** 1 to 9 for gzip, 1 to 22 for zstd; lz4 has none. @default 1 for zstd, 9 for gzip */
  level?: number | undefined;
  /** Threads that compress, 1 to 64. @default one for each processor */
  threads?: number | undefined;
}

/** Options of `createBackup`. */
export interface BackupOptions {
  /**
   * Directory to back up: absolute, normalized, at or under /workspace, /home, /tmp, /var/tmp or /app, also after links are
   * followed.
   */
  dir: string;
  /** A label for people, up to 256 characters without control characters. @default none */
  name?: string | undefined;
  /** Seconds that the backup can be restored for; it is not deleted by itself afterwards. Finite, above 0. @default 259200 */
  ttl?: number | undefined;
  /** Leave out what git ignores, when `dir` is in a git repository. Needs git in the container. @default false */
  useGitignore?: boolean | undefined;
  /** The name of `useGitignore` in the published code of Sandbox SDK 0.12. @default false */
  gitignore?: boolean | undefined;
  /**
   * Globs of what to leave out, relative to `dir`. A glob without a slash, or with only `**` before it, matches at any depth;
   * others start at `dir`. `*` and `?` stay within a name and match no leading dot. @default []
   */
  excludes?: readonly string[] | undefined;
  /** Use the `BACKUP_BUCKET` binding for the archive instead of presigned URLs. @default false */
  localBucket?: boolean | undefined;
  /** @default zstd at level 1 */
  compression?: CompressionOptions | undefined;
  /** Send an archive in parts side by side, one above 16 MiB always. Without it the limit is 5 GiB. @default true */
  multipart?: boolean | undefined;
  /** Stops the backup; the call then rejects with the signal's reason, and nothing of the backup is left. */
  signal?: AbortSignal | undefined;
  /** Called a few times a second. When it throws, the backup is stopped and the call rejects with what it threw. */
  onProgress?: ((progress: BackupProgress) => void) | undefined;
}

/** Names a backup; plain JSON, to be kept in KV, D1 or Durable Object storage. */
export interface DirectoryBackup {
  /** UUID of the backup. */
  id: string;
  /** The directory that it was made of, and that `restoreBackup` brings back; another may be put in its place. */
  dir: string;
  /** Set when the backup was made with `localBucket`; a restore then replaces the directory instead of mounting. */
  localBucket?: true | undefined;
}

/** Options of `restoreBackup`. */
export interface RestoreOptions {
  /**
   * Mount a large archive at once, and fetch it while it is read. With false all of it is fetched before. Archives of
   * Sandbox SDK 0.12 are always fetched before, since no part of them can be checked by itself. @default true
   */
  lazy?: boolean | undefined;
  /** Stops the restore; the call then rejects with the signal's reason, and the directory is as it was. */
  signal?: AbortSignal | undefined;
  /** Called a few times a second. When it throws, the restore is stopped and the call rejects with what it threw. */
  onProgress?: ((progress: BackupProgress) => void) | undefined;
}

/** What `restoreBackup` resolves to. */
export interface RestoreBackupResult {
  success: true;
  dir: string;
  id: string;
}

const roots = BACKUP_ROOTS.join(", ");

const dirSchema = z
  .string({ error: "has to be a string: an absolute path" })
  .refine((dir) => !dir.includes("\0"), { error: "must not contain a NUL character", abort: true })
  .refine((dir) => dir.startsWith("/"), {
    error: `has to be an absolute path at or under one of ${roots}`,
    abort: true,
  })
  .transform((dir) => (dir.length > 1 && dir.endsWith("/") ? dir.slice(0, -1) : dir))
  .refine((dir) => !dir.split("/").includes(".."), { error: "must not contain `..`", abort: true })
  .refine((dir) => !/\/\/|\/\.(\/|$)/.test(dir), { error: "has to be normalized: no `//` and no `/./`", abort: true })
  .refine((dir) => BACKUP_ROOTS.some((root) => isAtOrUnder(dir, root)), {
    error: `has to be at or under one of ${roots}`,
  });

/** C0 and C1 control characters and DEL. */
const CONTROL = /\p{Cc}/u;

const flag = z.boolean({ error: "has to be true or false" }).optional();

const signalSchema = z.instanceof(AbortSignal, { error: "has to be an AbortSignal" }).optional();

const onProgressSchema = z
  .custom<(progress: BackupProgress) => void>((value) => typeof value === "function", { error: "has to be a function" })
  .optional();

const excludeSchema = z
  .string({ error: "has to be a string: a glob relative to `dir`" })
  .min(1, { error: "must not be empty" })
  .refine((glob) => !CONTROL.test(glob), { error: "must not contain control characters" })
  .refine((glob) => !glob.startsWith("/"), { error: "has to be relative to `dir`: no `/` at its start" })
  .refine((glob) => !glob.split("/").some((part) => part === "." || part === ".."), {
    error: "has to be relative to `dir`: no `.` or `..` in it",
  })
  .refine((glob) => !/^[*/]+$/.test(glob) || /^\*(\/\*)+$/.test(glob), { error: "must not match everything" });

const levels = { gzip: [1, 9], zstd: [1, 22] } as const;

const compressionSchema = z
  .strictObject(
    {
      format: z.enum(COMPRESSION_FORMATS, { error: 'has to be "gzip", "lz4" or "zstd"' }),
      level: z.int({ error: "has to be a whole number" }).optional(),
      threads: z.int({ error: "has to be a whole number from 1 to 64" }).min(1).max(64).optional(),
    },
    { error: unknownKeys("has to be an object { format, level?, threads? }") },
  )
  .superRefine(({ format, level }, context) => {
    if (level === undefined) return;
    const refuse = (message: string) => context.addIssue({ code: "custom", path: ["level"], message });
    if (format === "lz4") return refuse("is not an option of lz4");
    const [least, most] = levels[format];
    if (level < least || level > most) refuse(`has to be from ${least} to ${most} for ${format}`);
  });

const backupOptionsSchema = z.strictObject(
  {
    dir: dirSchema,
    name: z
      .string({ error: "has to be a string" })
      .max(LONGEST_NAME, { error: `may have up to ${LONGEST_NAME} characters` })
      .refine((name) => !CONTROL.test(name), { error: "must not contain control characters" })
      .optional(),
    ttl: z
      .number({ error: "has to be a finite number of seconds above 0" })
      .positive({ error: "has to be a finite number of seconds above 0" })
      .optional(),
    useGitignore: flag,
    gitignore: flag,
    excludes: z.array(excludeSchema, { error: "has to be an array of globs" }).readonly().optional(),
    localBucket: flag,
    compression: compressionSchema.optional(),
    multipart: flag,
    signal: signalSchema,
    onProgress: onProgressSchema,
  },
  { error: unknownKeys("have to be an object { dir, … }") },
) satisfies z.ZodType<BackupOptions, BackupOptions>;

const handleSchema = z.object(
  {
    id: uuidSchemaFor("has to be the UUID that createBackup returned"),
    dir: dirSchema,
    localBucket: z.boolean({ error: "has to be true, false or absent" }).optional(),
  },
  { error: "has to be the object { id, dir } that createBackup returned" },
);

const restoreOptionsSchema = z.strictObject(
  { lazy: flag, signal: signalSchema, onProgress: onProgressSchema },
  { error: unknownKeys("have to be an object { lazy?, signal?, onProgress? }") },
) satisfies z.ZodType<RestoreOptions, RestoreOptions>;

/** Options of `createBackup` with their defaults filled in. */
export type ResolvedBackupOptions = ReturnType<typeof parseBackupOptions>;

/** @throws {InvalidBackupConfigError} that names the option and what it may be */
export function parseBackupOptions(options: unknown) {
  const { useGitignore, gitignore, ...parsed } = parse("createBackup's options", backupOptionsSchema, options);
  return {
    ...parsed,
    name: parsed.name ?? null,
    ttl: parsed.ttl ?? DEFAULT_TTL,
    gitignore: useGitignore ?? gitignore ?? false,
    excludes: [...(parsed.excludes ?? [])],
    localBucket: parsed.localBucket ?? false,
    compression: resolveCompression(parsed.compression),
    multipart: parsed.multipart ?? true,
  };
}

/** mksquashfs' own default for zstd, level 15, takes twenty times as long for a fifth less. */
function resolveCompression({ format, level, threads }: CompressionOptions = { format: "zstd" }) {
  const chosen = level ?? (format === "zstd" ? 1 : undefined);
  return { format, ...(chosen === undefined ? {} : { level: chosen }), ...(threads === undefined ? {} : { threads }) };
}

/** @throws {InvalidBackupConfigError} that names the field and what it may be */
export function parseHandle(backup: unknown) {
  const { id, dir, localBucket } = parse("restoreBackup's handle", handleSchema, backup);
  return { id: id.toLowerCase(), dir, localBucket: localBucket ?? false };
}

/** @throws {InvalidBackupConfigError} that names the option and what it may be */
export function parseRestoreOptions(options: unknown): RestoreOptions {
  return parse("restoreBackup's options", restoreOptionsSchema, options ?? {});
}

function uuidSchemaFor(error: string) {
  return z.string({ error }).refine((id) => uuidSchema.safeParse(id.toLowerCase()).success, { error });
}

/** The message for an object that is none, or has a key that is not an option. */
function unknownKeys(otherwise: string) {
  return (issue: { code?: string | undefined; keys?: unknown }) =>
    issue.code === "unrecognized_keys" && Array.isArray(issue.keys)
      ? `${issue.keys.map((key) => `\`${key}\``).join(", ")} is not an option`
      : otherwise;
}

function parse<Output>(subject: string, schema: z.ZodType<Output>, value: unknown): Output {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const reasons = result.error.issues.map(({ path, message }) =>
    path.length === 0 ? `${subject} ${message}` : `\`${formatPath(path)}\` ${message}`,
  );
  const reason = reasons.join("; ");
  throw new InvalidBackupConfigError(`Invalid backup configuration: ${reason}`, { reason });
}

function formatPath(path: readonly PropertyKey[]): string {
  return path
    .map((part, index) => (typeof part === "number" ? `[${part}]` : `${index === 0 ? "" : "."}${String(part)}`))
    .join("");
}
