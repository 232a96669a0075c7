import { lstat, readdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import picomatch from "picomatch";
import { BackupCreateError } from "../../src/errors.js";
import { runTool, ToolError } from "../run.js";

/**
 * What a backup leaves out, as the exclude file of mksquashfs (`-wildcards -ef`).
 *
 * Paths here are relative to the directory, and byte strings: each character is one byte (latin1), because file names
 * need not be UTF-8. mksquashfs matches each component of a line with fnmatch(3), and runs with LC_ALL=C, so it works on
 * bytes too. A line without a prefix is anchored at the directory; `... name` matches at any depth.
 */

/** From this many excluded names in one directory on, they are described by what stays instead: mksquashfs compares
 * every name with every line of its directory, and 50,000 lines for 50,000 files took it 67 s instead of 0.2 s. */
const CROWDED = 256;

/** mksquashfs refuses exclude lines above 16 KiB. */
const LONGEST_LINE = 12 * 1024;

export interface ExcludeOptions {
  /** Absolute path with all links resolved. */
  dir: string;
  /** Leave out what git ignores. */
  gitignore: boolean;
  /** Globs, as `BackupOptions.excludes` describes them. */
  excludes: readonly string[];
  /** Exact paths, relative to `dir`, to leave out besides. */
  paths: readonly string[];
  signal: AbortSignal;
}

/**
 * Writes the exclude file for mksquashfs.
 * @returns false when nothing is left out; then no file is written
 * @throws {BackupCreateError} when `gitignore` is set and git is missing or fails
 */
export async function writeExcludeFile(file: string, options: ExcludeOptions): Promise<boolean> {
  const { lines, globs } = planGlobs(options.excludes);
  const paths = [
    ...options.paths.map(toBytes),
    ...(options.gitignore ? await listIgnored(options.dir, options.signal) : []),
    ...(globs.length > 0 ? await listMatches(options.dir, globs) : []),
  ];
  lines.push(...(await describePaths(options.dir, paths)));
  if (lines.length === 0) return false;
  // A leading backslash is taken off by mksquashfs and shields blanks and `#` at the start of the line.
  await writeFile(file, lines.map((line) => `\\${line}\n`).join(""), { encoding: "latin1", mode: 0o600 });
  return true;
}

/**
 * Sorts globs into lines that mksquashfs understands itself and those that have to be matched against the tree.
 * A glob of one component matches at any depth, one of several is anchored at the directory, as in Sandbox SDK 0.12.
 */
export function planGlobs(excludes: readonly string[]): { lines: string[]; globs: string[] } {
  const lines: string[] = [];
  const globs: string[] = [];
  for (const exclude of excludes) {
    const glob = toBytes(exclude).replace(/(\/(\*\*)?)+$/, "");
    const anchored = glob.replace(/^(\*\*\/)+/, "");
    const anyDepth = anchored !== glob || !glob.includes("/");
    if (anyDepth && !anchored.includes("/")) lines.push(`... ${anchored}`);
    // The backslash keeps a name that begins with three dots and a blank from meaning any depth.
    else if (!anyDepth && !glob.split("/").includes("**")) lines.push(glob.replace(/^\.\.\. /, "\\$&"));
    else globs.push(glob);
  }
  return { lines, globs };
}

/** The paths below `dir` that git ignores; an ignored directory stands for all in it. Empty outside a repository. */
async function listIgnored(dir: string, signal: AbortSignal): Promise<string[]> {
  const git = (...args: string[]) =>
    runTool("git", ["-c", "safe.directory=*", "-C", dir, ...args], { env: gitEnv(), signal, okExitCodes: [0] });
  try {
    const inside = await git("rev-parse", "--is-inside-work-tree");
    if (inside.stdout.toString().trim() !== "true") return [];
    const listed = await git("ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z");
    return splitPaths(listed.stdout);
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    if (/not a git repository/.test(error.message) && !(await hasRepository(dir))) return [];
    const reason = error.facts.missing
      ? "`useGitignore` needs git, which is not installed in the container"
      : error.message;
    throw new BackupCreateError(`The ignored files of ${dir} cannot be listed: ${reason}`, { dir }, { cause: error });
  }
}

/** Whether there is a `.git` in the directory or one above: git calls a damaged repository none. */
async function hasRepository(dir: string): Promise<boolean> {
  const found = await lstat(join(dir, ".git")).catch(() => undefined);
  return found !== undefined || (dir !== "/" && hasRepository(dirname(dir)));
}

/**
 * git reads the user's own ignore file, so it needs HOME; and no setting of another repository. A restored directory is a
 * file system of its own and may be in a repository that is not.
 */
function gitEnv(): Record<string, string> {
  const { PATH = "", HOME = "/" } = process.env;
  const settings = { GIT_TERMINAL_PROMPT: "0", GIT_OPTIONAL_LOCKS: "0", GIT_DISCOVERY_ACROSS_FILESYSTEM: "1" };
  return { PATH, HOME, LC_ALL: "C", ...settings };
}

function splitPaths(output: Buffer): string[] {
  return output
    .toString("latin1")
    .split("\0")
    .filter((path) => path !== "")
    .map((path) => path.replace(/\/$/, ""));
}

/** Walks the tree for the paths that match one of the globs; does not look below a match. */
async function listMatches(dir: string, globs: readonly string[]): Promise<string[]> {
  // The rules of fnmatch(3), which decides on the other globs: no braces, and a leading dot is matched by a dot only.
  // The flag s: names may hold newlines.
  const matches = picomatch([...globs], { nobrace: true, dot: false, nonegate: true, flags: "s" });
  const found: string[] = [];
  const pending = [""];
  for (let parent = pending.pop(); parent !== undefined; parent = pending.pop()) {
    for (const entry of await readEntries(dir, parent)) {
      const path = parent === "" ? entry.name : `${parent}/${entry.name}`;
      if (matches(path)) found.push(path);
      else if (entry.isDirectory()) pending.push(path);
    }
  }
  return found;
}

/** Turns exact paths into lines that match these paths and no others. */
async function describePaths(dir: string, paths: readonly string[]): Promise<string[]> {
  const byParent = new Map<string, Set<string>>();
  for (const path of paths) {
    const slash = path.lastIndexOf("/");
    const parent = slash < 0 ? "" : path.slice(0, slash);
    const names = byParent.get(parent) ?? new Set();
    byParent.set(parent, names.add(path.slice(slash + 1)));
  }
  const lines: string[] = [];
  for (const [parent, names] of byParent) {
    const patterns = (await describeCrowd(dir, parent, names)) ?? [...names].map(literal);
    const prefix = parent === "" ? "" : `${parent.split("/").map(literal).join("/")}/`;
    lines.push(...patterns.map((pattern) => prefix + pattern));
  }
  return lines;
}

/** Patterns for a directory where much is excluded and little stays: everything but that. Undefined where it does not pay. */
async function describeCrowd(dir: string, parent: string, names: ReadonlySet<string>): Promise<string[] | undefined> {
  if (names.size < CROWDED || !hasExtendedGlobs()) return undefined;
  const kept = (await readEntries(dir, parent)).map((entry) => entry.name).filter((name) => !names.has(name));
  if (kept.reduce((length, name) => length + literal(name).length + 1, parent.length * 2) > LONGEST_LINE)
    return undefined;
  const allBut = (keep: string[]) => (keep.length === 0 ? "*" : `!(${keep.map(literal).join("|")})`);
  const hiddenOnes = (all: Iterable<string>) => [...all].filter((name) => name.startsWith("."));
  // `!(…)` matches hidden names too, unlike `*`: all that is kept has to be in it.
  const patterns = [allBut(kept)];
  if (hiddenOnes(names).length > 0) patterns.push(`.${allBut(hiddenOnes(kept).map((name) => name.slice(1)))}`);
  return patterns;
}

/** `!(…)` is an extension of glibc's fnmatch; musl takes it literally. */
function hasExtendedGlobs(): boolean {
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return report.header?.glibcVersionRuntime !== undefined;
}

/**
 * A pattern of fnmatch(3) that matches just this name, also in a list: glibc looks for the ends of a list without regard to
 * backslashes. A line cannot hold a newline: it is the byte that is no other.
 */
function literal(name: string): string {
  return name
    .replace(/[^A-Za-z0-9_\-\n\x80-\xff]/g, (character) =>
      "|()[".includes(character) ? `[${character}]` : `\\${character}`,
    )
    .replace(/\n/g, "[^\x01-\x09\x0b-\xff]");
}

async function readEntries(dir: string, parent: string) {
  const path = Buffer.from(`${toBytes(dir)}/${parent}`, "latin1");
  try {
    return await readdir(path, { withFileTypes: true, encoding: "latin1" });
  } catch (error) {
    // Gone or not readable: mksquashfs meets it too and decides what it means for the backup.
    if (error instanceof Error && "code" in error) return [];
    throw error;
  }
}

function toBytes(text: string): string {
  return Buffer.from(text).toString("latin1");
}
