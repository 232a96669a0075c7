import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { type DevServer, freePort, startDevServer } from "../support/dev-server.js";
import { guideExamples } from "./guide.js";

const { directory } = inject("installed");

interface Backup {
  id: string;
  dir: string;
}

let server: DevServer;
let url: string;

beforeAll(async () => {
  const port = await freePort();
  url = `http://127.0.0.1:${port}`;
  server = await startDevServer({
    cli: join(directory, "node_modules/sandbox-backup/dist/cli.js"),
    cwd: directory,
    config: join(directory, "wrangler.jsonc"),
    directory: join(directory, "dev"),
    port,
    env: { WRANGLER_SEND_METRICS: "false" },
  });
});
afterAll(() => server?.stop());

async function ask(path: string, body?: string): Promise<string> {
  const response = await fetch(`${url}${path}`, body === undefined ? {} : { method: "POST", body });
  return response.text();
}

const exec = async (command: string): Promise<string> => JSON.parse(await ask("/exec", command)).stdout;
const keys = async (): Promise<string[]> => JSON.parse(await ask("/objects"));
const kv = async (key: string): Promise<Backup> => JSON.parse(await ask(`/kv?key=${encodeURIComponent(key)}`));
const metadata = async (id: string) => JSON.parse(await ask(`/object?key=backups/${id}/meta.json`));
const keysOf = (id: string) => [`backups/${id}/data.sqsh`, `backups/${id}/meta.json`];

/** Runs an example, which is to succeed, and gives what it logged and which backups it made. */
async function runExample(name: string, backup?: Backup): Promise<{ lines: string[]; made: string[] }> {
  const before = await keys();
  const result: { lines: string[]; error?: string } = JSON.parse(await ask("/run", JSON.stringify({ name, backup })));
  expect(result.error).toBeUndefined();
  const made = (await keys()).filter((key) => !before.includes(key) && key.endsWith("/meta.json"));
  return { lines: result.lines, made: made.map((key) => key.split("/")[1] ?? "") };
}

/** What shows that an example did what the documentation says. One sandbox, as there: the order is theirs. */
const EXPECTATIONS: Record<string, () => Promise<void>> = {
  "create-a-backup": async () => {
    const { lines, made } = await runExample("create-a-backup");
    expect(lines).toEqual([`Backup created: ${made[0]}`]);
    expect(await keys()).toEqual(expect.arrayContaining(keysOf(made[0] ?? "")));
  },
  "restore-a-backup": async () => {
    expect((await runExample("restore-a-backup")).lines).toEqual(["Restored: true"]);
  },
  "exclude-gitignored-files": async () => {
    await exec("rm -rf * && git init -q . && echo ignored.txt > .gitignore && touch ignored.txt kept.txt");
    const { made } = await runExample("exclude-gitignored-files");
    await exec("rm ignored.txt kept.txt");
    await ask("/restore", JSON.stringify({ id: made[0], dir: "/workspace" }));
    expect(await exec("ls")).toBe("kept.txt\n");
  },
  "checkpoint-and-rollback": async () => {
    // A command that fails is a result and no exception, so the example has nothing to roll back.
    const { lines, made } = await runExample("checkpoint-and-rollback");
    expect(lines).toEqual([]);
    expect(made).toHaveLength(1);
  },
  "store-backup-handles": async () => {
    const { made } = await runExample("store-backup-handles");
    expect(await kv("backup:u1")).toEqual({ id: made[0], dir: "/workspace" });
    expect(await metadata(made[0] ?? "")).toMatchObject({ name: "deploy-v2", ttl: 604800 });
  },
  "use-named-backups": async () => {
    const { lines, made } = await runExample("use-named-backups");
    expect(lines).toEqual([`Backup ID: ${made[0]}`]);
    expect(await metadata(made[0] ?? "")).toMatchObject({ name: "before-migration", ttl: 259200 });
  },
  "configure-ttl": async () => {
    const { made } = await runExample("configure-ttl");
    const ttls = await Promise.all(made.map(async (id) => (await metadata(id)).ttl));
    expect(ttls.sort()).toEqual([600, 604800]);
  },
  "local-bucket": async () => {
    expect((await runExample("local-bucket")).lines).toEqual(["Restored: true"]);
    expect(await exec("cat /proc/self/mountinfo")).not.toMatch(/ \/workspace .* - fuse/);
  },
  "local-bucket-by-variable": async () => {
    expect((await runExample("local-bucket-by-variable")).made).toHaveLength(1);
  },
  "replace-the-latest-backup": async () => {
    const previous: Backup = JSON.parse(await ask("/backup"));
    const { made } = await runExample("replace-the-latest-backup", previous);
    expect(await keys()).not.toEqual(expect.arrayContaining([expect.stringContaining(previous.id)]));
    expect(await kv("latest-backup")).toEqual({ id: made[0], dir: "/workspace" });
  },
  "delete-old-backups": async () => {
    const before = await keys();
    // All of them were just made.
    expect((await runExample("delete-old-backups")).lines).toEqual([]);
    expect(await keys()).toEqual(before);
  },
  "delete-a-backup-by-id": async () => {
    const backup: Backup = JSON.parse(await ask("/backup"));
    await runExample("delete-a-backup-by-id", backup);
    expect(await keys()).not.toEqual(expect.arrayContaining([expect.stringContaining(backup.id)]));
  },
  "copy-on-write": async () => {
    await runExample("copy-on-write");
    expect(await exec("ls")).not.toContain("new-file.txt");
  },
  "handle-errors": async () => {
    const { lines } = await runExample("handle-errors", { id: crypto.randomUUID(), dir: "/workspace" });
    expect(lines).toEqual([expect.stringMatching(/^Backup not found in R2: .*was not found/)]);
  },
  "fix-permissions-at-runtime": async () => {
    await exec("mkdir -p /home/sandbox/.claude && chmod 700 /home/sandbox/.claude");
    const { made } = await runExample("fix-permissions-at-runtime");
    expect(await metadata(made[0] ?? "")).toMatchObject({ dir: "/home/sandbox" });
    expect(await exec("stat -c %a /home/sandbox/.claude")).toBe("755\n");
  },
  "instead-of-reinstalling": async () => {
    const identity = "-c user.name=n -c user.email=n@example.com";
    await exec(`git init -q /tmp/repository && cd /tmp/repository && echo '{}' > package.json && git add . &&
      git ${identity} commit -qm first && find /workspace -mindepth 1 -delete`);
    const { made } = await runExample("instead-of-reinstalling");
    expect(await kv("backup:u1")).toEqual({ id: made[0], dir: "/workspace" });
    expect(await exec("git -C /workspace log --format=%s")).toBe("first\n");
  },
};

describe("the documentation's example", () => {
  test.each(Object.entries(EXPECTATIONS))("%s does what the documentation says", (_name, expectation) => expectation());

  test("none is left out", () => {
    expect(
      guideExamples()
        .map(({ name }) => name)
        .sort(),
    ).toEqual(Object.keys(EXPECTATIONS).sort());
  });
});
