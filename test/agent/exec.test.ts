import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { MiB } from "../../src/protocol.js";
import { allOf, eventually, isRunning, TestAgent, temporaryDirectory } from "./support.js";

await mkdir("/workspace", { recursive: true });

test("reports start, both outputs and the exit code", async () => {
  await using agent = await TestAgent.start();
  const { stdout, stderr, last } = await agent.run({ command: "echo out; echo err >&2; exit 3" });
  expect({ stdout, stderr }).toEqual({ stdout: "out\n", stderr: "err\n" });
  expect(last).toMatchObject({ type: "complete", exitCode: 3, duration: expect.any(Number) });
  const [first] = await allOf(agent.exec({ command: "true" }));
  expect(first).toMatchObject({ type: "start", command: "true" });
});

test("starts in /workspace, or in the cwd that is given", async () => {
  await using agent = await TestAgent.start();
  await using directory = await temporaryDirectory();
  expect((await agent.run({ command: "pwd" })).stdout).toBe("/workspace\n");
  expect((await agent.run({ command: "pwd", cwd: directory.path })).stdout).toBe(`${directory.path}\n`);
});

test("says which cwd does not exist, or is no directory", async () => {
  await using agent = await TestAgent.start();
  await using directory = await temporaryDirectory();
  const missing = join(directory.path, "missing");
  const file = join(directory.path, "file");
  await writeFile(file, "");
  expect((await agent.run({ command: "true", cwd: missing })).last).toMatchObject({
    type: "error",
    error: { code: "FILE_NOT_FOUND", message: `Cannot run a command in ${missing}: no such file or directory` },
  });
  expect((await agent.run({ command: "true", cwd: file })).last).toMatchObject({
    type: "error",
    error: { code: "FILESYSTEM_ERROR", message: `Cannot run a command in ${file}: it is not a directory` },
  });
});

test("runs a shell's whole language, with the agent's environment and the request's", async () => {
  await using agent = await TestAgent.start();
  const command = 'for i in 1 2; do printf \'%s \' "$i$GREETING"; done | cat; test -n "$PATH" && echo path';
  expect((await agent.run({ command, env: { GREETING: "hé" } })).stdout).toBe("1hé 2hé path\n");
});

test("finds its shell also when the request sets PATH", async () => {
  await using agent = await TestAgent.start();
  const { last, stdout } = await agent.run({ command: 'echo "$PATH"', env: { PATH: "/nowhere" } });
  expect(last).toMatchObject({ exitCode: 0 });
  expect(stdout).toBe("/nowhere\n");
});

test("runs nobody's start-up files", async () => {
  await using agent = await TestAgent.start();
  await using home = await temporaryDirectory();
  await writeFile(join(home.path, ".bashrc"), "echo from the start-up file");
  const { stdout } = await agent.run({ command: "echo done", env: { HOME: home.path, SHLVL: "0" } });
  expect(stdout).toBe("done\n");
});

test("writes stdin and closes it", async () => {
  await using agent = await TestAgent.start();
  expect((await agent.run({ command: "wc -c", stdin: "x".repeat(MiB) })).stdout.trim()).toBe(String(MiB));
  expect((await agent.run({ command: "cat" })).stdout).toBe("");
});

test("does not mind a command that leaves its stdin unread", async () => {
  await using agent = await TestAgent.start();
  expect((await agent.run({ command: "true", stdin: "x".repeat(MiB) })).last).toMatchObject({ exitCode: 0 });
});

test("gives 128 + n as the exit code of a command that signal n ended", async () => {
  await using agent = await TestAgent.start();
  expect((await agent.run({ command: "kill -TERM $$" })).last).toMatchObject({ type: "complete", exitCode: 143 });
});

test("keeps characters whole that the command writes in two halves", async () => {
  await using agent = await TestAgent.start();
  const { stdout } = await agent.run({ command: "printf '\\303'; sleep 0.1; printf '\\251\\n'" });
  expect(stdout).toBe("é\n");
});

test("gives the replacement character for a character that never ends", async () => {
  await using agent = await TestAgent.start();
  expect((await agent.run({ command: "printf 'a\\303'" })).stdout).toBe("a\ufffd");
});

test("passes on all of a large output to a client that reads slowly", async () => {
  await using agent = await TestAgent.start();
  let length = 0;
  for await (const event of agent.exec({ command: `head -c ${32 * MiB} /dev/zero | tr '\\0' x` })) {
    if (event.type === "stdout") length += event.data.length;
    if (length < MiB) await new Promise((resolve) => setTimeout(resolve, 5));
  }
  expect(length).toBe(32 * MiB);
});

test("holds a command up while its client does not read", async () => {
  await using agent = await TestAgent.start();
  await using directory = await temporaryDirectory();
  const rss = process.memoryUsage().rss;
  const leaving = new AbortController();
  const events = agent.exec({ command: "yes", cwd: directory.path }, leaving.signal);
  await events.next();
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  expect(process.memoryUsage().rss - rss).toBeLessThan(200 * MiB);
  leaving.abort();
  await expect(allOf(events)).rejects.toThrow();
});

test("does not wait for a background process, and leaves it running", async () => {
  await using agent = await TestAgent.start();
  const start = Date.now();
  const { stdout, last } = await agent.run({
    command: "(while sleep 0.02; do echo tick; done) & echo $!",
  });
  const pid = Number(stdout.split("\n")[0]);
  try {
    expect(last).toMatchObject({ type: "complete", exitCode: 0 });
    expect(Date.now() - start).toBeLessThan(5_000);
    // Long enough for it to write to the pipe that is no longer reported.
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(await isRunning(pid)).toBe(true);
  } finally {
    process.kill(pid, "SIGKILL");
  }
});

test("kills a command's whole process group when it takes longer than its timeout", async () => {
  await using agent = await TestAgent.start();
  const command = "sleep 60 & echo $!; sleep 60";
  const { stdout, last } = await agent.run({ command, timeout: 300 });
  expect(last).toMatchObject({
    type: "error",
    error: { code: "COMMAND_TIMEOUT", httpStatus: 408, context: { command, timeout: 300 } },
  });
  const pid = Number(stdout);
  await eventually(async () => !(await isRunning(pid)));
});

test("takes a timeout of years as none", async () => {
  await using agent = await TestAgent.start();
  expect((await agent.run({ command: "sleep 0.2", timeout: 1e12 })).last).toMatchObject({ exitCode: 0 });
});

test("kills a command's whole process group when its client goes away", async () => {
  await using agent = await TestAgent.start();
  let pid = 0;
  for await (const event of agent.exec({ command: "sleep 60 & echo $!; sleep 60" })) {
    if (event.type !== "stdout") continue;
    pid = Number(event.data);
    expect(await isRunning(pid)).toBe(true);
    break;
  }
  await eventually(async () => !(await isRunning(pid)));
});

test("refuses a NUL character and a command that is longer than the system allows", async () => {
  await using agent = await TestAgent.start();
  expect((await agent.run({ command: "echo \0" })).last).toMatchObject({
    error: { code: "VALIDATION_FAILED", message: "command and env must not contain a NUL character" },
  });
  expect((await agent.run({ command: `: ${"x".repeat(200_000)}` })).last).toMatchObject({
    error: { code: "VALIDATION_FAILED", message: expect.stringContaining("128 KiB") },
  });
});
