import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { expect, test } from "vitest";
import { listenOnLoopback } from "../../dev/loopback.js";
import { agentRoutes } from "../../src/protocol.js";
import { errorOf, eventually, TestAgent, temporaryDirectory } from "./support.js";

const identity = { GIT_AUTHOR_NAME: "a", GIT_AUTHOR_EMAIL: "a@x", GIT_COMMITTER_NAME: "a", GIT_COMMITTER_EMAIL: "a@x" };

/** A repository with two commits on `main`, a branch `topic` and a tag `v1`, and a place to clone to. */
async function scene() {
  const agent = await TestAgent.start();
  const directory = await temporaryDirectory();
  const origin = join(directory.path, "origin");
  const git = (...args: string[]) =>
    execFileSync("git", ["-C", origin, ...args], { env: { ...process.env, ...identity }, stdio: "pipe" }).toString();
  await mkdir(origin);
  git("init", "--quiet", "--initial-branch=main");
  await writeFile(join(origin, "file"), "first");
  git("add", ".");
  git("commit", "--quiet", "-m", "first");
  git("tag", "v1");
  git("branch", "topic");
  await writeFile(join(origin, "file"), "second");
  git("commit", "--quiet", "-am", "second");
  return {
    agent,
    origin,
    url: `file://${origin}`,
    git,
    targetDir: join(directory.path, "clone"),
    checkout: (request: object) => agent.post(agentRoutes.gitCheckout, request),
    async [Symbol.asyncDispose]() {
      await agent[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

test("clones a repository and tells the branch that is checked out", async () => {
  await using it = await scene();
  const { url, targetDir } = it;
  expect(await (await it.checkout({ repoUrl: url, targetDir })).json()).toEqual({ branch: "main", targetDir });
  expect(await readFile(join(targetDir, "file"), "utf8")).toBe("second");
});

test("checks a branch or a tag out, with as much history as asked for", async () => {
  await using it = await scene();
  const { url, targetDir } = it;
  const topic = await it.checkout({ repoUrl: url, targetDir, branch: "topic" });
  expect(await topic.json()).toEqual({ branch: "topic", targetDir });
  const tag = await it.checkout({ repoUrl: url, targetDir: `${targetDir}2`, branch: "v1" });
  expect(await tag.json()).toMatchObject({ branch: "v1" });

  await it.checkout({ repoUrl: url, targetDir: `${targetDir}3`, depth: 1 });
  const count = execFileSync("git", ["-C", `${targetDir}3`, "rev-list", "--count", "HEAD"]).toString();
  expect(count.trim()).toBe("1");
});

test("clones a repository that has no commit yet", async () => {
  await using it = await scene();
  const empty = `${it.origin}-empty`;
  execFileSync("git", ["init", "--quiet", "--bare", "--initial-branch=trunk", empty]);
  const response = await it.checkout({ repoUrl: empty, targetDir: it.targetDir });
  expect(await response.json()).toMatchObject({ branch: "trunk" });
});

test("clones into an empty directory, and leaves one with contents as it is", async () => {
  await using it = await scene();
  const { url, targetDir } = it;
  await mkdir(targetDir);
  expect((await it.checkout({ repoUrl: url, targetDir })).status).toBe(200);

  const full = `${targetDir}2`;
  await mkdir(full);
  await writeFile(join(full, "mine"), "");
  expect(await errorOf(await it.checkout({ repoUrl: url, targetDir: full }))).toMatchObject({
    status: 500,
    code: "GIT_CLONE_FAILED",
    message: `Cannot clone ${url}: fatal: destination path '${full}' already exists and is not an empty directory.`,
    context: { repoUrl: url, targetDir: full, exitCode: 128 },
  });
  expect(await readdir(full)).toEqual(["mine"]);
});

test("clones to the repository's name in /workspace when no directory is given", async () => {
  await using it = await scene();
  for (const repoUrl of ["file:///none/such-repo.git", "file:///none/such-repo/", "/none/such-repo"]) {
    const { context } = await errorOf(await it.checkout({ repoUrl }));
    expect(context.targetDir).toBe("/workspace/such-repo");
  }
  const nameless = await errorOf(await it.checkout({ repoUrl: "https://" }));
  expect(nameless).toMatchObject({ status: 400, message: expect.stringContaining("targetDir must be given") });
});

test("gives git's own words when it fails", async () => {
  await using it = await scene();
  const { url, targetDir } = it;
  expect((await errorOf(await it.checkout({ repoUrl: url, targetDir, branch: "nope" }))).message).toContain(
    "Remote branch nope not found",
  );
  expect(await stat(targetDir).catch(() => "gone")).toBe("gone");
});

test("takes no option for a URL or a branch", async () => {
  await using it = await scene();
  const { url, targetDir } = it;
  expect(await errorOf(await it.checkout({ repoUrl: "--upload-pack=touch x", targetDir }))).toMatchObject({
    status: 400,
    code: "VALIDATION_FAILED",
  });
  expect((await errorOf(await it.checkout({ repoUrl: url, targetDir, branch: "--bare" }))).message).toContain(
    "Remote branch --bare not found",
  );
});

test("says so when git is not installed", async () => {
  await using it = await scene();
  const { url, targetDir } = it;
  expect((await errorOf(await it.checkout({ repoUrl: url, targetDir, env: { PATH: "/nowhere" } }))).message).toBe(
    `Cannot clone ${url}: git is not installed in the container`,
  );
});

/** Serves a repository to whoever has the password, and notes which processes ran at each request. */
async function passwordServer(origin: string) {
  const commandLines: string[] = [];
  const server = createServer(async (request, response) => {
    for (const pid of await readdir("/proc")) {
      commandLines.push(await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => ""));
    }
    const expected = `Basic ${Buffer.from("user:pa:s@s").toString("base64")}`;
    if (request.headers.authorization !== expected) {
      response.writeHead(401, { "www-authenticate": "Basic realm=git" }).end();
      return;
    }
    const path = new URL(`http://x${request.url}`).pathname.replace("/repo.git/", "/.git/");
    await readFile(origin + path).then(
      (contents) => response.end(contents),
      () => response.writeHead(404).end(),
    );
  });
  const port = await listenOnLoopback(server);
  return {
    host: `127.0.0.1:${port}`,
    commandLines,
    [Symbol.dispose]() {
      server.closeAllConnections();
      server.close();
    },
  };
}

test("brings credentials to git without showing them to other processes, and leaves them in the remote", async () => {
  await using it = await scene();
  it.git("update-server-info");
  using server = await passwordServer(it.origin);
  const { targetDir } = it;
  const repoUrl = `http://user:pa%3As%40s@${server.host}/repo.git`;

  expect((await it.checkout({ repoUrl, targetDir })).status).toBe(200);
  expect(server.commandLines.some((line) => line.includes("remote-http"))).toBe(true);
  expect(server.commandLines.filter((line) => line.includes("pa%3As") || line.includes("pa:s"))).toEqual([]);
  const remote = execFileSync("git", ["-C", targetDir, "remote", "get-url", "origin"]).toString().trim();
  expect(remote).toBe(repoUrl);
  expect((await it.agent.run({ command: "git fetch", cwd: targetDir })).last).toMatchObject({ exitCode: 0 });
});

test("repeats no credentials in an error", async () => {
  await using it = await scene();
  it.git("update-server-info");
  using server = await passwordServer(it.origin);
  const { targetDir } = it;
  const attempts = [
    `http://user:s3cret@${server.host}/repo.git`,
    "http://s3cret@127.0.0.1:1/repo.git",
    "http://user:s3/cret@127.0.0.1:1/repo.git",
    "ssh://user:s3cret@127.0.0.1:1/repo.git",
  ];
  for (const repoUrl of attempts) {
    const error = await errorOf(await it.checkout({ repoUrl, targetDir }));
    expect(error.code).toBe("GIT_CLONE_FAILED");
    expect(JSON.stringify(error)).not.toMatch(/s3|cret/);
  }
});

test("leaves nothing of a clone whose client goes away", async () => {
  await using it = await scene();
  const silent = createServer(() => {});
  const port = await listenOnLoopback(silent);
  const leaving = new AbortController();
  const request = { repoUrl: `http://127.0.0.1:${port}/repo`, targetDir: it.targetDir };

  const response = it.agent.post(agentRoutes.gitCheckout, request, leaving.signal);
  await once(silent, "request");
  expect((await stat(it.targetDir)).isDirectory()).toBe(true);
  leaving.abort();
  await expect(response).rejects.toThrow();
  await eventually(() =>
    stat(it.targetDir).then(
      () => false,
      () => true,
    ),
  );
  silent.closeAllConnections();
  silent.close();
});
