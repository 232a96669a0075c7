import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { z } from "zod";
import { type Host, startHost } from "../../dev/host.js";
import { processTag } from "../../dev/process-tag.js";
import { sandboxErrorSchema } from "../../src/errors.js";
import { hostErrorHeader, hostRoutes, type StartRequest, startResultSchema } from "../../src/protocol.js";

const agentPath = new URL("stand-in-agent.mjs", import.meta.url).pathname;
const START: StartRequest = { env: {}, enableInternet: true, sleepAfter: 600_000 };

let host: Host;
const log: string[] = [];

beforeEach(async () => {
  log.length = 0;
  host = await startHost({ agentPath, log: (line) => log.push(line) });
});
afterEach(() => host.close());

function call(path: string, init: RequestInit = {}): Promise<Response> {
  return fetch(host.url + path, { ...init, headers: { authorization: `Bearer ${host.token}`, ...init.headers } });
}
function put(name: string, request: Partial<StartRequest> = {}): Promise<Response> {
  return call(hostRoutes.sandbox(name), { method: "PUT", body: JSON.stringify({ ...START, ...request }) });
}
async function start(name: string, request?: Partial<StartRequest>): Promise<string> {
  const response = await put(name, request);
  expect(response.status).toBe(200);
  return startResultSchema.parse(await response.json()).instance;
}
function stop(name: string): Promise<Response> {
  return call(hostRoutes.sandbox(name), { method: "DELETE" });
}
function agent(name: string, path: string, init?: RequestInit): Promise<Response> {
  return call(hostRoutes.agent(name, path), init);
}
async function sh(name: string, script: string): Promise<string> {
  return (await agent(name, "/sh", { method: "POST", body: script })).text();
}

/** Command lines of the processes on this machine that hold `mark`. */
function processes(mark: string): string[] {
  return execFileSync("ps", ["-eo", "pid,args"], { encoding: "utf8" })
    .split("\n")
    .filter((line) => line.includes(mark) && !line.includes(" ps -eo"));
}
/** Names of the host's directory, and in it of the directories of its sandboxes. */
function directories(): string[] {
  return readdirSync(tmpdir()).filter((name) => name.startsWith(`sandbox-backup-${processTag()}-`));
}
function sandboxDirectories(): string[] {
  return directories().flatMap((name) => readdirSync(`${tmpdir()}/${name}`));
}

test("a request without the token or with a wrong one is refused", async () => {
  for (const headers of [{}, { authorization: "Bearer wrong" }, { authorization: host.token }]) {
    const response = await fetch(host.url + hostRoutes.sandbox("a"), { method: "DELETE", headers });
    expect(response.status).toBe(401);
    expect(response.headers.get(hostErrorHeader)).toBe("unauthorized");
  }
});

test("a bad name, a bad body and an unknown path are refused", async () => {
  for (const [path, init] of [
    [hostRoutes.sandbox("a.b"), { method: "PUT", body: JSON.stringify(START) }],
    [hostRoutes.sandbox("a".repeat(129)), { method: "PUT", body: JSON.stringify(START) }],
    [hostRoutes.sandbox("a"), { method: "PUT", body: JSON.stringify({ ...START, sleepAfter: 0 }) }],
    [hostRoutes.sandbox("a"), { method: "PUT", body: "{" }],
    [hostRoutes.sandbox("a"), { method: "POST" }],
    ["/v2/sandboxes/a", {}],
    ["/", {}],
  ] as const) {
    const response = await call(path, init);
    expect(response.status).toBeGreaterThanOrEqual(400);
    expect(response.headers.get(hostErrorHeader)).toBe("bad-request");
    await response.body?.cancel();
  }
});

test("a sandbox that does not run answers 503 and says so", async () => {
  const response = await agent("a", "/v1/health");
  expect(response.status).toBe(503);
  expect(response.headers.get(hostErrorHeader)).toBe("not-running");
  expect(await response.json()).toMatchObject({ code: "SANDBOX_UNAVAILABLE" });
});

test("starts at the same time and later ones find one and the same run", async () => {
  const instances = await Promise.all([start("a"), start("a"), start("a")]);
  expect(await start("a", { env: { OTHER: "1" } })).toBe(instances[0]);
  expect(new Set(instances).size).toBe(1);
  expect(sandboxDirectories()).toHaveLength(1);
});

test("the agent gets the environment of the start request, its own PATH and HOME, and nothing of the host's", async () => {
  vi.stubEnv("HOST_ONLY", "1");
  await start("a", { env: { GREETING: "hello world" } });
  const env = z.record(z.string(), z.string()).parse(await (await agent("a", "/env")).json());
  expect(env).toMatchObject({ GREETING: "hello world", HOME: "/root" });
  expect(env.PATH).toMatch(/^\/\.sandbox-backup\/node\/bin:/);
  expect(env).not.toHaveProperty("HOST_ONLY");
  vi.unstubAllEnvs();
});

test("the environment of the start request is on no command line", async () => {
  await start("a", { env: { API_KEY: "secret-4711" } });
  expect(processes("secret-4711")).toEqual([]);
});

test("requests reach the agent with method, query, headers and body, and without the token", async () => {
  await start("a");
  const response = await agent("a", "/echo?a=1", { method: "PUT", body: "hello", headers: { "x-test": "1" } });
  expect(response.status).toBe(201);
  expect(response.headers.get("x-method")).toBe("PUT");
  const headers = JSON.parse(response.headers.get("x-headers") ?? "");
  expect(headers).toMatchObject({ "x-test": "1", "content-length": "5" });
  expect(headers).not.toHaveProperty("authorization");
  expect(await response.text()).toBe("hello");
});

test("answers are streamed: the first part comes while the agent still works", async () => {
  await start("a");
  const response = await agent("a", "/sh", { method: "POST", body: "echo one; sleep 600" });
  const reader = response.body?.getReader();
  expect(new TextDecoder().decode((await reader?.read())?.value)).toBe("one\n");
  await reader?.cancel();
});

test("a client that goes away ends the agent's work", async () => {
  await start("a");
  const gone = new AbortController();
  const response = await agent("a", "/sh", { method: "POST", body: "echo on; exec sleep 86417", signal: gone.signal });
  await response.body?.getReader().read();
  expect(processes("sleep 86417")).toHaveLength(1);
  gone.abort();
  await vi.waitFor(() => expect(processes("sleep 86417")).toEqual([]));
});

test("a large body passes both ways unchanged", async () => {
  await start("a");
  const body = Buffer.alloc(32 * 1024 * 1024, "0123456789abcdef");
  const response = await agent("a", "/echo", { method: "POST", body });
  expect(Buffer.from(await response.arrayBuffer()).equals(body)).toBe(true);
});

test("two sandboxes have files and processes of their own", async () => {
  await Promise.all([start("a"), start("b")]);
  const roots = ["/workspace", "/home", "/tmp", "/var/tmp", "/app", "/root", "/var/backups"];
  await sh("a", roots.map((root) => `echo a > ${root}/mine`).join("; "));
  expect(await sh("b", `ls -A ${roots.join(" ")} | grep -c mine`)).toBe("0\n");
  expect(existsSync("/tmp/mine")).toBe(false);
  // sh, ps, the agent, and bwrap's first process.
  expect((await sh("b", "ps -eo comm=")).split("\n").filter((line) => line === "bwrap")).toHaveLength(1);
});

test("a sandbox sees the system read-only, and the machine's own temp files not at all", async () => {
  await start("a");
  expect(await sh("a", "touch /etc/new 2>&1; ls -A /tmp")).toBe(
    "touch: cannot touch '/etc/new': Read-only file system\n",
  );
  expect(await sh("a", "stat -c %a /tmp /var/tmp; pwd; id -u")).toBe("1777\n1777\n/workspace\n0\n");
});

test("archives can be mounted in a sandbox, and be written to through an overlay", async () => {
  await start("a");
  const script = `
    cd /var/backups && mkdir lower upper work source && echo hi > source/file
    mksquashfs source a.sqsh -quiet -no-progress >/dev/null
    (squashfuse_ll a.sqsh lower || squashfuse a.sqsh lower) 2>/dev/null
    fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work /workspace 2>/dev/null
    cat /workspace/file; echo new > /workspace/new; ls upper`;
  expect(await sh("a", script)).toBe("hi\nnew\n");
  // The machine sees no mount at the sandbox's paths; other tests may have theirs elsewhere.
  const mounts = execFileSync("cat", ["/proc/self/mountinfo"], { encoding: "utf8" });
  expect(mounts).not.toContain(" /var/backups/lower ");
  expect(mounts).not.toContain(" /workspace ");
});

test("without Internet a sandbox has no network but its agent still answers", async () => {
  await start("a", { enableInternet: false });
  expect(await sh("a", "ls /sys/class/net; cat /proc/net/dev | grep -c :")).toContain("1\n");
});

test("stopping leaves no process, mount or file of the sandbox, and the next start is another run", async () => {
  const first = await start("a");
  await sh("a", "setsid sleep 86418 >/dev/null 2>&1 & echo x > /workspace/file");
  expect(processes("sleep 86418")).toHaveLength(1);
  expect((await stop("a")).status).toBe(204);
  expect(processes("sleep 86418")).toEqual([]);
  expect(sandboxDirectories()).toEqual([]);
  expect(await start("a")).not.toBe(first);
  expect(await sh("a", "ls /workspace")).toBe("");
});

test("files in a directory without rights are removed too", async () => {
  await start("a");
  await sh("a", "mkdir -p /workspace/a/b/c; touch /workspace/a/b/file; chmod 0 /workspace/a/b /workspace/a");
  expect((await stop("a")).status).toBe(204);
  expect(sandboxDirectories()).toEqual([]);
});

test("stopping what does not run answers 204", async () => {
  expect((await stop("a")).status).toBe(204);
});

test("a stop during the start ends it", async () => {
  const starting = put("a");
  await vi.waitFor(() => expect(sandboxDirectories()).toHaveLength(1));
  expect((await stop("a")).status).toBe(204);
  expect((await starting).headers.get(hostErrorHeader)).toBe("not-running");
  expect(sandboxDirectories()).toEqual([]);
});

test("an agent that ends at its start fails the start at once, with its last words", async () => {
  const response = await put("a", { env: { FAIL_TO_START: "1" } });
  expect(response.status).toBe(503);
  expect(response.headers.get(hostErrorHeader)).toBe("not-running");
  expect(sandboxErrorSchema.parse(await response.json()).message).toMatch(/exit code 3.*\n.*told to fail/);
  expect(sandboxDirectories()).toEqual([]);
  expect(log).toEqual(["[sandbox a] stand-in agent: told to fail"]);
});

test("a sandbox killed in the middle of an answer breaks the answer, is forgotten, and leaves nothing", async () => {
  await start("a");
  const response = await agent("a", "/sh", { method: "POST", body: "echo on; exec sleep 86419" });
  const reader = response.body?.getReader();
  await reader?.read();
  const [bwrap] = processes("--info-fd").filter((line) => line.includes(directories()[0] ?? "?"));
  process.kill(Number(bwrap?.trim().split(" ")[0]), "SIGKILL");
  await expect(reader?.read()).rejects.toThrow();
  await vi.waitFor(() => expect([...processes("sleep 86419"), ...sandboxDirectories()]).toEqual([]));
  expect((await agent("a", "/v1/health")).headers.get(hostErrorHeader)).toBe("not-running");
});

test("a sandbox whose agent exits is forgotten and leaves nothing", async () => {
  await start("a");
  await expect(agent("a", "/exit")).rejects.toThrow();
  await vi.waitFor(() => expect(sandboxDirectories()).toEqual([]));
  expect((await agent("a", "/v1/health")).status).toBe(503);
});

test("a sandbox without requests is stopped after sleepAfter, but not while one is in flight", async () => {
  await start("a", { sleepAfter: 50 });
  expect(await sh("a", "sleep 0.3; echo awake")).toBe("awake\n");
  await vi.waitFor(() => expect(sandboxDirectories()).toEqual([]));
});

test("closing the host ends its sandboxes, the ones that are starting too, and removes its directory", async () => {
  await start("a");
  const starting = put("b").catch(() => "broken");
  await vi.waitFor(() => expect(sandboxDirectories()).toHaveLength(2));
  await host.close();
  await starting;
  expect(directories()).toEqual([]);
  expect(processes(`sandbox-backup-${processTag()}`)).toEqual([]);
});

test("the next host removes what a killed one left, and nothing of one that runs", async () => {
  const killed = `${tmpdir()}/sandbox-backup-${process.pid}-1-left`;
  mkdirSync(`${killed}/one/workspace`, { recursive: true });
  const next = await startHost({ agentPath, log: (line) => log.push(line) });
  expect(existsSync(killed)).toBe(false);
  expect(directories()).toHaveLength(2);
  await next.close();
});
