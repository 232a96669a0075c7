import { z } from "zod";

/**
 * Errors of the package: their codes, classes, and the form in which they cross a process or RPC boundary.
 * Names, codes and context fields are those of Sandbox SDK 0.12 where it had them.
 */

/** Every code with its HTTP status and, where one helps, what the reader can do about it. */
const CODES = {
  INVALID_BACKUP_CONFIG: {
    httpStatus: 400,
    suggestion: "Correct the option, handle or setting that the message names.",
  },
  BACKUP_CREATE_FAILED: {
    httpStatus: 500,
    suggestion: "Nothing was stored. Correct the cause that the message names and create the backup again.",
  },
  BACKUP_NOT_FOUND: {
    httpStatus: 404,
    suggestion: "Check the id and the bucket; an R2 lifecycle rule or a clean-up may have deleted the backup.",
  },
  BACKUP_EXPIRED: {
    httpStatus: 400,
    suggestion: "Create a new backup, with a longer `ttl` if it has to be restored later.",
  },
  BACKUP_RESTORE_FAILED: {
    httpStatus: 500,
    suggestion:
      "The directory is as it was before the call. Correct the cause that the message names and restore again.",
  },
  FILE_NOT_FOUND: { httpStatus: 404, suggestion: "Check the path; parent directories are not created on the way." },
  PERMISSION_DENIED: {
    httpStatus: 403,
    suggestion: "Check the owner and mode of the path against the user that the agent runs as.",
  },
  FILESYSTEM_ERROR: { httpStatus: 500, suggestion: undefined },
  GIT_CLONE_FAILED: {
    httpStatus: 500,
    suggestion: "Check the URL, the branch and that the target directory is empty.",
  },
  COMMAND_TIMEOUT: {
    httpStatus: 408,
    suggestion: "The command and what it started were killed. Raise `timeout`, in milliseconds, if it needs longer.",
  },
  VALIDATION_FAILED: { httpStatus: 400, suggestion: "Correct the argument that the message names." },
  OPERATION_ABORTED: { httpStatus: 499, suggestion: undefined },
  SANDBOX_UNAVAILABLE: {
    httpStatus: 503,
    suggestion: "The next call starts the sandbox again; what was in its file system is gone.",
  },
  INTERNAL_ERROR: { httpStatus: 500, suggestion: undefined },
} as const;

/** The value of `error.code`: the stable name of a kind of failure. */
export type ErrorCode = keyof typeof CODES;

/** The facts of an error, plain JSON; which fields there are depends on the code. */
export type ErrorContext = Record<string, unknown>;

/** How an error crosses RPC, HTTP and logs. The message, context and suggestion never hold a secret. */
export interface SandboxErrorJSON {
  name: string;
  code: ErrorCode;
  message: string;
  context: ErrorContext;
  httpStatus: number;
  suggestion?: string | undefined;
  /** ISO 8601. */
  timestamp: string;
}

export const sandboxErrorSchema = z.object({
  name: z.string(),
  code: z.enum(Object.keys(CODES) as [ErrorCode, ...ErrorCode[]]),
  message: z.string(),
  context: z.record(z.string(), z.unknown()),
  httpStatus: z.number(),
  suggestion: z.string().optional(),
  timestamp: z.string(),
}) satisfies z.ZodType<SandboxErrorJSON>;

interface SandboxErrorOptions extends ErrorOptions {
  /** When the error happened, ISO 8601. @default now */
  timestamp?: string;
}

/**
 * Base class of every error that this package throws on purpose.
 * Check `error.code`, or `instanceof` with one of the classes below.
 */
export class SandboxError<
  Code extends ErrorCode = ErrorCode,
  Context extends ErrorContext = ErrorContext,
> extends Error {
  /** Status to answer with when the error ends an HTTP request. */
  readonly httpStatus: number;
  /** What the reader can do about it, where something general can be said. */
  readonly suggestion: string | undefined;
  /** When the error happened, ISO 8601. */
  readonly timestamp: string;

  constructor(
    /** Stable name of the kind of failure. */
    readonly code: Code,
    message: string,
    /** The facts, plain JSON. */
    readonly context: Context,
    options: SandboxErrorOptions = {},
  ) {
    super(message, "cause" in options ? { cause: options.cause } : undefined);
    this.name = new.target.name;
    this.httpStatus = CODES[code].httpStatus;
    this.suggestion = CODES[code].suggestion;
    this.timestamp = options.timestamp ?? new Date().toISOString();
  }

  toJSON(): SandboxErrorJSON {
    return {
      name: this.name,
      code: this.code,
      message: this.message,
      context: this.context,
      httpStatus: this.httpStatus,
      suggestion: this.suggestion,
      timestamp: this.timestamp,
    };
  }
}

/** An option, a handle or a setting of the Worker is wrong or missing; the message names it and what it may be. */
export class InvalidBackupConfigError extends SandboxError<"INVALID_BACKUP_CONFIG", { reason: string }> {
  override readonly name = "InvalidBackupConfigError";
  constructor(message: string, context: { reason: string } = { reason: message }, options?: SandboxErrorOptions) {
    super("INVALID_BACKUP_CONFIG", message, context, options);
  }
}

/** Facts of a failed `createBackup`. */
export interface BackupCreateContext extends ErrorContext {
  dir: string;
  backupId?: string;
  /** Exit code of the tool that failed. */
  exitCode?: number;
  /** The last lines that the tool wrote to stderr. */
  stderr?: string;
}

/** The archive could not be made or stored. Nothing of it is left in the bucket or in the container. */
export class BackupCreateError extends SandboxError<"BACKUP_CREATE_FAILED", BackupCreateContext> {
  override readonly name = "BackupCreateError";
  constructor(message: string, context: BackupCreateContext, options?: SandboxErrorOptions) {
    super("BACKUP_CREATE_FAILED", message, context, options);
  }
}

/** The bucket holds no complete backup of this id. */
export class BackupNotFoundError extends SandboxError<"BACKUP_NOT_FOUND", { backupId: string }> {
  override readonly name = "BackupNotFoundError";
  constructor(message: string, context: { backupId: string }, options?: SandboxErrorOptions) {
    super("BACKUP_NOT_FOUND", message, context, options);
  }
}

/** The backup's time to live has elapsed. `expiredAt` is ISO 8601. */
export class BackupExpiredError extends SandboxError<"BACKUP_EXPIRED", { backupId: string; expiredAt: string }> {
  override readonly name = "BackupExpiredError";
  constructor(message: string, context: { backupId: string; expiredAt: string }, options?: SandboxErrorOptions) {
    super("BACKUP_EXPIRED", message, context, options);
  }
}

/** Facts of a failed `restoreBackup`. */
export interface BackupRestoreContext extends ErrorContext {
  dir: string;
  backupId: string;
  /** Exit code of the tool that failed. */
  exitCode?: number;
  /** The last lines that the tool wrote to stderr. */
  stderr?: string;
}

/** The backup could not be restored. The directory is as it was before the call. */
export class BackupRestoreError extends SandboxError<"BACKUP_RESTORE_FAILED", BackupRestoreContext> {
  override readonly name = "BackupRestoreError";
  constructor(message: string, context: BackupRestoreContext, options?: SandboxErrorOptions) {
    super("BACKUP_RESTORE_FAILED", message, context, options);
  }
}

/** A path that a file call needs does not exist. */
export class FileNotFoundError extends SandboxError<"FILE_NOT_FOUND", { path: string } & ErrorContext> {
  override readonly name = "FileNotFoundError";
  constructor(message: string, context: { path: string } & ErrorContext, options?: SandboxErrorOptions) {
    super("FILE_NOT_FOUND", message, context, options);
  }
}

/** The user that the agent runs as may not do this to the path. */
export class PermissionDeniedError extends SandboxError<"PERMISSION_DENIED", { path: string } & ErrorContext> {
  override readonly name = "PermissionDeniedError";
  constructor(message: string, context: { path: string } & ErrorContext, options?: SandboxErrorOptions) {
    super("PERMISSION_DENIED", message, context, options);
  }
}

/** Any other failure of a file call: a full disk, a directory where a file was expected, and so on. */
export class FileSystemError extends SandboxError<"FILESYSTEM_ERROR", { path: string } & ErrorContext> {
  override readonly name = "FileSystemError";
  constructor(message: string, context: { path: string } & ErrorContext, options?: SandboxErrorOptions) {
    super("FILESYSTEM_ERROR", message, context, options);
  }
}

/** `git clone` failed; the message ends with git's own words. */
export class GitCloneError extends SandboxError<"GIT_CLONE_FAILED", { repoUrl: string } & ErrorContext> {
  override readonly name = "GitCloneError";
  constructor(message: string, context: { repoUrl: string } & ErrorContext, options?: SandboxErrorOptions) {
    super("GIT_CLONE_FAILED", message, context, options);
  }
}

/** A command ran longer than its `timeout`; it and what it started were killed. */
export class CommandTimeoutError extends SandboxError<
  "COMMAND_TIMEOUT",
  { command: string; timeout: number } & ErrorContext
> {
  override readonly name = "CommandTimeoutError";
  constructor(
    message: string,
    context: { command: string; timeout: number } & ErrorContext,
    options?: SandboxErrorOptions,
  ) {
    super("COMMAND_TIMEOUT", message, context, options);
  }
}

/** An argument of a call other than backup and restore is wrong; the message names it and what it may be. */
export class ValidationError extends SandboxError<"VALIDATION_FAILED", { reason: string }> {
  override readonly name = "ValidationError";
  constructor(message: string, context: { reason: string } = { reason: message }, options?: SandboxErrorOptions) {
    super("VALIDATION_FAILED", message, context, options);
  }
}

/** The caller's `signal` was aborted, or the caller went away. A client call rejects with `signal.reason` instead. */
export class OperationAbortedError extends SandboxError<"OPERATION_ABORTED"> {
  override readonly name = "OperationAbortedError";
  constructor(
    message = "The operation was aborted by its caller.",
    context: ErrorContext = {},
    options?: SandboxErrorOptions,
  ) {
    super("OPERATION_ABORTED", message, context, options);
  }
}

/** The sandbox could not be started, cannot be reached, or stopped during the call. */
export class SandboxUnavailableError extends SandboxError<"SANDBOX_UNAVAILABLE"> {
  override readonly name = "SandboxUnavailableError";
  constructor(message: string, context: ErrorContext = {}, options?: SandboxErrorOptions) {
    super("SANDBOX_UNAVAILABLE", message, context, options);
  }
}

/** The package itself met something that it did not expect. */
export class InternalError extends SandboxError<"INTERNAL_ERROR"> {
  override readonly name = "InternalError";
  constructor(message: string, context: ErrorContext = {}, options?: SandboxErrorOptions) {
    super("INTERNAL_ERROR", message, context, options);
  }
}

/** True for an error of this package, also where `instanceof` cannot tell because it comes from another copy of it. */
export function isSandboxError(value: unknown): value is SandboxError {
  return (
    value instanceof SandboxError ||
    (value instanceof Error && "code" in value && typeof value.code === "string" && value.code in CODES)
  );
}

/** Rebuilds the class of an error from its form on the wire. Fails on anything that is not that form. */
export function errorFromJSON(value: unknown): SandboxError {
  const { code, message, context, timestamp } = sandboxErrorSchema.parse(value);
  const build = (ErrorClass: new (message: string, context: never, options?: SandboxErrorOptions) => SandboxError) =>
    // The context was written by the constructor of the same class on the other side.
    new ErrorClass(message, context as never, { timestamp });
  switch (code) {
    case "INVALID_BACKUP_CONFIG":
      return build(InvalidBackupConfigError);
    case "BACKUP_CREATE_FAILED":
      return build(BackupCreateError);
    case "BACKUP_NOT_FOUND":
      return build(BackupNotFoundError);
    case "BACKUP_EXPIRED":
      return build(BackupExpiredError);
    case "BACKUP_RESTORE_FAILED":
      return build(BackupRestoreError);
    case "FILE_NOT_FOUND":
      return build(FileNotFoundError);
    case "PERMISSION_DENIED":
      return build(PermissionDeniedError);
    case "FILESYSTEM_ERROR":
      return build(FileSystemError);
    case "GIT_CLONE_FAILED":
      return build(GitCloneError);
    case "COMMAND_TIMEOUT":
      return build(CommandTimeoutError);
    case "VALIDATION_FAILED":
      return build(ValidationError);
    case "OPERATION_ABORTED":
      return build(OperationAbortedError);
    case "SANDBOX_UNAVAILABLE":
      return build(SandboxUnavailableError);
    case "INTERNAL_ERROR":
      return build(InternalError);
  }
}
