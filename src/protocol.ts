import { z } from "zod";
import { MiB } from "./constants.js";
import { sandboxErrorSchema } from "./errors.js";

/**
 * Every message between the Durable Object, the agent in the container, and the development host.
 * All three are built from this file; nothing else describes a message.
 */

export { MiB, WHOLE_OBJECT } from "./constants.js";

/** Port of the agent in a container. */
export const AGENT_PORT = 3000;

/** Directories that may be backed up and restored: these and everything below them. */
export const BACKUP_ROOTS = ["/workspace", "/home", "/tmp", "/var/tmp", "/app"] as const;

/** Directory that commands and relative paths start in. */
export const WORKSPACE = "/workspace";

/** True when `path` is `root` or lies below it. Both are absolute and normalized. */
export function isAtOrUnder(path: string, root: string): boolean {
  return path === root || path.startsWith(root === "/" ? root : `${root}/`);
}

/** An archive up to this size is sent by one PUT, a larger one in parts. In bytes. */
export const MULTIPART_THRESHOLD = 16 * MiB;

/** R2's limit on an object sent by one PUT, in bytes. */
export const LARGEST_PUT = 5 * 1024 * MiB - 5 * MiB;

/** A line at least this often on every stream of events, so that either side notices when the other is gone. In ms. */
export const HEARTBEAT_INTERVAL = 5_000;

// ---------------------------------------------------------------------------------------------------------------------
// The agent: HTTP on one port. Bodies are JSON. What takes time answers with a stream of events, one JSON object a line
// (NDJSON); the last is `done` or `error`. When the client closes that stream, the agent stops the work and what it
// started. A request that fails before any event is answered with the error's HTTP status and its JSON.
// ---------------------------------------------------------------------------------------------------------------------

/** Paths of the agent's HTTP API. */
export const agentRoutes = {
  /** GET → `healthSchema` */
  health: "/v1/health",
  /** POST `execRequestSchema` → events `execEventSchema` */
  exec: "/v1/exec",
  /** POST `gitCheckoutRequestSchema` → `gitCheckoutResultSchema` */
  gitCheckout: "/v1/git/checkout",
  /** GET `?path=` → the file's bytes with `content-type` and `content-length`; PUT with the bytes → `fileResultSchema` */
  fileContent: "/v1/files/content",
  /** POST `fileRequestSchema` → the result that belongs to its `action` */
  files: "/v1/files",
  /** POST `archiveRequestSchema` → events `archiveEventSchema` */
  archives: "/v1/archives",
  /** POST `restoreRequestSchema` → events `restoreEventSchema` */
  restores: "/v1/restores",
  /** DELETE: stops the operation and answers when nothing of it runs any more; also for one that is unknown */
  operation: (id: string) => `/v1/operations/${id}`,
  /** POST `urlsSchema`: answers the event `need-urls` */
  operationUrls: (id: string) => `/v1/operations/${id}/urls`,
  /** Answers the event `need-transfer`: GET takes the archive that was made, PUT brings the one to restore */
  operationArchive: (id: string) => `/v1/operations/${id}/archive`,
} as const;

export const healthSchema = z.object({ ok: z.literal(true), version: z.string() });

const heartbeatEvent = z.object({ type: z.literal("heartbeat") });
const errorEvent = z.object({ type: z.literal("error"), error: sandboxErrorSchema });

const envSchema = z.record(z.string(), z.string());

// Commands

export const execRequestSchema = z.object({
  command: z.string(),
  cwd: z.string().optional(),
  env: envSchema.optional(),
  /** In ms. Without it a command may run as long as its client listens. */
  timeout: z.number().positive().optional(),
  stdin: z.string().optional(),
});
export type ExecRequest = z.infer<typeof execRequestSchema>;

/** One event of a running command, as `execStream` reports it. */
export const execEventSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("start"), command: z.string(), timestamp: z.string() }),
  z.object({ type: z.literal("stdout"), data: z.string(), timestamp: z.string() }),
  z.object({ type: z.literal("stderr"), data: z.string(), timestamp: z.string() }),
  z.object({
    type: z.literal("complete"),
    /** The command's exit code; 128 + n when signal n ended it, as in a shell. */
    exitCode: z.number(),
    /** In ms. */
    duration: z.number(),
    timestamp: z.string(),
  }),
  errorEvent,
  heartbeatEvent,
]);
export type ExecEventMessage = z.infer<typeof execEventSchema>;

// Git

export const gitCheckoutRequestSchema = z.object({
  repoUrl: z.string(),
  branch: z.string().optional(),
  targetDir: z.string().optional(),
  depth: z.number().int().positive().optional(),
  env: envSchema.optional(),
});
export type GitCheckoutRequest = z.infer<typeof gitCheckoutRequestSchema>;
export const gitCheckoutResultSchema = z.object({ branch: z.string(), targetDir: z.string() });

// Files

/** `path` of every file request: absolute, or relative to /workspace. */
const path = z.string();

export const fileRequestSchema = z.discriminatedUnion("action", [
  z.object({ action: z.literal("exists"), path }),
  z.object({ action: z.literal("mkdir"), path, recursive: z.boolean() }),
  z.object({ action: z.literal("delete"), path }),
  z.object({ action: z.literal("rename"), path, newPath: z.string() }),
  z.object({ action: z.literal("move"), path, newPath: z.string() }),
  z.object({ action: z.literal("list"), path, recursive: z.boolean(), includeHidden: z.boolean() }),
]);
export type FileRequest = z.infer<typeof fileRequestSchema>;

/** Answer to `mkdir`, `delete`, `rename`, `move` and to writing a file. */
export const fileResultSchema = z.object({ path: z.string() });
export const existsResultSchema = z.object({ path: z.string(), exists: z.boolean() });

export const fileInfoSchema = z.object({
  name: z.string(),
  absolutePath: z.string(),
  /** Relative to the listed directory. */
  relativePath: z.string(),
  type: z.enum(["file", "directory", "symlink", "other"]),
  /** In bytes. */
  size: z.number(),
  /** ISO 8601. */
  modifiedAt: z.string(),
  /** As `ls -l` writes it, without the type: `rwxr-xr-x`. */
  mode: z.string(),
  /** What the user that the agent runs as may do. */
  permissions: z.object({ readable: z.boolean(), writable: z.boolean(), executable: z.boolean() }),
});
export type FileInfo = z.infer<typeof fileInfoSchema>;
export const listResultSchema = z.object({ path: z.string(), files: z.array(fileInfoSchema) });

// Archives

export const COMPRESSION_FORMATS = ["gzip", "lz4", "zstd"] as const;

/** A version 4 UUID in lower case: names an operation or a backup, and becomes a part of paths and keys. */
export const uuidSchema = z.string().regex(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/);

/** SHA-256 of each chunk of an archive: of `chunkSize` bytes, the last as long as what is left. */
export const chunkDigestsSchema = z.object({
  chunkSize: z.number().int().positive(),
  /** The digests, of 32 bytes each, one after another in base64. */
  sha256: z.base64(),
});
export type ChunkDigests = z.infer<typeof chunkDigestsSchema>;

const etagSchema = z.string().min(1);
const sha256Schema = z.string().regex(/^[0-9a-f]{64}$/);
const bytes = z.number().int().nonnegative();

/** How the bytes of an archive travel: the agent asks for URLs and moves them itself, or its client moves them by `operationArchive`. */
const transferSchema = z.enum(["urls", "stream"]);

const partUrlsSchema = z.array(z.object({ part: z.number().int().nonnegative(), url: z.string() }));
/** A presigned URL, and the part, or `WHOLE_OBJECT`, that it is for. */
export type PartUrl = z.infer<typeof partUrlsSchema>[number];

export const archiveRequestSchema = z.object({
  operationId: uuidSchema,
  backupId: uuidSchema,
  dir: z.string(),
  /** Leave out what git ignores. */
  gitignore: z.boolean(),
  excludes: z.array(z.string()),
  compression: z.object({
    format: z.enum(COMPRESSION_FORMATS),
    level: z.number().int().optional(),
    threads: z.number().int().positive().optional(),
  }),
  transfer: transferSchema,
  /** Send an archive above `MULTIPART_THRESHOLD` in parts. */
  multipart: z.boolean(),
  /** Presigned URLs that it need not ask for. */
  urls: partUrlsSchema,
});
export type ArchiveRequest = z.infer<typeof archiveRequestSchema>;

/** How the archive went to the bucket. */
export const uploadResultSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("put"), etag: etagSchema }),
  z.object({
    kind: z.literal("parts"),
    parts: z.array(z.object({ number: z.number().int().positive(), etag: etagSchema })),
  }),
  z.object({ kind: z.literal("stream") }),
]);
export type UploadResult = z.infer<typeof uploadResultSchema>;

const progressEvent = z.object({
  type: z.literal("progress"),
  phase: z.enum(["archive", "upload", "download", "verify", "extract", "mount"]),
  bytesDone: bytes,
  /** Null while it is not known. */
  bytesExpected: bytes.nullable(),
});

/** The agent needs a presigned URL for each of these parts (or `WHOLE_OBJECT`); also when one it had was refused as expired. */
const needUrlsEvent = z.object({ type: z.literal("need-urls"), parts: z.array(z.number().int().nonnegative()).min(1) });
/** The agent is ready for its client to move the archive, of `size` bytes, by `operationArchive`. */
const needTransferEvent = z.object({ type: z.literal("need-transfer"), size: bytes });

/** The last event of an archive that was made and has gone to the bucket. */
export const archiveResultSchema = z.object({
  type: z.literal("done"),
  /** Size of the archive in bytes. */
  size: bytes,
  digests: chunkDigestsSchema,
  upload: uploadResultSchema,
});
export type ArchiveResult = z.infer<typeof archiveResultSchema>;

export const archiveEventSchema = z.discriminatedUnion("type", [
  progressEvent,
  needUrlsEvent,
  needTransferEvent,
  archiveResultSchema,
  errorEvent,
  heartbeatEvent,
]);
export type ArchiveEvent = z.infer<typeof archiveEventSchema>;

export const urlsSchema = z.object({ urls: partUrlsSchema });
export type Urls = z.infer<typeof urlsSchema>;

// Restores

export const restoreRequestSchema = z.object({
  operationId: uuidSchema,
  backupId: uuidSchema,
  dir: z.string(),
  archive: z.object({
    size: bytes,
    /** ETag of the object, without quotes. A download answers only for this version of it. */
    etag: etagSchema,
    /** Null for an archive of an older writer, which recorded none. */
    digests: chunkDigestsSchema.nullable(),
    /** Of the whole archive, where that was recorded. */
    sha256: sha256Schema.nullable(),
  }),
  /** Presigned URLs that it need not ask for. */
  urls: partUrlsSchema,
  transfer: transferSchema,
  /** `mount`: copy-on-write over the archive. `replace`: extract it and put it in the place of what is there. */
  method: z.enum(["mount", "replace"]),
  /** Mount a large archive before it is fetched. */
  lazy: z.boolean(),
});
export type RestoreRequest = z.infer<typeof restoreRequestSchema>;

export const restoreEventSchema = z.discriminatedUnion("type", [
  progressEvent,
  /** The directory is restored; until `done` the rest of its archive is fetched, which may need another URL. */
  z.object({ type: z.literal("mounted") }),
  needUrlsEvent,
  needTransferEvent,
  z.object({ type: z.literal("done") }),
  errorEvent,
  heartbeatEvent,
]);
export type RestoreEvent = z.infer<typeof restoreEventSchema>;

export type ProgressEvent = z.infer<typeof progressEvent>;

// ---------------------------------------------------------------------------------------------------------------------
// The development host: HTTP on a loopback address. Every request carries `authorization: Bearer <token>`.
// Names are those of Durable Objects (`ctx.id.toString()`).
// ---------------------------------------------------------------------------------------------------------------------

/** Variables of the Worker through which it finds a development host. */
export const HOST_URL_VAR = "SANDBOX_HOST_URL";
export const HOST_TOKEN_VAR = "SANDBOX_HOST_TOKEN";

/** Paths of the development host's HTTP API. */
export const hostRoutes = {
  /**
   * PUT `startRequestSchema` → `startResultSchema`, when the agent of the sandbox answers; starts it if it does not run.
   * DELETE → 204, when nothing of the sandbox is left.
   */
  sandbox: (name: string) => `/v1/sandboxes/${name}`,
  /** Any request: passed on to the agent of the sandbox. 503 with `hostErrorHeader` when that does not run. */
  agent: (name: string, agentPath: string) => `/v1/sandboxes/${name}/agent${agentPath}`,
} as const;

/** Set on answers that are the host's own and not the agent's; its value says why: `not-running`, `unauthorized`, `bad-request`. */
export const hostErrorHeader = "x-sandbox-host-error";

/** What a sandbox is started with; the same for a container. */
export const startRequestSchema = z.object({
  /** Environment of the agent, and so of every command. */
  env: envSchema,
  enableInternet: z.boolean(),
  /** Stop the sandbox, and drop its files, after this long without a request, in ms. */
  sleepAfter: z.number().positive(),
});
export type StartRequest = z.infer<typeof startRequestSchema>;

export const startResultSchema = z.object({
  /** Names this run of the sandbox; another one has other files. */
  instance: z.string(),
});
