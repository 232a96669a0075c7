import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { GitCloneError, ValidationError } from "../src/errors.js";
import { type GitCheckoutRequest, WORKSPACE } from "../src/protocol.js";
import { commandEnv } from "./exec.js";
import { resolvePath } from "./files.js";
import { runTool, ToolError } from "./run.js";

/**
 * Clones a repository.
 * Credentials in its URL reach git by the environment, and stay in the clone's remote as git would leave them there; no
 * error, log or list of processes shows them.
 * @returns the branch that is checked out (a tag's name when it is a tag) and where
 * @throws {GitCloneError} with git's own words; nothing of the clone is left then
 * @throws {ValidationError} when `repoUrl` cannot be one
 * @throws the signal's reason when `signal` aborts; nothing of the clone is left then
 */
export async function gitCheckout(
  request: GitCheckoutRequest,
  signal: AbortSignal,
): Promise<{ branch: string; targetDir: string }> {
  const remote = parseRemote(request.repoUrl);
  const targetDir = resolvePath(request.targetDir ?? repositoryName(remote.url), "targetDir");
  const env = gitEnv(request.env, remote);

  await clone(request, remote, targetDir, env, signal);
  await keepCredentials(remote, targetDir);
  return { branch: await checkedOutBranch(targetDir, env, request.branch), targetDir };
}

/** A repository's URL, taken apart. */
interface Remote {
  given: string;
  /** Without the credentials of HTTP: what git is called with. */
  url: string;
  /** `user:password`, decoded; for HTTP only. */
  credentials: string | undefined;
}

function parseRemote(repoUrl: string): Remote {
  if (repoUrl === "" || repoUrl.startsWith("-") || repoUrl.includes("\0")) {
    throw new ValidationError("repoUrl must be the URL or path of a git repository");
  }
  const [, scheme, userinfo, rest] = /^(https?:\/\/)([^/?#]*)@(.*)$/is.exec(repoUrl) ?? [];
  if (scheme === undefined || userinfo === undefined || rest === undefined) {
    return { given: repoUrl, url: repoUrl, credentials: undefined };
  }
  const credentials = userinfo.includes(":") ? userinfo : `${userinfo}:`;
  return { given: repoUrl, url: scheme + rest, credentials: decodePercent(credentials) };
}

function decodePercent(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** `repo` of `https://host/owner/repo.git` and of `git@host:owner/repo`. */
function repositoryName(url: string): string {
  const path = url.replace(/[?#].*$/s, "").replace(/\/+$/, "");
  const name =
    path
      .split(/[/:]/)
      .pop()
      ?.replace(/\.git$/, "") ?? "";
  if (name === "" || name === "." || name === "..") {
    throw new ValidationError("targetDir must be given where repoUrl does not end with the name of a repository");
  }
  return join(WORKSPACE, name);
}

function gitEnv(requestEnv: Record<string, string> | undefined, remote: Remote): Record<string, string> {
  const env = { ...commandEnv(requestEnv), LC_ALL: "C", GIT_TERMINAL_PROMPT: "0" };
  if (remote.credentials === undefined) return env;
  const count = Number(commandEnv(requestEnv).GIT_CONFIG_COUNT ?? 0);
  return {
    ...env,
    GIT_CONFIG_COUNT: String(count + 1),
    [`GIT_CONFIG_KEY_${count}`]: `http.${remote.url}.extraHeader`,
    [`GIT_CONFIG_VALUE_${count}`]: `Authorization: Basic ${Buffer.from(remote.credentials).toString("base64")}`,
  };
}

async function clone(
  request: GitCheckoutRequest,
  remote: Remote,
  targetDir: string,
  env: Record<string, string>,
  signal: AbortSignal,
): Promise<void> {
  const removeClone = await removerOf(targetDir);
  const args = [
    "clone",
    ...(request.branch === undefined ? [] : [`--branch=${request.branch}`]),
    ...(request.depth === undefined ? [] : [`--depth=${request.depth}`]),
    "--",
    remote.url,
    targetDir,
  ];
  try {
    await runTool("git", args, { env, signal });
  } catch (error) {
    // git cleans up behind itself, but not when it is killed.
    if (signal.aborted) await removeClone();
    if (!(error instanceof ToolError)) throw error;
    throw cloneError(error, remote, targetDir);
  }
}

/** What takes a clone away again, as `targetDir` is before it: what was there already stays. */
async function removerOf(targetDir: string): Promise<() => Promise<void>> {
  try {
    const before = await readdir(targetDir);
    return before.length > 0 ? async () => {} : () => empty(targetDir);
  } catch (error) {
    const absent = error instanceof Error && "code" in error && error.code === "ENOENT";
    return absent ? () => rm(targetDir, { recursive: true, force: true }) : async () => {};
  }
}

async function empty(directory: string): Promise<void> {
  for (const name of await readdir(directory)) await rm(join(directory, name), { recursive: true, force: true });
}

function cloneError(error: ToolError, remote: Remote, targetDir: string): GitCloneError {
  const { missing, exitCode } = error.facts;
  const repoUrl = redact(remote.given);
  // The line of progress is no part of why it failed.
  const stderr = redact(error.facts.stderr.toString().replace(/^Cloning into .*\n/, "")).trim();
  const why = missing || stderr === "" ? redact(error.message) : stderr;
  const context = { repoUrl, targetDir, stderr, ...(exitCode === undefined ? {} : { exitCode }) };
  // Without the cause: its message is not redacted.
  return new GitCloneError(`Cannot clone ${repoUrl}: ${why}`, context);
}

/** Takes the credentials out of every URL in a text, also where they hold a `/` that should have been encoded. */
function redact(text: string): string {
  return text.replace(/(\b[a-z][a-z0-9+.-]*:\/\/)([^/\s'"]*|[^/\s'"]*:(?!\d+\/)[^\s'"]*)@/gi, "$1");
}

/** Writes the URL into the clone's remote as it was given, so that a later fetch or push has its credentials too. */
async function keepCredentials(remote: Remote, targetDir: string): Promise<void> {
  if (remote.credentials === undefined) return;
  const path = join(targetDir, ".git", "config");
  const config = await readFile(path, "utf8");
  await writeFile(
    path,
    config.replace(`url = ${remote.url}\n`, () => `url = ${remote.given}\n`),
  );
}

async function checkedOutBranch(
  targetDir: string,
  env: Record<string, string>,
  requested: string | undefined,
): Promise<string> {
  // Of an existing directory that belongs to somebody else, git would not speak otherwise.
  const trust = ["-c", "safe.directory=*", "-C", targetDir];
  const { stdout, exitCode } = await runTool("git", [...trust, "symbolic-ref", "--quiet", "--short", "HEAD"], {
    env,
    okExitCodes: [0, 1],
  });
  // 1: HEAD names a commit and no branch, as after `--branch <tag>`.
  return exitCode === 0 ? stdout.toString().trim() : (requested ?? "HEAD");
}
