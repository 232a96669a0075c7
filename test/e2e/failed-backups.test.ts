import { describe, expect, test } from "vitest";
import type { TestSandbox } from "../support/client.js";
import { eventually } from "../support/eventually.js";
import type { Fault, FaultControl } from "../support/fault-proxy.js";
import { newFaultySandbox, system, worker } from "./context.js";

/** A little more than the size from which an archive is sent in parts. */
const LARGE = "head -c 17000000 /dev/urandom > random";
const SMALL = "echo content > file";

const dir = "/workspace";

/** Neither the bucket nor the container has anything of the backups that were tried, and the next one succeeds. */
async function expectNothingLeft(sandbox: TestSandbox, faults: FaultControl): Promise<void> {
  const requests = await faults.requests();
  await faults.set([]);
  for (const key of await sandbox.do<string[]>("touchedKeys", [])) expect(await worker.listKeys(key)).toEqual([]);
  // Whether an upload is still there is told by sending a part of it; wrangler's endpoint cannot list them. Where no part was
  // sent there is no URL for one, and the bucket has to have confirmed the abort.
  for (const { uploadId } of requests) {
    if (uploadId === undefined) continue;
    const itsRequests = requests.filter(({ url }) => url.includes(encodeURIComponent(uploadId)));
    const part = itsRequests.find(({ method }) => method === "PUT");
    if (part === undefined) {
      expect(itsRequests).toContainEqual(expect.objectContaining({ method: "DELETE", status: 204 }));
      continue;
    }
    const answer = await fetch(faults.origin + part.url, { method: "PUT", body: "x" });
    expect(await answer.text()).toContain("NoSuchUpload");
  }
  expect(await sandbox.exec("find /var/backups -type f")).toBe("");
  expect(await sandbox.exec("ls /proc/[0-9]*/exe -l 2>/dev/null | grep -c mksquashfs || true")).toBe("0\n");
  await sandbox.exec("rm -rf /workspace/* && echo next > next");
  await sandbox.createBackup({ dir });
}

describe.skipIf(system.faults === undefined).concurrent("createBackup leaves nothing behind when", () => {
  const sizes = [
    { size: "a small archive", prepare: SMALL },
    { size: "a large archive", prepare: LARGE },
  ];
  const refusals: { answer: string; fault: Fault; message: string; tries: number; stallTimeout?: number }[] = [
    {
      answer: "403",
      fault: { method: "PUT", status: 403, code: "AccessDenied" },
      message: "the bucket answered HTTP 403 AccessDenied",
      tries: 2,
    },
    { answer: "400", fault: { method: "PUT", status: 400, code: "Bad" }, message: "HTTP 400 Bad", tries: 1 },
    { answer: "500", fault: { method: "PUT", status: 500 }, message: "HTTP 500 InternalError", tries: 5 },
    { answer: "a reset", fault: { method: "PUT", instead: "reset" }, message: "no answer from the bucket", tries: 5 },
    {
      answer: "nothing, ever",
      fault: { method: "PUT", instead: "hang" },
      message: "nothing moved for 1000 ms",
      tries: 5,
      stallTimeout: 1000,
    },
  ];
  test.each(sizes.flatMap((size) => refusals.map((refusal) => ({ ...size, ...refusal }))))(
    "the upload of $size is answered with $answer",
    async ({ prepare, fault, message, tries, stallTimeout }) => {
      const { sandbox, faults } = await newFaultySandbox(stallTimeout);
      await sandbox.exec(prepare);
      await faults.set([fault]);

      const error = await sandbox.fail("createBackup", [{ dir }]);

      expect(error).toMatchObject({ name: "BackupCreateError", code: "BACKUP_CREATE_FAILED", context: { dir } });
      expect(error.message).toContain(message);
      const puts = (await faults.requests()).filter(({ method }) => method === "PUT");
      // One of the parts, or the whole object, was tried so often; the others may have been stopped before.
      const targets = puts.map(({ url }) => /partNumber=\d+/.exec(url)?.[0] ?? "");
      const counts = targets.map((target) => targets.filter((other) => other === target).length);
      expect(Math.max(...counts)).toBe(tries);
      await expectNothingLeft(sandbox, faults);
    },
  );

  test.each<{ what: string; fault: Fault; message: string }>([
    {
      what: "a multipart upload cannot be begun",
      fault: { method: "POST", url: "\\?uploads", status: 403, code: "AccessDenied" },
      message: "CreateMultipartUpload: the bucket answered HTTP 403 AccessDenied",
    },
    {
      what: "a multipart upload cannot be completed",
      fault: { method: "POST", url: "uploadId=", status: 500 },
      message: "CompleteMultipartUpload: the bucket answered HTTP 500 InternalError",
    },
    {
      what: "completing a multipart upload is answered 200 with an error",
      fault: { method: "POST", url: "uploadId=", status: 200, code: "InternalError" },
      message: "CompleteMultipartUpload: the bucket answered HTTP 200 InternalError",
    },
    {
      what: "the connection breaks while a multipart upload is completed",
      fault: { method: "POST", url: "uploadId=", instead: "reset" },
      message: "CompleteMultipartUpload",
    },
    {
      what: "the answer to completing a multipart upload is lost",
      fault: { method: "POST", url: "uploadId=", lose: "answer" },
      message: "CompleteMultipartUpload",
    },
    {
      what: "only the last part of a multipart upload fails",
      fault: { method: "PUT", url: "partNumber=2", status: 400, code: "Bad" },
      message: "the bucket answered HTTP 400 Bad",
    },
  ])("$what", async ({ fault, message }) => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(LARGE);
    await faults.set([fault]);

    const error = await sandbox.fail("createBackup", [{ dir }]);

    expect(error.code).toBe("BACKUP_CREATE_FAILED");
    expect(error.message).toContain(message);
    await expectNothingLeft(sandbox, faults);
  });

  test("the bucket stored another object than was sent", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(SMALL);
    await faults.set([{ method: "PUT", etag: "0123456789abcdef" }]);

    const error = await sandbox.fail("createBackup", [{ dir }]);

    expect(error.code).toBe("BACKUP_CREATE_FAILED");
    expect(error.message).toMatch(
      /the bucket stored \d+ bytes with ETag \w+ instead of \d+ bytes with ETag 0123456789/,
    );
    await expectNothingLeft(sandbox, faults);
  });

  test.each([
    { what: "the archive cannot be stored", key: "data.sqsh", options: { localBucket: true } },
    {
      what: "the metadata cannot be stored, by the localBucket path,",
      key: "meta.json",
      options: { localBucket: true },
    },
    { what: "the metadata cannot be stored, by the production path,", key: "meta.json", options: {} },
  ])("$what", async ({ key, options }) => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(SMALL);
    await sandbox.do("failPuts", [key]);

    const error = await sandbox.fail("createBackup", [{ dir, ...options }]);

    expect(error.code).toBe("BACKUP_CREATE_FAILED");
    expect(error.message).toContain("We encountered an internal error");
    await sandbox.do("failPuts", ["nothing"]);
    await expectNothingLeft(sandbox, faults);
  });

  test.each([
    { path: "production", options: {} },
    { path: "localBucket", options: { localBucket: true } },
  ])("the agent is killed while it makes the archive, by the $path path", async ({ options }) => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(LARGE);
    const compression = { format: "zstd", level: 22 };
    const creating = sandbox.fail("createBackup", [{ dir, compression, ...options }]);

    // Stopped in its tracks, mksquashfs cannot end before the agent does.
    await sandbox.call("exec", ["until pkill -STOP mksquashfs; do sleep 0.01; done; kill -9 $PPID"]);

    const error = await creating;
    expect(error).toMatchObject({ code: "BACKUP_CREATE_FAILED", context: { cause: "SANDBOX_UNAVAILABLE" } });
    await expectNothingLeft(sandbox, faults);
  });

  test.each(sizes)("the agent is killed while it sends $size", async ({ prepare }) => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(prepare);
    await faults.set([{ method: "PUT", instead: "hang" }]);
    const creating = sandbox.fail("createBackup", [{ dir }]);
    await eventually(async () => (await faults.requests()).some(({ method }) => method === "PUT"));

    await sandbox.call("exec", ["kill -9 $PPID"]);

    const error = await creating;
    expect(error).toMatchObject({ code: "BACKUP_CREATE_FAILED", context: { cause: "SANDBOX_UNAVAILABLE" } });
    await expectNothingLeft(sandbox, faults);
  });

  test.each([
    { path: "production", options: {} },
    { path: "localBucket", options: { localBucket: true } },
  ])("the container's disk is full, by the $path path", async ({ options }) => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(LARGE);
    await sandbox.exec("mount -t tmpfs -o size=8m tmpfs /var/backups");

    const error = await sandbox.fail("createBackup", [{ dir, ...options }]);

    expect(error.code).toBe("BACKUP_CREATE_FAILED");
    expect(error.message).toContain("No space left on");
    await expectNothingLeft(sandbox, faults);
  });

  test.each([
    { phase: "archive", path: "production", options: {} },
    { phase: "upload", path: "production", options: {} },
    { phase: "archive", path: "localBucket", options: { localBucket: true } },
    { phase: "upload", path: "localBucket", options: { localBucket: true } },
  ])("its caller aborts in the phase $phase, by the $path path", async ({ phase, options }) => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(LARGE);
    // The first part passes, and is reported.
    await faults.set([{ method: "PUT", url: "partNumber=2", instead: "hang" }]);

    // Slow enough to make that it is reported.
    const compression = { format: "zstd", level: phase === "archive" ? 22 : 1 };
    const backup = { dir, compression, ...options };

    const error = await sandbox.fail("createBackup", [backup], { optionsAt: 0, abortAtPhase: phase });

    expect(error).toMatchObject({ message: "aborted by the test", isSandboxError: false });
    await expectNothingLeft(sandbox, faults);
  });

  test("its caller aborts while a small archive is sent", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(SMALL);
    await faults.set([{ method: "PUT", instead: "hang" }]);

    const error = await sandbox.fail("createBackup", [{ dir }], { optionsAt: 0, abortAfter: 500 });

    expect(error).toMatchObject({ message: "aborted by the test", isSandboxError: false });
    await expectNothingLeft(sandbox, faults);
  });
});

describe.skipIf(system.faults === undefined).concurrent("createBackup", () => {
  test("says so when what was sent could not be removed, and removes it when it starts again", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(LARGE);
    await faults.set([
      { method: "POST", url: "uploadId=", status: 400, code: "InvalidPart" },
      { method: "DELETE", status: 403, code: "AccessDenied" },
    ]);

    const error = await sandbox.fail("createBackup", [{ dir }]);

    expect(error.message).toContain("HTTP 400 InvalidPart");
    expect(error.message).toContain("could not be removed from the bucket");
    await faults.set([]);
    await sandbox.call("restart", []);
    await sandbox.call("exists", [dir]);
    await eventually(async () =>
      (await faults.requests()).some(
        ({ method, url, status }) => method === "DELETE" && url.includes("uploadId=") && status === 204,
      ),
    );
  });

  test.each<{ what: string; prepare: string; faults: Fault[]; stallTimeout?: number }>([
    {
      what: "an expired URL",
      prepare: SMALL,
      faults: [{ method: "PUT", status: 403, code: "AccessDenied", times: 1 }],
    },
    {
      what: "an expired URL of a part",
      prepare: LARGE,
      faults: [{ method: "PUT", url: "partNumber=2", status: 403, code: "AccessDenied", times: 1 }],
    },
    {
      what: "server errors, a reset, a lost answer",
      prepare: SMALL,
      faults: [
        { method: "PUT", status: 500, times: 1 },
        { method: "PUT", status: 429, code: "SlowDown", times: 1 },
        { method: "PUT", instead: "reset", times: 1 },
        { method: "PUT", lose: "answer", times: 1 },
      ],
    },
    {
      what: "server errors, a reset, a lost answer for parts",
      prepare: LARGE,
      faults: [
        { method: "PUT", url: "partNumber=1", status: 503, code: "SlowDown", times: 1 },
        { method: "PUT", url: "partNumber=2", instead: "reset", times: 1 },
        { method: "PUT", url: "partNumber=2", lose: "answer", times: 1 },
        { method: "POST", status: 500, times: 2 },
      ],
    },
    { what: "silence", prepare: SMALL, faults: [{ method: "PUT", instead: "hang", times: 1 }], stallTimeout: 3000 },
  ])("overcomes $what", async ({ prepare, faults: planned, stallTimeout }) => {
    const { sandbox, faults } = await newFaultySandbox(stallTimeout);
    await sandbox.exec(prepare);
    const before = await sandbox.manifest(dir);
    await faults.set(planned);

    const backup = await sandbox.createBackup({ dir });

    await sandbox.exec("rm -rf /workspace/*");
    await sandbox.restoreBackup(backup);
    expect(await sandbox.manifest(dir)).toBe(before);
    expect(await sandbox.exec("find /var/backups -name archive.sqsh | wc -l")).toBe("1\n");
  });

  test("that waits behind one that fails, succeeds", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(SMALL);
    await faults.set([{ method: "PUT", status: 400, code: "Bad", times: 1 }]);

    const [first, second] = await Promise.all([
      sandbox.call("createBackup", [{ dir }]),
      sandbox.call("createBackup", [{ dir }]),
    ]);

    expect([first.error, second.error].filter(Boolean)).toHaveLength(1);
    expect([first.value, second.value].filter(Boolean)).toHaveLength(1);
  });
});
