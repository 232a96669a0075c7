import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, stat, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { createServer } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { expect, test } from "vitest";
import { agentRoutes } from "../../src/protocol.js";
import { buildAgent } from "./bundle.js";
import { eventually, isRunning, temporaryDirectory } from "./support.js";

const agentFile = await buildAgent();

function start(...args: string[]): ChildProcess & AsyncDisposable {
  const child = spawn(process.execPath, [agentFile, ...args], { stdio: ["ignore", "ignore", "pipe"] });
  const exited = once(child, "exit");
  return Object.assign(child, {
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
      await exited;
    },
  });
}

/** A request by a Unix socket; undefined while nobody listens there. */
async function callBySocket(socketPath: string, path: string, body?: object): Promise<string | undefined> {
  const call = request({ socketPath, path, method: body === undefined ? "GET" : "POST" });
  call.end(body === undefined ? undefined : JSON.stringify(body));
  try {
    const [response] = await once(call, "response");
    return await text(response);
  } catch {
    return undefined;
  }
}

async function endOf(child: ChildProcess): Promise<{ exitCode: number | null; stderr: string }> {
  if (child.stderr === null) throw new Error("stderr is not piped");
  const [stderr, [exitCode]] = await Promise.all([text(child.stderr), once(child, "exit")]);
  return { exitCode, stderr };
}

test("listens on a socket that only its user can open, and goes away on SIGTERM", async () => {
  await using directory = await temporaryDirectory();
  const socket = join(directory.path, "agent.sock");
  await using child = start("--listen", socket);
  const health = await eventually(() => callBySocket(socket, agentRoutes.health));
  expect(JSON.parse(health)).toMatchObject({ ok: true });
  expect((await stat(socket)).mode & 0o077).toBe(0);

  child.kill("SIGTERM");
  const [code] = await once(child, "exit");
  expect(code).toBe(0);
  expect(await stat(socket).catch(() => "gone")).toBe("gone");
});

test("kills the commands that run when it goes away", async () => {
  await using directory = await temporaryDirectory();
  const socket = join(directory.path, "agent.sock");
  const pidFile = join(directory.path, "pid");
  await using child = start("--listen", socket);
  await eventually(() => callBySocket(socket, agentRoutes.health));
  const command = callBySocket(socket, agentRoutes.exec, {
    command: `echo $$ > '${pidFile}'; sleep 60; true`,
    cwd: "/",
  });
  const pid = await eventually(async () => Number(await readFile(pidFile, "utf8").catch(() => "")) || undefined);

  child.kill("SIGTERM");
  expect(await once(child, "exit")).toEqual([0, null]);
  await eventually(async () => !(await isRunning(pid)));
  expect(await command).toBeUndefined();
});

test("takes the place of an agent that was killed", async () => {
  await using directory = await temporaryDirectory();
  const socket = join(directory.path, "agent.sock");
  for (let round = 0; round < 2; round++) {
    await using child = start("--listen", socket);
    await eventually(() => callBySocket(socket, agentRoutes.health));
    child.kill("SIGKILL");
    await once(child, "exit");
    expect((await stat(socket)).isSocket()).toBe(true);
  }
});

test("leaves a socket that is in use, and a file that is none", async () => {
  await using directory = await temporaryDirectory();
  const file = join(directory.path, "file");
  await writeFile(file, "mine");
  expect(await endOf(start("--listen", file))).toMatchObject({
    exitCode: 2,
    stderr: expect.stringContaining(`--listen: ${file} exists and is not a socket`),
  });

  const socket = join(directory.path, "other.sock");
  const other = createServer().listen(socket);
  await once(other, "listening");
  expect(await endOf(start("--listen", socket))).toMatchObject({
    exitCode: 2,
    stderr: expect.stringContaining(`--listen: another process listens on ${socket}`),
  });
  expect((await stat(socket)).isSocket()).toBe(true);
  other.close();
});

test.each([["--listen", "70000"], ["--listen", "relative.sock"], ["--port", "1"], ["extra"]])(
  "ends with 2 and its usage when called with %s %s",
  async (...args) => {
    const { exitCode, stderr } = await endOf(start(...args));
    expect(exitCode).toBe(2);
    expect(stderr).toContain("Usage: node agent.js");
  },
);
