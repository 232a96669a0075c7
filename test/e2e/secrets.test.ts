import { randomUUID } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { listenOnLoopback } from "../../dev/loopback.js";
import type { TestSandbox } from "../support/client.js";
import { eventually } from "../support/eventually.js";
import type { FaultControl } from "../support/fault-proxy.js";
import { newFaultySandbox, system, worker } from "./context.js";

const PASSWORD = `password-${randomUUID()}`;
const dir = "/workspace/dir";

/** What must not be seen: the Worker's keys, the host's token, what makes a URL presigned, a caller's password. */
let secrets: { name: string; found: (text: string) => boolean }[];

beforeAll(async () => {
  const values = [...(await worker.secrets()), PASSWORD];
  expect(values).toHaveLength(4);
  secrets = [
    ...values.map((value, index) => ({ name: `secret ${index}`, found: (text: string) => text.includes(value) })),
    ...["X-Amz-Signature", "X-Amz-Credential"].map((name) => ({
      name,
      found: (text: string) => text.toLowerCase().includes(name.toLowerCase()),
    })),
  ];
});

/** Names the secrets in a text, not their values. */
const secretsIn = (text: string) => secrets.filter(({ found }) => found(text)).map(({ name }) => name);

/** Command lines of all processes that this one can see; sandboxes run on the same machine. */
async function commandLines(): Promise<string> {
  const ids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const lines = await Promise.all(ids.map((id) => readFile(`/proc/${id}/cmdline`, "utf8").catch(() => "")));
  return lines.join("\n").replaceAll("\0", " ");
}

/** Shows what a command in a sandbox can see, but for the agent's memory. */
const LOOK = [
  "env",
  "ps -ef ww",
  "cat /proc/[0-9]*/cmdline",
  "cat /proc/[0-9]*/environ",
  "cat /proc/mounts",
  "find /var/backups /tmp /var/tmp /root /home /app /workspace",
  "find /var/backups /tmp /var/tmp /root /home /app /workspace -type f -size -1000k -exec cat {} +",
].join("; ");

async function expectNoSecrets(sandbox: TestSandbox): Promise<void> {
  const inside = await sandbox.do<{ stdout: string }>("exec", [LOOK]);
  expect(secretsIn(inside.stdout)).toEqual([]);
  expect(secretsIn(await commandLines())).toEqual([]);
}

describe.skipIf(system.pid === undefined)("no secret, presigned URL or token is seen", () => {
  let sandbox: TestSandbox;
  let faults: FaultControl;
  let gitPort: number;
  const gitServer = createServer((request, response) => {
    const isAllowed = request.headers.authorization !== undefined;
    response.writeHead(isAllowed ? 404 : 401, { "www-authenticate": "Basic" }).end("no");
  });

  beforeAll(async () => {
    ({ sandbox, faults } = await newFaultySandbox());
    await sandbox.exec("mkdir dir && head -c 17000000 /dev/urandom > dir/random");
    gitPort = await listenOnLoopback(gitServer);
  });
  afterAll(() => gitServer.close());

  test("while a backup is sent and a restore fetches it", async () => {
    await faults.set([{ method: "PUT", url: "partNumber=2", instead: "hang" }]);
    const creating = sandbox.call("createBackup", [{ dir }], { optionsAt: 0, abortAfter: 3000 });
    await eventually(async () => (await faults.requests()).some(({ url }) => url.includes("partNumber=2")));
    await expectNoSecrets(sandbox);
    await creating;

    await faults.set([]);
    const backup = await sandbox.createBackup({ dir });
    expect(secretsIn(JSON.stringify(backup))).toEqual([]);
    expect(secretsIn((await worker.getObject(`backups/${backup.id}/meta.json`)).toString())).toEqual([]);
    await faults.set([{ method: "GET", instead: "hang" }]);
    const restoring = sandbox.call("restoreBackup", [backup, {}], { optionsAt: 1, abortAfter: 3000 });
    await eventually(async () => (await faults.requests()).some(({ method }) => method === "GET"));
    await expectNoSecrets(sandbox);
    await restoring;
    await faults.set([]);
    await sandbox.restoreBackup(backup);
    await expectNoSecrets(sandbox);
  });

  test.each([
    { what: "an upload that is refused", planned: [{ method: "PUT", status: 400, code: "Bad" }] },
    { what: "an upload that is never begun", planned: [{ method: "POST", status: 403, code: "AccessDenied" }] },
    { what: "an upload that breaks off", planned: [{ method: "PUT", instead: "reset" as const }] },
    {
      what: "an upload that cannot be removed",
      planned: [
        { method: "PUT", status: 400, code: "Bad" },
        { method: "DELETE", status: 403, code: "AccessDenied" },
      ],
    },
    { what: "a lost answer", planned: [{ method: "POST", url: "uploadId", lose: "answer" as const }] },
  ])("in the error of $what", async ({ planned }) => {
    await faults.set(planned);

    const error = await sandbox.fail("createBackup", [{ dir }]);

    expect(error.code).toBe("BACKUP_CREATE_FAILED");
    expect(secretsIn(JSON.stringify(error))).toEqual([]);
    expect(JSON.stringify(error)).not.toMatch(/https?:\/\//);
    await faults.set([]);
  });

  test("in the error of a download that is refused", async () => {
    const backup = await sandbox.createBackup({ dir });
    await faults.set([{ method: "GET", status: 403, code: "AccessDenied" }]);

    const error = await sandbox.fail("restoreBackup", [backup]);

    expect(error.message).toContain("HTTP 403 AccessDenied");
    expect(secretsIn(JSON.stringify(error))).toEqual([]);
    expect(JSON.stringify(error)).not.toMatch(/https?:\/\//);
    await faults.set([]);
  });

  test("in the error, the arguments and the files of a clone that fails", async () => {
    const url = `http://user:${PASSWORD}@127.0.0.1:${gitPort}/repo.git`;

    const error = await sandbox.fail("gitCheckout", [url]);

    expect(error.code).toBe("GIT_CLONE_FAILED");
    expect(secretsIn(JSON.stringify(error))).toEqual([]);
    await expectNoSecrets(sandbox);
  });

  test("in the log of wrangler, the host and the agents, after all of this", async () => {
    const log = await readFile(system.logFile ?? "", "utf8");

    expect(log).toContain("CREATE_FAILED");
    const telling = log.split("\n").filter((line) => secretsIn(line).length > 0);
    // The start of each line says who wrote it; the rest may be the secret.
    expect(telling.map((line) => line.slice(0, 60))).toEqual([]);
  });
});
