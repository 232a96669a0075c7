import { createHash, randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, startDevServer } from "../test/support/dev-server.ts";
import { descendants, stillRunning } from "../test/support/leftovers.ts";
import { startGitServer } from "./git-server.ts";
import { readNpmSettings } from "./npm-settings.ts";
import { CheckFailed, formatBytes, formatCount, formatDuration, Report } from "./report.ts";
import { Refused, Workspace } from "./workspace.ts";

/**
 * The main job on real input: this project and its npm dependencies are checkpointed, wrecked, rolled back and forked, by
 * the Worker in `examples/worker` under `sandbox-backup dev`. Every step is checked.
 */

const ROOT = new URL("../", import.meta.url).pathname;

/** Installed besides what this project itself needs: some tens of MB. */
const PACKAGES = ["express@5.1.0", "date-fns@4.1.0", "typescript@5.9.3"];

/** What an agent, or a person, might run. */
const RISKY = [
  "rm -rf .git src",
  "find node_modules -type f -name '*.js' -size +2k -exec truncate -s 100 {} +",
  "chmod -R a+rwx test",
  "ln -sf /etc/hostname package.json",
  "touch README.md",
  "echo 'all better now' > FIXED.md",
];

const CERTIFICATES = "/root/npm-ca.pem";

/** Read again where a fact has to be proved: `manifest.mjs` describes every entry of a tree, contents by digest. */
const MANIFEST_SCRIPT = "/root/manifest.mjs";

const report = new Report();
const interrupt = new AbortController();
const { signal } = interrupt;

/** What was started, to be stopped in reverse. */
const started: (() => Promise<void>)[] = [];

async function demo(): Promise<void> {
  const start = performance.now();
  report.title("sandbox-backup: checkpoint, wreck, roll back and fork a real project, on this machine");
  const directory = await mkdtemp(join(tmpdir(), "sbd-"));
  started.push(() => rm(directory, { recursive: true, force: true }));
  const npm = await readNpmSettings(CERTIFICATES);

  report.step("Start the system");
  const { server, repoUrl, stopped } = await startSystem(directory);
  const alice = new Workspace(server, "alice");
  const bob = new Workspace(server, "bob");

  report.step("Prepare a workspace in the sandbox alice");
  await checkOut(alice, repoUrl);
  await install(alice, npm);
  const original = await describe(alice);
  report.done(`described for later: ${original.summary}`);

  report.step("Take a named checkpoint: archive by mksquashfs, straight to R2 by presigned URL");
  const checkpoint = await report.during("checkpoint", (onProgress) => alice.checkpoint("before-risk", {}, onProgress));
  report.done(`checkpoint before-risk: an archive of ${checkpoint.result.size}`, checkpoint.duration);
  const stored = await alice.handle("before-risk");
  report.check(
    `its handle is in KV: ${JSON.stringify(stored)}`,
    JSON.stringify(stored) === JSON.stringify(checkpoint.result.handle) && stored.localBucket === undefined,
    `createBackup gave ${JSON.stringify(checkpoint.result.handle)}.`,
  );

  report.step("Let a risky command wreck the workspace");
  for (const command of RISKY) report.doing(command);
  await wreck(alice);
  const wrecked = difference(original, await describe(alice)).length;
  report.done(`${formatCount(wrecked, "entry", "entries")} deleted, changed or new`);

  report.step("Roll back, from the handle in KV");
  const rollback = await report.during("rollback", (onProgress) => alice.rollback("before-risk", onProgress));
  report.done("rolled back", rollback.duration);
  await checkSame(alice, original);
  await checkUsable(alice);
  const layers = await layersOf(alice);
  report.check(`/workspace is copy-on-write: ${layers.join(" over ")}`, layers.length === 2, "It is not mounted so.");

  report.step("Write to the restored workspace, and discard it by restoring again");
  await alice.exec(
    "echo 'a second thought' >> README.md && rm LICENSE && mv src source && mkdir drafts && date > drafts/today",
  );
  const changes = (await alice.exec("git --no-optional-locks status --short")).trim().split("\n").length;
  report.check(`git sees ${formatCount(changes, "change")}, in files, names and a directory`, changes > 10, "");
  const discard = await report.during("restore", (onProgress) => alice.rollback("before-risk", onProgress));
  report.done("restored again", discard.duration);
  await checkSame(alice, original);

  report.step("Fork the checkpoint into a second sandbox, bob");
  const fork = await report.during("fork", (onProgress) => bob.fork(alice, "before-risk", onProgress));
  report.done("forked", fork.duration);
  await checkSame(bob, original);
  await bob.exec("echo 'by bob' > BOB.md");
  const seen = await alice.exec("ls");
  report.check("what bob writes stays with bob", !seen.includes("BOB.md"), `alice sees: ${seen}`);

  report.step("Ask for backups that cannot be restored");
  await alice.checkpoint("short-lived", { ttl: 1 }, () => {});
  await checkRefused("an expired backup", "BACKUP_EXPIRED", () => alice.rollback("short-lived"));
  await alice.deleteCheckpoint("before-risk");
  await checkRefused("a deleted backup, whose handle bob still has,", "BACKUP_NOT_FOUND", () =>
    bob.rollback("before-risk"),
  );

  report.step("Checkpoint and rollback again, by localBucket: through the R2 binding, without FUSE");
  const local = await report.during("checkpoint", (onProgress) =>
    alice.checkpoint("local", { localBucket: true }, onProgress),
  );
  report.done(`checkpoint local: an archive of ${local.result.size}`, local.duration);
  await wreck(alice);
  const localRollback = await report.during("rollback", (onProgress) => alice.rollback("local", onProgress));
  report.done("rolled back", localRollback.duration);
  await checkSame(alice, original);
  await checkUsable(alice);
  report.check("/workspace is a plain directory again", (await layersOf(alice)).length === 0, "It is still mounted.");

  report.step("Stop");
  await stopped();
  report.end(
    `All of it holds: ${formatCount(report.checks, "check")} in ${formatDuration(performance.now() - start)}.`,
  );
}

/** Starts the git server and `sandbox-backup dev`. `stopped` stops them and checks that nothing is left. */
async function startSystem(directory: string) {
  const git = await startGitServer(ROOT, directory, await freePort());
  started.push(git.stop);

  const token = randomBytes(16).toString("hex");
  const envFile = join(directory, "env");
  await writeFile(envFile, `API_TOKEN=${token}\n`, { mode: 0o600 });
  // The sandboxes' files lie in the temp directory: one of the demo's own shows what is left of them.
  const temp = join(directory, "t");
  await mkdir(temp);
  const port = await freePort();
  const { result: dev, duration } = await report.during("sandbox-backup dev", () =>
    startDevServer({
      config: join(ROOT, "wrangler.jsonc"),
      directory: join(directory, "dev"),
      port,
      args: ["--env-file", envFile],
      env: { TMPDIR: temp, WRANGLER_SEND_METRICS: "false" },
      signal,
    }),
  );
  started.push(dev.stop);
  const url = `http://127.0.0.1:${port}`;
  report.done(`sandbox-backup dev serves examples/worker at ${url}`, duration);
  report.note("workerd, R2 with its S3 endpoint, and the sandboxes in bubblewrap: all on this machine");

  const stopped = async () => {
    const ours = await descendants();
    await dev.stop();
    await git.stop();
    const left = await stillRunning(ours);
    report.check(`${formatCount(ours.length, "process", "processes")} ended`, left.length === 0, `Left: ${left}.`);
    const files = (await readdir(temp)).filter((name) => name.startsWith("sandbox-backup-"));
    report.check("no file of a sandbox is left", files.length === 0, `Left: ${files}.`);
  };
  return { server: { url, token, signal }, repoUrl: git.url, stopped };
}

async function checkOut(workspace: Workspace, repoUrl: string): Promise<void> {
  report.doing(`gitCheckout("${repoUrl}", { targetDir: "/workspace" })`);
  const { duration } = await report.during("git checkout", () => workspace.clone(repoUrl));
  const [commits, files, shallow] = (
    await workspace.exec("git rev-list --count HEAD; git ls-files | wc -l; git rev-parse --is-shallow-repository")
  ).split("\n");
  report.done(
    `this project's repository${shallow === "true" ? " (a shallow clone)" : ""}: ` +
      `${formatCount(Number(commits), "commit")}, ${formatCount(Number(files), "tracked file")}`,
    duration,
  );
}

async function install(workspace: Workspace, npm: Awaited<ReturnType<typeof readNpmSettings>>): Promise<void> {
  await workspace.writeFile(CERTIFICATES, npm.certificates);
  const command = `npm install --omit=dev --save-prod --no-audit --no-fund ${PACKAGES.join(" ")}`;
  report.doing(command);
  const { duration } = await report
    .during("npm install", () => workspace.exec(command, npm.env))
    .catch((error) => {
      throw error instanceof Error ? new Error(npm.redact(error.message)) : error;
    });
  const [files, bytes] = (
    await workspace.exec("find node_modules -type f | wc -l; du -sb node_modules | cut -f 1")
  ).split("\n");
  report.done(`npm dependencies: ${formatCount(Number(files), "file")}, ${formatBytes(Number(bytes))}`, duration);
}

interface Description {
  /** One line an entry. */
  lines: string[];
  digest: string;
  summary: string;
}

/** Describes every entry of /workspace: content by SHA-256, mode, owner, links, time, extended attributes. */
async function describe(workspace: Workspace): Promise<Description> {
  await workspace.writeFile(
    MANIFEST_SCRIPT,
    await readFile(new URL("../test/support/manifest.mjs", import.meta.url), "utf8"),
  );
  const { result } = await report.during(`reading all of /workspace in ${workspace.name}`, () =>
    workspace.exec(`node ${MANIFEST_SCRIPT} /workspace`),
  );
  const lines = result.trimEnd().split("\n");
  const digest = createHash("sha256").update(result).digest("hex");
  return {
    lines,
    digest,
    summary: `${formatCount(lines.length, "entry", "entries")}, digest ${digest.slice(0, 12)}`,
  };
}

async function checkSame(workspace: Workspace, original: Description): Promise<void> {
  const now = await describe(workspace);
  report.check(
    `${workspace.name} is as it was, every file, mode, link and time: ${now.summary}`,
    now.digest === original.digest,
    `${formatCount(difference(original, now).length, "entry", "entries")} differ, such as\n${difference(original, now).slice(0, 5).join("\n")}`,
  );
}

/** Names of entries that are not the same in both. */
function difference(before: Description, after: Description): string[] {
  const [old, now] = [new Set(before.lines), new Set(after.lines)];
  const lines = [...before.lines.filter((line) => !now.has(line)), ...after.lines.filter((line) => !old.has(line))];
  return [...new Set(lines.map((line) => /"name":"((?:[^"\\]|\\.)*)"/.exec(line)?.[1] ?? line))];
}

async function wreck(workspace: Workspace): Promise<void> {
  await workspace.exec(RISKY.join(" && "));
  const left = (await workspace.exec("ls -A")).split("\n");
  report.check("the workspace is wrecked: .git and src are gone", !left.includes(".git") && !left.includes("src"), "");
}

/** What was brought back works, and does not only look the same. */
async function checkUsable(workspace: Workspace): Promise<void> {
  await workspace.exec("git fsck --strict --no-progress");
  const status = await workspace.exec("git --no-optional-locks status --short");
  report.check(
    "git fsck finds no fault, and git status only what npm changed",
    status
      .trim()
      .split("\n")
      .every((line) => /package(-lock)?\.json$/.test(line)),
    status,
  );
  const version = (await workspace.exec("node_modules/.bin/tsc --version")).trim();
  report.check(`the installed compiler runs: ${version}`, version === "Version 5.9.3", "");
}

/** The file systems that a restored /workspace is made of: an overlay over an archive. Empty for a plain directory. */
async function layersOf(workspace: Workspace): Promise<string[]> {
  const mounts = (await workspace.exec("cat /proc/self/mountinfo")).split("\n");
  const types = mounts.map((line) => / - (?:fuse\.)?(\S+)/.exec(line)?.[1] ?? "");
  const layers = types.filter((type, i) => /overlay/.test(type) && mounts[i]?.includes(" /workspace "));
  return layers.length === 0 ? [] : [...layers, ...types.filter((type) => /squash/.test(type))];
}

async function checkRefused(what: string, code: string, work: () => Promise<void>): Promise<void> {
  const refusal = await work().then(
    () => undefined,
    (error: unknown) => error,
  );
  if (refusal !== undefined && !(refusal instanceof Refused)) throw refusal;
  report.check(`${what} is refused: ${code}`, refusal?.code === code, refusal?.message ?? "It was restored.");
  report.note(refusal?.message ?? "");
}

/** Stops what was started, whatever happened. */
async function cleanUp(): Promise<void> {
  for (const stop of started.reverse()) await stop();
}

for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, () => interrupt.abort(name));
// Whoever reads the output has gone away.
process.stdout.on("error", () => interrupt.abort("SIGPIPE"));

try {
  await demo();
} catch (error) {
  process.exitCode = 1;
  if (signal.aborted) {
    process.exitCode = 130;
    report.failure("interrupted");
  } else if (error instanceof CheckFailed || error instanceof Refused) report.failure(error.message);
  else report.failure(error instanceof Error ? (error.stack ?? error.message) : String(error));
} finally {
  await cleanUp();
}
