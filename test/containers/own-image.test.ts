import { randomUUID } from "node:crypto";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  type ArchiveEvent,
  type ArchiveResult,
  agentRoutes,
  type ExecEventMessage,
  type RestoreEvent,
} from "../../src/protocol.js";
import { eventsOf } from "../agent/support.js";
import { system } from "../e2e/context.js";
import { eventually } from "../support/eventually.js";
import { type RunOptions, run } from "./run.js";

/** The agent in an image of a user's own, made as the README says, as root and as an ordinary user. */

const ROOT = new URL("../../", import.meta.url).pathname;
const NAME = `own-image-${randomUUID().slice(0, 8)}`;
const IMAGES = { root: `${NAME}:root`, user: `${NAME}:user` };

let directory: string;

function docker(args: readonly string[], options: RunOptions = {}): Promise<string> {
  return run("docker", args, { ...options, env: { ...system.engine?.env, ...options.env } });
}

/** The README's lines for a Dockerfile that come after a sentence with these words. */
async function linesAfter(words: string): Promise<string> {
  const readme = await readFile(join(ROOT, "README.md"), "utf8");
  const block = /```dockerfile\n(.*?)```/s.exec(readme.slice(readme.indexOf(words)));
  if (!readme.includes(words) || block?.[1] === undefined) throw new Error(`The README has no lines after: ${words}`);
  return block[1].replace(/^ +/gm, "");
}

async function build(tag: string, base: string, lines: string): Promise<void> {
  await writeFile(join(directory, "Dockerfile"), `FROM ${base}\n${lines}`);
  await docker(["build", "--network", "host", "--tag", tag, directory]);
}

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "own-image-"));
  await mkdir(join(directory, "node_modules/sandbox-backup"), { recursive: true });
  await cp(join(ROOT, "dist"), join(directory, "node_modules/sandbox-backup/dist"), { recursive: true });
  await build(IMAGES.root, "debian:trixie-slim", await linesAfter("an image of your own"));
  await build(IMAGES.user, IMAGES.root, await linesAfter("run it as an ordinary user"));
}, 300_000);

afterAll(async () => {
  await docker(["image", "rm", "--force", ...Object.values(IMAGES)]);
  await rm(directory, { recursive: true, force: true });
});

/** A container of an image, and calls of its agent. */
class Agent implements AsyncDisposable {
  private constructor(
    readonly container: string,
    private readonly url: string,
  ) {}

  static async start(image: string, ...options: readonly string[]): Promise<Agent> {
    const publish = ["--publish", "127.0.0.1::3000"];
    const container = await docker(["run", "--detach", "--rm", ...publish, ...options, image]);
    const agent = new Agent(container, `http://${await docker(["port", container, "3000/tcp"])}`);
    await eventually(() =>
      agent.#fetch(agentRoutes.health).then(
        ({ ok }) => ok,
        () => false,
      ),
    );
    return agent;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await docker(["rm", "--force", "--volumes", this.container]);
  }

  /** Runs a command that is to succeed, and gives its output. */
  async exec(command: string, cwd = "/workspace"): Promise<string> {
    const response = await this.#post(agentRoutes.exec, { command, cwd, env: {} });
    let output = "";
    let last: ExecEventMessage | undefined;
    for await (const event of eventsOf<ExecEventMessage>(response)) {
      if (event.type === "stdout" || event.type === "stderr") output += event.data;
      last = event;
    }
    if (last?.type !== "complete" || last.exitCode !== 0)
      throw new Error(`${command}: ${output}${JSON.stringify(last)}`);
    return output;
  }

  /** As `createBackup` does by the localBucket path. */
  async archive(dir: string): Promise<{ last: ArchiveEvent | undefined; archive: Buffer }> {
    const operationId = randomUUID();
    const options = { gitignore: false, excludes: [], compression: { format: "zstd" }, multipart: true };
    const request = { operationId, backupId: randomUUID(), dir, transfer: "stream", urls: [], ...options };
    let archive = Buffer.alloc(0);
    let last: ArchiveEvent | undefined;
    for await (const event of eventsOf<ArchiveEvent>(await this.#post(agentRoutes.archives, request))) {
      if (event.type === "need-transfer")
        archive = Buffer.from(await (await this.#fetch(agentRoutes.operationArchive(operationId))).arrayBuffer());
      last = event;
    }
    return { last, archive };
  }

  /** As `restoreBackup` does by the localBucket path. */
  async restore(dir: string, archive: Buffer, { size, digests }: ArchiveResult): Promise<RestoreEvent | undefined> {
    const operationId = randomUUID();
    const request = { operationId, backupId: randomUUID(), dir, archive: { size, digests, sha256: null, etag: "any" } };
    const how = { transfer: "stream", method: "replace", lazy: false, urls: [] };
    let last: RestoreEvent | undefined;
    for await (const event of eventsOf<RestoreEvent>(await this.#post(agentRoutes.restores, { ...request, ...how }))) {
      if (event.type === "need-transfer")
        await this.#fetch(agentRoutes.operationArchive(operationId), { method: "PUT", body: archive });
      last = event;
    }
    return last;
  }

  #post(path: string, body: unknown): Promise<Response> {
    return this.#fetch(path, { method: "POST", body: JSON.stringify(body) });
  }

  #fetch(path: string, init?: RequestInit): Promise<Response> {
    return fetch(this.url + path, init);
  }
}

async function expectRoundTrip(agent: Agent): Promise<void> {
  await agent.exec("mkdir -m 750 dir && echo first > dir/version && ln -s version dir/link");
  const { last, archive } = await agent.archive("/workspace/dir");
  if (last?.type !== "done") throw new Error(`The archive ended with ${JSON.stringify(last)}`);
  await agent.exec("echo second > dir/version && touch dir/later");

  expect(await agent.restore("/workspace/dir", archive, last)).toEqual({ type: "done" });

  expect(await agent.exec("cat dir/link; ls dir; stat -c %a dir")).toBe("first\nlink\nversion\n750\n");
}

describe("the README's lines for an image of one's own", () => {
  test("are at most three", async () => {
    const lines = await linesAfter("an image of your own");
    expect(lines.trim().split("\n").length).toBeLessThanOrEqual(3);
  });

  test("make backups and restores work as root", async () => {
    await using agent = await Agent.start(IMAGES.root);
    expect(await agent.exec("id -u")).toBe("0\n");
    await expectRoundTrip(agent);
  });

  test("with those for an ordinary user, make them work as one", async () => {
    await using agent = await Agent.start(IMAGES.user);
    expect(await agent.exec("id -u")).toBe("1000\n");
    await expectRoundTrip(agent);
  });

  test("without those for an ordinary user, let one run commands, and tell what backups lack", async () => {
    await using agent = await Agent.start(IMAGES.root, "--user", "1000");
    await agent.exec("mkdir dir && echo content > dir/file", "/tmp");

    const { last } = await agent.archive("/tmp/dir");

    expect(last).toMatchObject({ type: "error", error: { code: "BACKUP_CREATE_FAILED" } });
    expect(JSON.stringify(last)).toContain("SANDBOX_BACKUP_DIR names another place");
  });

  test("let an ordinary user choose another place for the agent's files", async () => {
    await using agent = await Agent.start(IMAGES.user, "--env", "SANDBOX_BACKUP_DIR=/tmp/agent");
    await expectRoundTrip(agent);
    expect(await agent.exec("ls -d /tmp/agent/*")).toBe("/tmp/agent/sandbox-backup\n");
  });
});
