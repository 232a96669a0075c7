import type { ChildProcess } from "node:child_process";
import { readdirSync, rmSync, unwatchFile, watchFile, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { startHost } from "./host.js";
import { Problem } from "./problem.js";
import { isRunning, PROCESS_TAG, processTag } from "./process-tag.js";
import { describeMissing, installLine, missingTools } from "./tools.js";
import {
  findWrangler,
  readUserConfig,
  startWranglerDev,
  type UserConfig,
  type Wrangler,
  waitForWranglersProcesses,
} from "./wrangler.js";
import {
  BUCKET_BINDING,
  type DerivedConfig,
  deriveConfig,
  hasBucketBinding,
  newS3Credentials,
} from "./wrangler-config.js";
import { readWranglerFlags, type WranglerFlags } from "./wrangler-flags.js";

const DEFAULT_PORT = 8787;

/** Prefix of the derived configuration's name, which goes on with the tag of the process that wrote it. */
const DERIVED_PREFIX = ".wrangler.sandbox-backup.";

/** How often the user's configuration is looked at for changes, in ms. */
const WATCH_INTERVAL = 500;

/**
 * `sandbox-backup dev`: runs `wrangler dev` with sandboxes in bubblewrap on this machine and the bucket served over S3.
 * Resolves with wrangler's exit code when it has ended and nothing that was started is left.
 * @throws {Problem} when the machine, the project or the flags do not allow it
 */
export async function dev(args: readonly string[]): Promise<number> {
  const flags = readWranglerFlags(args);
  if (flags.cwd !== undefined) process.chdir(flags.cwd);
  const wrangler = await findWrangler(process.cwd());
  if (flags.help) return exitCode(startWranglerDev(wrangler, ["--help"], {}));
  await checkMachine();
  const user = readUserConfig(wrangler, flags);
  const { ip, origin, port } = await chooseAddress(flags, user);

  const host = await startHost({ agentPath: join(import.meta.dirname, "agent.js"), log: say });
  try {
    const credentials = newS3Credentials();
    const derive = (current: UserConfig) =>
      deriveConfig({ ...current, userVars: current.vars, allLocal: flags.local, origin, host, credentials });
    const derived = derive(user);
    const derivedPath = writeDerived(user.path, derived);
    try {
      announce(user, derived);
      const stopWatching = watchUserConfig(wrangler, flags, user.path, derived, derive);
      const child = startWranglerDev(
        wrangler,
        [
          ...flags.others,
          ...["--ip", ip, "--port", `${port}`],
          ...[derivedPath, ...flags.configs.slice(1)].flatMap((path) => ["--config", path]),
        ],
        derived.vars,
      );
      const code = await exitCode(child).finally(stopWatching);
      const left = await waitForWranglersProcesses();
      if (left.length > 0) say(`wrangler has ended, but not what it started: ${left.join(", ")}.`);
      return code;
    } finally {
      rmSync(derivedPath, { force: true });
    }
  } finally {
    await host.close();
  }
}

async function checkMachine(): Promise<void> {
  if (process.platform !== "linux") {
    throw new Problem("Sandboxes run on Linux only, where bubblewrap and FUSE are. On Windows, WSL 2 is one.");
  }
  const missing = await missingTools();
  if (missing.length === 0) return;
  const line = installLine(missing);
  const cure = line === undefined ? "" : `\nRun \`sandbox-backup setup\` as root, or on Debian and Ubuntu:\n  ${line}`;
  throw new Problem(`Sandboxes cannot run on this machine. It lacks:\n${describeMissing(missing)}${cure}`);
}

/** Where `wrangler dev` will listen, so that it can be told to the Worker before it starts. */
async function chooseAddress(flags: WranglerFlags, { config }: UserConfig) {
  if (flags.remote) {
    throw new Problem("--remote runs the Worker at Cloudflare, where it cannot reach sandboxes on this machine.");
  }
  if (flags.https || config.dev.local_protocol === "https") {
    throw new Problem(
      "Sandboxes do not trust wrangler's own certificate: use plain HTTP (no --local-protocol https, no dev.local_protocol).",
    );
  }
  const ip = flags.ip ?? config.dev.ip ?? "127.0.0.1";
  if (!/^(localhost|127(\.\d+){3}|0\.0\.0\.0|\*)$/.test(ip)) {
    throw new Problem(
      `Sandboxes reach the local bucket by a loopback address, which --ip ${ip} excludes: use --ip 127.0.0.1 or --ip 0.0.0.0.`,
    );
  }
  const loopback = ip.startsWith("127.") ? ip : "127.0.0.1";
  const port = flags.port || config.dev.port || (await freePort(loopback));
  return { ip: ip === "localhost" ? loopback : ip, port, origin: `http://${loopback}:${port}` };
}

/** The usual port, or any other when that is taken. */
async function freePort(ip: string): Promise<number> {
  for (const port of [DEFAULT_PORT, 0]) {
    const free = await new Promise<number | undefined>((resolve) => {
      const server = createServer();
      server.once("error", () => resolve(undefined));
      server.listen(port, ip, () => {
        const address = server.address();
        server.close(() => resolve(address === null || typeof address === "string" ? undefined : address.port));
      });
    });
    if (free !== undefined) return free;
  }
  throw new Problem(`No port is free on ${ip}.`);
}

/** Writes the derived configuration beside the user's, and removes those that killed processes left there. */
function writeDerived(userPath: string, derived: DerivedConfig): string {
  const directory = dirname(userPath);
  const pattern = new RegExp(`^${DERIVED_PREFIX.replaceAll(".", "\\.")}${PROCESS_TAG}\\.json$`);
  for (const name of readdirSync(directory)) {
    const tag = pattern.exec(name)?.[1];
    if (tag !== undefined && !isRunning(tag)) rmSync(join(directory, name), { force: true });
  }
  const path = join(directory, `${DERIVED_PREFIX}${processTag()}.json`);
  // It holds the keys of the local S3 endpoint.
  writeFileSync(path, JSON.stringify(derived.raw, undefined, 2), { mode: 0o600 });
  return path;
}

/** Follows the user's changes to his configuration, which wrangler then picks up. Returns what stops that. */
function watchUserConfig(
  wrangler: Wrangler,
  flags: WranglerFlags,
  path: string,
  first: DerivedConfig,
  derive: (user: UserConfig) => DerivedConfig,
): () => void {
  const onChange = () => {
    try {
      const derived = derive(readUserConfig(wrangler, flags));
      writeDerived(path, derived);
      if (!isDeepStrictEqual(derived.vars, first.vars)) {
        say(
          "The configuration now asks for other variables: start `sandbox-backup dev` again for them to take effect.",
        );
      }
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(error.message);
    }
  };
  watchFile(path, { interval: WATCH_INTERVAL }, onChange);
  return () => unwatchFile(path, onChange);
}

function announce({ config }: UserConfig, { bucket }: DerivedConfig): void {
  say("Sandboxes run on this machine, kept apart by bubblewrap.");
  if (bucket !== undefined) {
    say(`The bucket ${bucket.name} is local, and served over S3 at ${bucket.endpoint}`);
  } else if (hasBucketBinding(config)) {
    say(`Backups go where your own settings for ${BUCKET_BINDING} say.`);
  } else {
    say(
      `There is no R2 binding ${BUCKET_BINDING}, without which nothing can be backed up. Add to your configuration:\n` +
        `  "r2_buckets": [{ "binding": "${BUCKET_BINDING}", "bucket_name": "<name>" }]`,
    );
  }
}

/** Resolves with the exit code of a process that gets the signals which end this one. */
function exitCode(child: ChildProcess): Promise<number> {
  const forward = (signal: NodeJS.Signals) => child.kill(signal);
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) process.on(signal, forward);
  return new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])));
  }).finally(() => {
    for (const signal of signals) process.off(signal, forward);
  });
}

function say(line: string): void {
  console.error(line.startsWith("[") ? line : `[sandbox-backup] ${line}`);
}
