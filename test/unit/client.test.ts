import { env } from "cloudflare:workers";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { archiveKey, metadataKey } from "../../src/backups/bucket.js";
import {
  BackupCreateError,
  type BackupProgress,
  BackupRestoreError,
  FileNotFoundError,
  getSandbox,
  InvalidBackupConfigError,
  SandboxUnavailableError,
  ValidationError,
} from "../../src/index.js";
import { type ArchiveEvent, agentRoutes, hostErrorHeader } from "../../src/protocol.js";
import { ScriptedAgent } from "./scripted-agent.js";

let agent: ScriptedAgent;
beforeEach(() => {
  agent = new ScriptedAgent();
});
afterEach(() => vi.restoreAllMocks());

const sandbox = () => getSandbox(env.SANDBOX, crypto.randomUUID());
const progress = (bytesDone: number): ArchiveEvent => ({
  type: "progress",
  phase: "archive",
  bytesDone,
  bytesExpected: null,
});
const digests = { chunkSize: 1_048_576, sha256: "AAAA" };
const done: ArchiveEvent = { type: "done", size: 7, digests, upload: { kind: "stream" } };
const local = { dir: "/workspace", localBucket: true };

const keysOf = async (prefix: string) => (await env.BACKUP_BUCKET.list({ prefix })).objects.map(({ key }) => key);
const allKeys = () => keysOf("backups/");

describe("createBackup", () => {
  test("stores what the agent made, and its metadata", async () => {
    agent.archive = "archive";
    agent.events = [progress(1), { type: "need-transfer", size: 7 }, done];

    const backup = await sandbox().createBackup({ ...local, name: "first", ttl: 100 });

    expect(backup).toEqual({ id: backup.id, dir: "/workspace", localBucket: true });
    expect(await (await env.BACKUP_BUCKET.get(archiveKey(backup.id)))?.text()).toBe("archive");
    const metadata = await (await env.BACKUP_BUCKET.get(metadataKey(backup.id)))?.json<Record<string, unknown>>();
    expect(metadata).toMatchObject({
      id: backup.id,
      dir: "/workspace",
      name: "first",
      sizeBytes: 7,
      ttl: 100,
      digests,
    });
    expect(Date.parse(String(metadata?.createdAt))).toBeGreaterThan(Date.now() - 60_000);
  });

  test("reports progress to its caller, across RPC", async () => {
    agent.archive = "archive";
    agent.events = [progress(1), progress(2), { type: "need-transfer", size: 7 }, done];
    const reports: BackupProgress[] = [];

    await sandbox().createBackup({ ...local, onProgress: (report) => reports.push(report) });

    expect(reports.slice(0, 2)).toEqual([
      { phase: "archive", bytesDone: 1, bytesExpected: null },
      { phase: "archive", bytesDone: 2, bytesExpected: null },
    ]);
  });

  test("is stopped by its caller's signal, rejects with its reason, and leaves nothing", async () => {
    const before = await allKeys();
    agent.events = [progress(1)];
    const controller = new AbortController();
    const reason = new RangeError("changed my mind");

    const creating = sandbox().createBackup({
      ...local,
      signal: controller.signal,
      onProgress: () => controller.abort(reason),
    });

    await expect(creating).rejects.toBe(reason);
    expect(agent.requests.some((request) => request.startsWith("DELETE /v1/operations/"))).toBe(true);
    expect(await allKeys()).toEqual(before);
  });

  test("is stopped by a callback that throws, and rejects with what that threw", async () => {
    agent.events = [progress(1)];
    const thrown = new SyntaxError("the callback failed");

    const creating = sandbox().createBackup({
      ...local,
      onProgress: () => {
        throw thrown;
      },
    });

    await expect(creating).rejects.toBe(thrown);
  });

  test("ends with the agent's error as BackupCreateError, with the agent's facts", async () => {
    agent.events = [
      {
        type: "error",
        error: new BackupCreateError("mksquashfs failed: Permission denied", {
          dir: "/real/dir",
          exitCode: 1,
          stderr: "Permission denied",
        }).toJSON(),
      },
    ];

    const error = await sandbox()
      .createBackup(local)
      .catch((error: unknown) => error);

    expect(error).toBeInstanceOf(BackupCreateError);
    expect(error).toMatchObject({
      message: "mksquashfs failed: Permission denied",
      context: { dir: "/workspace", exitCode: 1, stderr: "Permission denied" },
    });
  });

  test.each([
    ["ends without a last event", () => new Response(`${JSON.stringify(progress(1))}\n`)],
    ["answers what is no event", () => new Response('{"type":"surprise"}\n')],
    ["answers what is no JSON", () => new Response("<html>\n")],
    ["answers with a status of its own", () => new Response("bad gateway", { status: 502 })],
  ])("fails as BackupCreateError when the agent %s", async (_name, answer) => {
    agent.answers.set(agentRoutes.archives, answer);

    await expect(sandbox().createBackup(local)).rejects.toBeInstanceOf(BackupCreateError);
  });

  test("that fails does not hinder the next on the same sandbox", async () => {
    const client = sandbox();
    agent.events = [{ type: "error", error: new BackupCreateError("no", { dir: "/workspace" }).toJSON() }];
    await expect(client.createBackup(local)).rejects.toBeInstanceOf(BackupCreateError);
    agent.archive = "archive";
    agent.events = [{ type: "need-transfer", size: 7 }, done];

    expect((await client.createBackup(local)).dir).toBe("/workspace");
  });

  test("refuses a wrong option before the sandbox is started", async () => {
    await expect(sandbox().createBackup({ dir: "/etc" })).rejects.toBeInstanceOf(InvalidBackupConfigError);
    expect(globalThis.fetch).not.toHaveBeenCalled();
  });
});

describe("restoreBackup", () => {
  async function store(metadata: Record<string, unknown> = {}) {
    const id = crypto.randomUUID();
    await env.BACKUP_BUCKET.put(archiveKey(id), "archive");
    const createdAt = new Date().toISOString();
    const stored = { id, dir: "/workspace", name: null, sizeBytes: 7, ttl: 600, createdAt, ...metadata };
    await env.BACKUP_BUCKET.put(metadataKey(id), JSON.stringify(stored));
    return { id, dir: "/workspace", localBucket: true as const };
  }

  test("has the agent bring back the archive that was stored, and reports progress", async () => {
    const backup = await store({ digests });
    agent.events = [
      { type: "progress", phase: "download", bytesDone: 3, bytesExpected: 7 },
      { type: "need-transfer", size: 7 },
      { type: "done" },
    ];
    const reports: BackupProgress[] = [];

    const result = await sandbox().restoreBackup(
      { ...backup, dir: "/app/copy" },
      { onProgress: (report) => reports.push(report) },
    );

    expect(result).toEqual({ success: true, dir: "/app/copy", id: backup.id });
    expect(reports).toEqual([{ phase: "download", bytesDone: 3, bytesExpected: 7 }]);
    expect(agent.bodies[0]).toMatchObject({
      backupId: backup.id,
      dir: "/app/copy",
      archive: { size: 7, digests, sha256: null },
      transfer: "stream",
      method: "replace",
    });
  });

  test("gives the agent a presigned URL on the production path, and never a key", async () => {
    const { localBucket: _localBucket, ...backup } = await store();
    agent.events = [{ type: "need-urls", parts: [0] }, { type: "done" }];

    await sandbox().restoreBackup(backup);

    const sent = JSON.stringify(agent.bodies);
    expect(sent).toContain("X-Amz-Signature=");
    expect(sent).toContain(`/backups-of-the-test/${archiveKey(backup.id)}?`);
    expect(sent).not.toContain("secret-key-of-the-test");
  });

  test("is stopped by its caller's signal", async () => {
    const backup = await store();
    agent.events = [{ type: "progress", phase: "download", bytesDone: 3, bytesExpected: 7 }];
    const controller = new AbortController();

    const restoring = sandbox().restoreBackup(backup, {
      signal: controller.signal,
      onProgress: () => controller.abort(new Error("not now")),
    });

    await expect(restoring).rejects.toThrow("not now");
    expect(agent.requests.some((request) => request.startsWith("DELETE /v1/operations/"))).toBe(true);
  });

  test("names the sandbox's end as its cause", async () => {
    const backup = await store();
    agent.answers.set(agentRoutes.restores, () => new Response(""));

    const error = await sandbox()
      .restoreBackup(backup)
      .catch((error: unknown) => error);

    expect(error).toBeInstanceOf(BackupRestoreError);
    expect(error).toMatchObject({
      message: "The sandbox stopped during the call",
      context: { dir: "/workspace", backupId: backup.id, cause: "SANDBOX_UNAVAILABLE" },
    });
  });
});

test("backups and restores of one sandbox run one after another", async () => {
  const client = sandbox();
  agent.archive = "archive";
  agent.events = [{ type: "need-transfer", size: 7 }, done];

  await Promise.all([client.createBackup(local), client.createBackup(local), client.createBackup(local)]);

  const routes = agent.requests.map((request) => request.replace(/operations\/.*\//, "operations/…/"));
  const one = ["POST /v1/archives", "GET /v1/operations/…/archive"];
  expect(routes).toEqual([...one, ...one, ...one]);
});

describe("a sandbox that has answered", () => {
  const stopped = () =>
    Response.json(new SandboxUnavailableError("The sandbox does not run."), {
      status: 503,
      headers: { [hostErrorHeader]: "not-running" },
    });

  test("is not asked whether it runs: a call is one request", async () => {
    const one = sandbox();
    await one.readFile("/workspace/a");
    await one.readFile("/workspace/a");
    await one.readFile("/workspace/a");

    expect(agent.starts).toBe(1);
    expect(agent.requests).toHaveLength(3);
  });

  test("is started again when it has stopped, and gets the call", async () => {
    const one = sandbox();
    await one.readFile("/workspace/a");
    let answers = 0;
    agent.answers.set(agentRoutes.fileContent, () => (answers++ === 0 ? stopped() : new Response("there")));

    expect((await one.readFile("/workspace/a")).content).toBe("there");
    expect(agent.starts).toBe(2);
  });

  test("is asked whether it runs before it gets a stream, which cannot be sent twice", async () => {
    const one = sandbox();
    await one.readFile("/workspace/a");
    await one.writeFile("/workspace/a", new Response("content").body ?? "");

    expect(agent.starts).toBe(2);
  });
});

test("an error that the agent answers arrives at the client as its class", async () => {
  const error = new FileNotFoundError("/workspace/x does not exist", { path: "/workspace/x" });
  agent.answers.set(agentRoutes.files, () => Response.json(error.toJSON(), { status: 404 }));

  const arrived = await sandbox()
    .deleteFile("/workspace/x")
    .catch((error: unknown) => error);

  expect(arrived).toBeInstanceOf(FileNotFoundError);
  expect(arrived).toMatchObject({ message: error.message, context: error.context, code: "FILE_NOT_FOUND" });
});

test("an answer that none of the package's programs gave is reported as it is", async () => {
  agent.answers.set(agentRoutes.files, () => new Response("proxy says no", { status: 502 }));

  const arrived = await sandbox()
    .exists("/workspace")
    .catch((error: unknown) => error);

  expect(arrived).toBeInstanceOf(SandboxUnavailableError);
  expect(arrived).toMatchObject({ message: "The agent answered HTTP 502: proxy says no" });
});

describe("wrong arguments are refused by name:", () => {
  const calls: [string, unknown[], string][] = [
    ["exec", [], "`command` has to be a string"],
    ["exec", [""], "`command` must not be empty"],
    ["exec", [5], "`command` has to be a string"],
    ["exec", ["ls", { cwd: 5 }], "`cwd` has to be a string"],
    ["exec", ["ls", { cwd: "a\0b" }], "`cwd` must not contain a NUL character"],
    ["exec", ["ls", { env: "A=1" }], "`env` has to be an object of strings"],
    ["exec", ["ls", { env: { A: 1 } }], "`env.A` has to be a string"],
    ["exec", ["ls", { env: { "A=B": "1" } }], "`env.A=B`"],
    ["exec", ["ls", { timeout: 0 }], "`timeout` has to be a number of milliseconds above 0"],
    ["exec", ["ls", { timeout: "5s" }], "`timeout` has to be a number of milliseconds above 0"],
    ["exec", ["ls", { stdin: 1 }], "`stdin` has to be a string"],
    ["exec", ["ls", { stream: "yes" }], "`stream` has to be true or false"],
    ["exec", ["ls", { onOutput: "print" }], "`onOutput` has to be a function"],
    ["exec", ["ls", 5], "`options` has to be an object"],
    ["execStream", [{}], "`command` has to be a string"],
    ["writeFile", [], "`path` has to be a string"],
    ["writeFile", ["", "x"], "`path` must not be empty"],
    ["writeFile", ["/a\0b", "x"], "`path` must not contain a NUL character"],
    ["writeFile", ["/a", 5], "`content` has to be a string, a Uint8Array or a ReadableStream"],
    ["writeFile", ["/a", "x", { encoding: "latin1" }], '`encoding` has to be "utf-8" or "base64"'],
    ["writeFile", ["/a", "!", { encoding: "base64" }], "`content` is not base64"],
    ["readFile", [7], "`path` has to be a string"],
    ["readFile", ["/a", { encoding: "hex" }], '`encoding` has to be "utf-8", "base64" or "none"'],
    ["exists", [""], "`path` must not be empty"],
    ["mkdir", ["/a", { recursive: 1 }], "`recursive` has to be true or false"],
    ["deleteFile", [null], "`path` has to be a string"],
    ["renameFile", ["/a"], "`newPath` has to be a string"],
    ["moveFile", ["/a", ""], "`newPath` must not be empty"],
    ["listFiles", ["/a", { recursive: "yes" }], "`recursive` has to be true or false"],
    ["listFiles", ["/a", { includeHidden: 0 }], "`includeHidden` has to be true or false"],
    ["gitCheckout", [""], "`repoUrl` must not be empty"],
    ["gitCheckout", ["https://x/y", { depth: 0 }], "`depth` has to be a whole number above 0"],
    ["gitCheckout", ["https://x/y", { depth: 1.5 }], "`depth` has to be a whole number above 0"],
    ["gitCheckout", ["https://x/y", { branch: "" }], "`branch` must not be empty"],
    ["gitCheckout", ["https://x/y", { targetDir: 1 }], "`targetDir` has to be a string"],
    ["setEnvVars", [{ A: 1 }], "`A` has to be a string"],
    ["setEnvVars", ["A=1"], "has to be an object of strings"],
  ];
  test.each(calls)("%s(%j)", async (method, args, reason) => {
    const call = Reflect.get(sandbox(), method) as (...args: unknown[]) => Promise<unknown>;

    const error = await call(...args).catch((error: unknown) => error);

    expect(error).toBeInstanceOf(ValidationError);
    expect(String(error)).toContain(reason);
    expect(agent.requests).toEqual([]);
  });
});

test("variables of setEnvVars and of a command come together; undefined takes one out", async () => {
  const client = sandbox();
  agent.answers.set(
    agentRoutes.exec,
    () => new Response('{"type":"complete","exitCode":0,"duration":1,"timestamp":"2026-01-01T00:00:00.000Z"}\n'),
  );
  await client.setEnvVars({ A: "1", B: "2", C: "3" });
  await client.setEnvVars({ B: undefined, C: "4" });

  const result = await client.exec("env", { env: { D: "5", A: undefined } });

  expect(result).toMatchObject({ success: true, exitCode: 0, command: "env", duration: 1 });
  expect(agent.bodies.at(-1)).toEqual({ command: "env", env: { A: "1", C: "4", D: "5" } });
});
