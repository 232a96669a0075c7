import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import type { Unstable_Config as Config, Unstable_RawConfig as RawConfig } from "wrangler";
import { z } from "zod";
import { Problem } from "./problem.js";
import { processesWith, processTag } from "./process-tag.js";
import type { WranglerFlags } from "./wrangler-flags.js";

/** The user's wrangler: found, asked how it reads his configuration, and run. */

type Api = Pick<
  typeof import("wrangler"),
  "experimental_readRawConfig" | "unstable_readConfig" | "unstable_getVarsForDev"
>;

/** The oldest version that was tried; a few releases earlier none serves local R2 buckets over S3. */
const MIN_VERSION = "4.116.0";

export interface Wrangler {
  /** Its command line, as a file for Node. */
  cliPath: string;
  api: Api;
}

/**
 * Loads the wrangler that is installed for the project in `directory`.
 * @throws {Problem} when it is missing or too old, or when it needs a newer Node
 */
export async function findWrangler(directory: string): Promise<Wrangler> {
  const require = createRequire(join(directory, "package.json"));
  let cliPath: string;
  let manifestPath: string;
  try {
    cliPath = require.resolve("wrangler");
    manifestPath = require.resolve("wrangler/package.json");
  } catch (error) {
    throw new Problem("wrangler is not installed in this project: run `npm i -D wrangler`.", { cause: error });
  }
  const manifest = z
    .object({ version: z.string(), engines: z.object({ node: z.string() }) })
    .parse(JSON.parse(readFileSync(manifestPath, "utf8")));
  if (isOlder(manifest.version, MIN_VERSION)) {
    throw new Problem(
      `wrangler ${manifest.version} cannot serve local R2 buckets over S3; ${MIN_VERSION} or later can: run \`npm i -D wrangler@latest\`.`,
    );
  }
  const minNode = /^>=\s*(\d+\.\d+\.\d+)$/.exec(manifest.engines.node)?.[1];
  if (minNode !== undefined && isOlder(process.versions.node, minNode)) {
    throw new Problem(
      `wrangler ${manifest.version} needs Node ${minNode} or later, and this is Node ${process.versions.node}. ` +
        "Install a newer one, or run `npm i -D node@22`, which puts one on the PATH of npm scripts and npx.",
    );
  }
  return { cliPath, api: (await import(pathToFileURL(cliPath).href)) as Api };
}

/** True when version `a` comes before version `b`. A pre-release counts as its release. */
function isOlder(a: string, b: string): boolean {
  const numbers = (version: string) => version.split(/[.-]/).slice(0, 3).map(Number);
  const [left, right] = [numbers(a), numbers(b)];
  const first = left.findIndex((number, i) => number !== right[i]);
  return first !== -1 && (left[first] ?? 0) < (right[first] ?? 0);
}

/** A Worker's configuration as the user wrote it. */
export interface UserConfig {
  /** Absolute. */
  path: string;
  /** All environments. */
  raw: RawConfig;
  /** The environment that was chosen. */
  config: Config;
  /** What the Worker's variables are by configuration, `.dev.vars`, `.env` and `--var`. */
  vars: Record<string, unknown>;
}

/**
 * Reads the configuration that `wrangler dev` would use.
 * @throws {Problem} when there is none, it is redirected, or it is not valid
 */
export function readUserConfig({ api }: Wrangler, flags: WranglerFlags): UserConfig {
  try {
    return read(api, flags);
  } catch (error) {
    if (error instanceof Problem || !(error instanceof Error)) throw error;
    // wrangler's own words are made for users; those on syntax say where in a field of their own.
    const { location } = error as { location?: { file?: string; line?: number } };
    const where = location?.file === undefined ? "" : `${location.file}:${location.line}: `;
    throw new Problem(`The configuration cannot be read: ${where}${error.message}`, { cause: error });
  }
}

function read(api: Api, flags: WranglerFlags): UserConfig {
  const { raw, path } = readRaw(api, flags);
  const config = api.unstable_readConfig({ config: path, env: flags.env }, { hideWarnings: true });
  const bindings = api.unstable_getVarsForDev(
    path,
    flags.envFiles.length === 0 ? undefined : flags.envFiles,
    config.vars,
    flags.env,
    true,
    config.secrets,
  );
  const vars = Object.fromEntries(Object.entries(bindings).map(([name, { value }]) => [name, value]));
  return { path, raw, config, vars: { ...vars, ...flags.vars } };
}

function readRaw(api: Api, flags: WranglerFlags): { raw: RawConfig; path: string } {
  const args = { config: flags.configs[0], script: flags.script };
  const { rawConfig, configPath, redirected, deployConfigPath } = api.experimental_readRawConfig(args, {
    useRedirectIfAvailable: true,
  });
  if (configPath === undefined) {
    throw new Problem(
      `There is no wrangler.json, wrangler.jsonc or wrangler.toml in ${process.cwd()} or above it. Run this in the Worker's directory, or give --config.`,
    );
  }
  if (redirected) {
    throw new Problem(
      `${deployConfigPath} redirects wrangler to what a build tool made. Give --config to say which configuration to develop with.`,
    );
  }
  return { raw: rawConfig, path: resolve(configPath) };
}

/** Name of the environment variable that brings the Worker's variables into wrangler's process. */
const VARS_VARIABLE = "SANDBOX_BACKUP_DEV_VARS";

/**
 * Runs in wrangler's process before wrangler. Gives it `--var` flags that no list of processes shows, which it prints as
 * hidden, and which leave alone how it finds the user's own variables. Ends wrangler when this process is killed. Hides the
 * presigned URLs that wrangler would print where a connection to its S3 endpoint breaks.
 */
const PRELOAD = `
  const vars = process.env.${VARS_VARIABLE};
  if (vars !== undefined) {
    delete process.env.${VARS_VARIABLE};
    for (const [name, value] of Object.entries(JSON.parse(vars))) process.argv.push("--var", name + ":" + value);
    process.once("disconnect", () => process.kill(process.pid, "SIGTERM"));
    process.channel.unref();
  }
  const redact = (text) => text.replace(/\\?[^\\s"']*X-Amz-[^\\s"']*/gi, "?(hidden)");
  for (const stream of [process.stdout, process.stderr]) {
    const write = stream.write.bind(stream);
    stream.write = (chunk, ...rest) => write(typeof chunk === "string" ? redact(chunk) : chunk, ...rest);
  }`;

/** Name of the environment variable by which wrangler, and all that it starts, are known as this process's. */
const OWNER_VARIABLE = "SANDBOX_BACKUP_DEV_OWNER";

/** How long what wrangler started may outlive it, in ms. Its compiler ends when it notices that nobody asks any more. */
const END_TIMEOUT = 5000;

/** Starts `wrangler dev` in this terminal, with variables for the Worker besides its own. */
export function startWranglerDev(
  { cliPath }: Wrangler,
  args: readonly string[],
  vars: Record<string, string>,
): ChildProcess {
  const preload = `data:text/javascript,${encodeURIComponent(PRELOAD)}`;
  return spawn(process.execPath, ["--no-warnings", "--import", preload, cliPath, "dev", ...args], {
    env: { ...process.env, [VARS_VARIABLE]: JSON.stringify(vars), [OWNER_VARIABLE]: processTag() },
    stdio: ["inherit", "inherit", "inherit", "ipc"],
  });
}

/** Waits until nothing runs that wrangler has started, at most 5 s. Returns the ids of the processes that still do. */
export async function waitForWranglersProcesses(): Promise<number[]> {
  const mark = `${OWNER_VARIABLE}=${processTag()}`;
  for (const deadline = Date.now() + END_TIMEOUT; ; await delay(20)) {
    const left = processesWith(mark);
    if (left.length === 0 || Date.now() > deadline) return left;
  }
}
