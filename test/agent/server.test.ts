import { randomUUID } from "node:crypto";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { expect, test } from "vitest";
import packageJson from "../../package.json";
import { type ArchiveEvent, agentRoutes, MiB } from "../../src/protocol.js";
import { allOf, deferred, errorOf, eventsOf, TestAgent } from "./support.js";

const archiveRequest = {
  operationId: randomUUID(),
  backupId: randomUUID(),
  dir: "/workspace",
  gitignore: false,
  excludes: [],
  compression: { format: "zstd" },
  transfer: "urls",
  urls: [],
  multipart: true,
};

test("tells that it is well, and its version", async () => {
  await using agent = await TestAgent.start();
  const response = await agent.fetch(agentRoutes.health);
  expect(await response.json()).toEqual({ ok: true, version: packageJson.version });
});

test("answers an unknown path with 404 and a wrong method with 405", async () => {
  await using agent = await TestAgent.start();
  expect(await errorOf(await agent.fetch("/v1/nothing"))).toMatchObject({ status: 404, code: "VALIDATION_FAILED" });
  const wrongMethod = await agent.fetch(agentRoutes.exec);
  expect(wrongMethod.headers.get("allow")).toBe("POST");
  expect(await errorOf(wrongMethod)).toMatchObject({
    status: 405,
    message: "/v1/exec may be called by POST, not by GET",
  });
});

test("names the field of a body that is wrong, and what it may be", async () => {
  await using agent = await TestAgent.start();
  const problems = async (path: string, body: unknown) => errorOf(await agent.post(path, body));
  expect(await problems(agentRoutes.exec, { command: "true", timeout: "soon" })).toMatchObject({
    status: 400,
    name: "ValidationError",
    message: "timeout: Invalid input: expected number, received string",
  });
  expect((await problems(agentRoutes.exec, { command: "true", env: { A: 1 } })).message).toContain("env.A: ");
  expect((await problems(agentRoutes.files, { action: "chmod", path: "x" })).message).toMatch(/^action: .*'mkdir'/);
  expect((await problems(agentRoutes.exec, [])).message).toContain("the body: ");
});

test("refuses a body that is no JSON, and one that is too long", async () => {
  await using agent = await TestAgent.start();
  const send = async (body: string) => errorOf(await agent.fetch(agentRoutes.exec, { method: "POST", body }));
  expect(await send("{")).toMatchObject({ status: 400, message: "The body must be JSON" });
  const long = JSON.stringify({ command: "x".repeat(8 * MiB) });
  expect(await send(long)).toMatchObject({ status: 413, message: "The body must not be longer than 8388608 bytes" });
});

test("takes only a UUID as an operation's id", async () => {
  await using agent = await TestAgent.start();
  const response = await agent.fetch(agentRoutes.operation("latest"), { method: "DELETE" });
  expect(await errorOf(response)).toMatchObject({ status: 400, code: "VALIDATION_FAILED" });
});

test("streams an archive's events, passes its URLs on, and stops it", async () => {
  const calls: unknown[] = [];
  const answered = deferred();
  await using agent = await TestAgent.start({
    archive: async (request, emit) => {
      calls.push(request);
      await emit({ type: "need-urls", parts: [1, 2] });
      await answered.promise;
      return { type: "done", size: 4, digests: { chunkSize: 1_048_576, sha256: "AAAA" }, upload: { kind: "stream" } };
    },
    answerUrls: (...args) => {
      calls.push(args);
      answered.resolve();
    },
    stop: async (id) => void calls.push(id),
  });
  const { operationId } = archiveRequest;
  const answer = { urls: [{ part: 1, url: "https://example.com/1" }] };

  const types: string[] = [];
  for await (const event of eventsOf<ArchiveEvent>(await agent.post(agentRoutes.archives, archiveRequest))) {
    types.push(event.type);
    if (event.type !== "need-urls") continue;
    expect((await agent.post(agentRoutes.operationUrls(operationId), answer)).status).toBe(200);
  }
  const stopped = await agent.fetch(agentRoutes.operation(operationId), { method: "DELETE" });

  expect(types).toEqual(["need-urls", "done"]);
  expect(stopped.status).toBe(200);
  expect(calls).toEqual([archiveRequest, [operationId, answer], operationId]);
});

test("ends a stream of events with the error of its work", async () => {
  await using agent = await TestAgent.start({ archive: () => Promise.reject(new Error("out of paper")) });
  const events = await allOf(eventsOf(await agent.post(agentRoutes.archives, archiveRequest)));
  expect(events).toMatchObject([{ type: "error", error: { code: "INTERNAL_ERROR", message: "out of paper" } }]);
});

test("aborts the work when the client closes its stream of events", async () => {
  const aborted = deferred<Error>();
  await using agent = await TestAgent.start({
    archive: async (_request, emit, signal) => {
      signal.addEventListener("abort", () => aborted.resolve(signal.reason));
      await emit({ type: "need-urls", parts: [1] });
      throw await aborted.promise;
    },
  });
  for await (const _event of eventsOf(await agent.post(agentRoutes.archives, archiveRequest))) break;
  expect(await aborted.promise).toMatchObject({ code: "OPERATION_ABORTED" });
});

test("sends an archive with its length, and takes one", async () => {
  const archive = Buffer.alloc(3 * MiB, "squash");
  let given: Buffer | undefined;
  await using agent = await TestAgent.start({
    takeArchive: () => ({ size: archive.length, stream: Readable.from([archive]) }),
    giveArchive: async (_id, body) => {
      given = await buffer(body);
    },
  });
  const path = agentRoutes.operationArchive(randomUUID());

  const taken = await agent.fetch(path);
  expect(taken.headers.get("content-length")).toBe(String(archive.length));
  expect(archive.equals(Buffer.from(await taken.arrayBuffer()))).toBe(true);

  expect((await agent.fetch(path, { method: "PUT", body: archive })).status).toBe(200);
  expect(given?.equals(archive)).toBe(true);
});

test("breaks an answer off that turns out shorter than was said", async () => {
  await using agent = await TestAgent.start({
    takeArchive: () => ({ size: 100, stream: Readable.from([Buffer.from("short")]) }),
  });
  const response = await agent.fetch(agentRoutes.operationArchive(randomUUID()));
  await expect(response.text()).rejects.toThrow();
});
