import * as errors from "../../src/errors.js";
import { Sandbox } from "../../src/index.js";

/** The Worker of the unit tests. */

export interface Env {
  SANDBOX: DurableObjectNamespace<Sandbox<Env>>;
  TEST_SANDBOX: DurableObjectNamespace<TestSandbox>;
  BACKUP_BUCKET: R2Bucket;
  COMPATIBILITY_DATE: string;
}

declare global {
  namespace Cloudflare {
    interface Env {
      SANDBOX: DurableObjectNamespace<Sandbox<Env>>;
      TEST_SANDBOX: DurableObjectNamespace<TestSandbox>;
      BACKUP_BUCKET: R2Bucket;
      COMPATIBILITY_DATE: string;
    }
  }
}

const backupId = "5f0c3f5e-3f8e-4a2b-9c3d-0123456789ab";

/** One of every class, with a context that is its own. */
export const oneOfEach = () => [
  new errors.InvalidBackupConfigError("`dir` is wrong", { reason: "`dir` is wrong" }),
  new errors.BackupCreateError("mksquashfs failed: Permission denied", {
    dir: "/workspace",
    backupId,
    stderr: "Permission denied",
    exitCode: 1,
  }),
  new errors.BackupNotFoundError("no such backup", { backupId }),
  new errors.BackupExpiredError("too late", { backupId, expiredAt: "2026-01-01T00:00:00.000Z" }),
  new errors.BackupRestoreError("squashfuse failed", { dir: "/app", backupId, exitCode: 2, stderr: "no\n" }),
  new errors.FileNotFoundError("no such file", { path: "/workspace/ü" }),
  new errors.PermissionDeniedError("not allowed", { path: "/root" }),
  new errors.FileSystemError("is a directory", { path: "/tmp" }),
  new errors.GitCloneError("not found", { repoUrl: "https://host/repo.git" }),
  new errors.CommandTimeoutError("took too long", { command: "sleep 9", timeout: 10 }),
  new errors.ValidationError("`path` must not be empty"),
  new errors.OperationAbortedError(),
  new errors.SandboxUnavailableError("it stopped", { since: { at: 1 } }),
  new errors.InternalError("unforeseen", { list: [1, null, "x"] }),
];

/** A user's own subclass. */
export class TestSandbox extends Sandbox<Env> {
  override sleepAfter: string | number = "5m";

  async throwError(index: number): Promise<void> {
    throw oneOfEach()[index];
  }

  async throwPlain(): Promise<void> {
    throw new TypeError("a plain error");
  }

  greet(name: string, { loud = false }: { loud?: boolean } = {}): string {
    return loud ? `HELLO ${name.toUpperCase()}` : `hello ${name}`;
  }

  async callBack(callback: (value: number) => Promise<number> | number): Promise<number> {
    return (await callback(20)) + 1;
  }

  async echo(stream: ReadableStream<Uint8Array>): Promise<ReadableStream<Uint8Array>> {
    return stream;
  }

  async count(): Promise<ReadableStream<Uint8Array>> {
    return new Response("one two three").body ?? new ReadableStream({ type: "bytes" });
  }

  /** Resolves when its signal has aborted; rejects as a method of the package does. */
  async wait({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    await new Promise<void>((_resolve, reject) => {
      if (signal?.aborted) reject(signal.reason);
      signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }

  async hasSignal({ signal }: { signal?: AbortSignal } = {}): Promise<boolean> {
    return signal instanceof AbortSignal;
  }

  async readSleepAfter(): Promise<string | number> {
    return this.sleepAfter;
  }
}

export { Sandbox };

export default {
  async fetch(): Promise<Response> {
    return new Response("ok");
  },
} satisfies ExportedHandler<Env>;
