import {
  type DirectoryBackup,
  type ExecEvent,
  type ExecResult,
  getSandbox,
  InvalidBackupConfigError,
  parseSSEStream,
  type RestoreBackupResult,
  Sandbox,
  type SandboxClient,
} from "sandbox-backup";

/** Types of the public API, as a user's compiler sees them. Nothing here runs. */

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Fails to compile unless its argument is true. */
declare function assertType<_Holds extends true>(): void;

interface Env {
  MY_SANDBOX: DurableObjectNamespace<MySandbox>;
  GREETING: string;
}

export class MySandbox extends Sandbox<Env> {
  sleepAfter = "30m";
  envVars = { NODE_ENV: "development" };
  enableInternet = true;

  greet(name: string): string {
    return `${this.env.GREETING} ${name}`;
  }

  async lint(path: string, options: { fix: boolean }): Promise<{ problems: number }> {
    const { exitCode } = await this.exec(`lint ${path}`, { env: { FIX: options.fix ? "1" : undefined } });
    return { problems: exitCode };
  }
}

export class Numbers extends Sandbox {
  sleepAfter = 600;
}

declare const typed: DurableObjectNamespace<MySandbox>;
declare const plain: DurableObjectNamespace<Sandbox>;
declare const untyped: DurableObjectNamespace;
declare const signal: AbortSignal;

export async function subclass(): Promise<void> {
  const sandbox = getSandbox(typed, "id", { sleepAfter: "5m", normalizeId: true });
  assertType<Equal<typeof sandbox, SandboxClient<MySandbox>>>();
  const greeting = sandbox.greet("you");
  assertType<Equal<typeof greeting, Promise<string>>>();
  const linted = sandbox.lint("src", { fix: true });
  assertType<Equal<typeof linted, Promise<{ problems: number }>>>();
  // @ts-expect-error a method of the class keeps its parameters
  await sandbox.lint("src");
  // @ts-expect-error the platform calls it, not a client
  await sandbox.alarm();
  // @ts-expect-error what the client itself uses
  await sandbox.callFromClient({ method: "exec", args: [] });
  assertType<Equal<Awaited<ReturnType<typeof sandbox.fetch>>, Response>>();
}

export async function untypedNamespace(): Promise<void> {
  const sandbox = getSandbox(untyped, "id");
  assertType<Equal<typeof sandbox, SandboxClient<Sandbox>>>();
  const chosen = getSandbox<MySandbox>(untyped, "id");
  assertType<Equal<Awaited<ReturnType<typeof chosen.greet>>, string>>();
}

export async function backups(): Promise<void> {
  const sandbox = getSandbox(plain, "id");
  const backup = await sandbox.createBackup({
    dir: "/workspace",
    name: "name",
    ttl: 600,
    useGitignore: true,
    gitignore: true,
    excludes: ["**/*.log"],
    localBucket: false,
    compression: { format: "zstd", level: 3, threads: 2 },
    multipart: true,
    signal,
    onProgress: ({ phase, bytesDone, bytesExpected }) => console.log(phase, bytesDone, bytesExpected ?? "unknown"),
  });
  assertType<Equal<typeof backup, DirectoryBackup>>();
  const result = await sandbox.restoreBackup(backup, { signal });
  assertType<Equal<typeof result, RestoreBackupResult>>();
  assertType<Equal<typeof result.success, true>>();
  await sandbox.restoreBackup({ id: backup.id, dir: "/app" });
  // @ts-expect-error `dir` is needed
  await sandbox.createBackup({ name: "name" });
  // @ts-expect-error not an option
  await sandbox.createBackup({ dir: "/workspace", directory: "/workspace" });
  // @ts-expect-error not a format
  await sandbox.createBackup({ dir: "/workspace", compression: { format: "xz" } });
}

export async function filesAndCommands(): Promise<void> {
  const sandbox = getSandbox(plain, "id");
  const text = await sandbox.readFile("/workspace/file");
  assertType<Equal<typeof text.content, string>>();
  const encoded = await sandbox.readFile("/workspace/file", { encoding: "base64" });
  assertType<Equal<typeof encoded.content, string>>();
  const streamed = await sandbox.readFile("/workspace/file", { encoding: "none" });
  assertType<Equal<typeof streamed.content, ReadableStream<Uint8Array>>>();
  await sandbox.writeFile("/workspace/copy", streamed.content);
  const result = await sandbox.exec("true", { onOutput: (stream, data) => console.log(stream, data), timeout: 1000 });
  assertType<Equal<typeof result, ExecResult>>();
  for await (const event of parseSSEStream(await sandbox.execStream("true")))
    assertType<Equal<typeof event, ExecEvent>>();
}

export function errors(error: unknown): string | undefined {
  if (!(error instanceof InvalidBackupConfigError)) return undefined;
  assertType<Equal<typeof error.code, "INVALID_BACKUP_CONFIG">>();
  assertType<Equal<typeof error.context.reason, string>>();
  return error.context.reason;
}
