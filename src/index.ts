export type {
  BackupOptions,
  BackupProgress,
  CompressionOptions,
  DirectoryBackup,
  RestoreBackupResult,
  RestoreOptions,
} from "./backups/options.js";
export type { BackupCreateContext, BackupRestoreContext, ErrorCode, ErrorContext, SandboxErrorJSON } from "./errors.js";
export {
  BackupCreateError,
  BackupExpiredError,
  BackupNotFoundError,
  BackupRestoreError,
  CommandTimeoutError,
  FileNotFoundError,
  FileSystemError,
  GitCloneError,
  InternalError,
  InvalidBackupConfigError,
  isSandboxError,
  OperationAbortedError,
  PermissionDeniedError,
  SandboxError,
  SandboxUnavailableError,
  ValidationError,
} from "./errors.js";
export { getSandbox, type SandboxClient } from "./get-sandbox.js";
export type {
  ExecOptions,
  ExecResult,
  ExistsResult,
  FileResult,
  GitCheckoutOptions,
  GitCheckoutResult,
  ListFilesOptions,
  ListFilesResult,
  MkdirResult,
  MovedFileResult,
  ReadFileOptions,
  ReadFileResult,
  SandboxOptions,
  WriteFileOptions,
} from "./options.js";
export type { FileInfo } from "./protocol.js";
export { Sandbox } from "./sandbox.js";
export { type ExecEvent, parseSSEStream } from "./sse.js";
