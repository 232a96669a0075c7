import { constants } from "node:fs";
import { access, lstat, readFile, rm, stat } from "node:fs/promises";
import { BackupCreateError } from "../../src/errors.js";
import { type ArchiveRequest, MiB } from "../../src/protocol.js";
import { runTool, TOOL_ENV, ToolError } from "../run.js";

/** mksquashfs: a directory becomes one squashfs 4.0 file. */

/** mksquashfs works in this much memory at most, in bytes. Measured: as fast as its default of a quarter of the machine. */
const MOST_MEMORY = 48 * MiB;
const LEAST_MEMORY = 16 * MiB;

/**
 * For glibc's mallopt(3): mksquashfs has a buffer for each block of a file, which malloc would get from the kernel, zeroed, and
 * give back each time. Measured: a tenth less time, a quarter less of the kernel's, 4 MiB more memory.
 */
const KEPT_BUFFERS = { MALLOC_MMAP_THRESHOLD_: String(32 * MiB), MALLOC_TRIM_THRESHOLD_: String(1024 * MiB) };

/** A file that vanishes ends mksquashfs; it starts over this often before vanished files are tolerated one by one. */
const STRICT_ATTEMPTS = 4;

const PROGRESS_INTERVAL = 250;

export interface ArchiveOptions {
  /** Absolute path with all links resolved. */
  dir: string;
  /** Where the archive is made; nothing is left there after a failure. */
  file: string;
  /** From `writeExcludeFile`. */
  excludeFile: string | undefined;
  compression: ArchiveRequest["compression"];
  signal: AbortSignal;
  /** Told the size of the archive so far, in bytes. */
  onProgress: (bytesDone: number) => void;
}

/**
 * Makes an archive of all of `dir` but what is excluded.
 *
 * Everything has to be readable: mksquashfs by itself stores an unreadable file as an empty one and reports success. A file
 * that is deleted while the archive is made is another thing, a race that any live directory has: the archive is made
 * again without it. Under constant churn the last attempt tolerates it, and a file that vanished between being listed and
 * being read is then stored empty.
 *
 * @returns the size of the archive in bytes
 * @throws {BackupCreateError} with mksquashfs' own words
 */
export async function makeArchive(options: ArchiveOptions): Promise<number> {
  const timer = setInterval(() => {
    stat(options.file).then(
      ({ size }) => options.onProgress(size),
      () => {}, // It does not exist before mksquashfs has begun.
    );
  }, PROGRESS_INTERVAL);
  try {
    for (let attempt = 1; attempt <= STRICT_ATTEMPTS; attempt++) {
      if (await tryStrictly(options)) return (await stat(options.file)).size;
    }
    await tryTolerantly(options);
    return (await stat(options.file)).size;
  } catch (error) {
    await rm(options.file, { force: true });
    throw error;
  } finally {
    clearInterval(timer);
  }
}

/** The arguments of mksquashfs. `memory` in bytes. */
export function planMksquashfs(options: Omit<ArchiveOptions, "signal" | "onProgress">, memory: number): string[] {
  const { dir, file, excludeFile, compression } = options;
  return [
    dir,
    file,
    ...["-noappend", "-no-recovery", "-no-progress", "-quiet"],
    ...["-comp", compression.format],
    ...(compression.level === undefined ? [] : ["-Xcompression-level", String(compression.level)]),
    ...(compression.threads === undefined ? [] : ["-processors", String(compression.threads)]),
    ...["-mem", `${Math.floor(memory / MiB)}M`],
    ...(excludeFile === undefined ? [] : ["-wildcards", "-ef", excludeFile]),
  ];
}

/** @returns false when a file vanished and it is worth another attempt */
async function tryStrictly(options: ArchiveOptions): Promise<boolean> {
  try {
    await mksquashfs(options, ["-exit-on-error"]);
    return true;
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    const complaint = findComplaint(error.facts.stderr.toString("latin1"));
    if (complaint !== undefined && (await hasVanished(complaint))) return false;
    throw await createError(options.dir, error, complaint);
  }
}

/** Lets mksquashfs go on over what it cannot read, and fails afterwards if any of that is still there. */
async function tryTolerantly(options: ArchiveOptions): Promise<void> {
  const complaints: (string | undefined)[] = [];
  try {
    await mksquashfs(options, [], (line) => complaints.push(findComplaint(line)));
  } catch (error) {
    throw error instanceof ToolError ? await createError(options.dir, error, undefined) : error;
  }
  for (const path of complaints) {
    if (path !== undefined && (await hasVanished(path))) continue;
    const what = path === undefined ? "it met an error that it does not name" : `${readable(path)} could not be read`;
    throw new BackupCreateError(`mksquashfs failed: ${what}${await reasonFor(path)}`, { dir: options.dir });
  }
}

async function mksquashfs(
  options: ArchiveOptions,
  flags: string[],
  onStderrLine?: (line: string) => void,
): Promise<void> {
  const args = [...planMksquashfs(options, await memoryBudget()), ...flags];
  const env = { ...TOOL_ENV, ...KEPT_BUFFERS };
  await runTool("mksquashfs", args, { env, signal: options.signal, ...(onStderrLine && { onStderrLine }) });
}

/** Where cgroup v2 and v1 have the container's limit, in bytes. */
const MEMORY_LIMITS = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/** A quarter of what the container may use. */
async function memoryBudget(): Promise<number> {
  const read = (path: string) =>
    readFile(path, "utf8").then(
      (text) => Number(text.trim() === "max" ? Number.POSITIVE_INFINITY : text),
      () => Number.POSITIVE_INFINITY, // The other version is in use, or none.
    );
  const limit = Math.min(...(await Promise.all(MEMORY_LIMITS.map(read))));
  return Math.min(MOST_MEMORY, Math.max(LEAST_MEMORY, limit / 4));
}

/** The forms in which mksquashfs 4.5 to 4.7 names a path that it cannot read; the ends are missing with -exit-on-error. */
const COMPLAINTS = [
  /Failed to read file (.+?)(?:, creating empty file)?\n*$/s,
  /Could not open (.+?)(?:, skipping\.\.\.)?\n*$/s,
  /Cannot stat dir\/file (.+) because [^\n]*\n*$/s,
  /Failed to read symlink (.+?)(?:, ignoring)?\n*$/s,
  /(?:llistxattr|lgetxattr)(?: failed)? for (.+?) (?:failed )?in read_attrs, because [^\n]*\n*$/s,
];

/** The path that the end of mksquashfs' stderr complains about, as a byte string (latin1). */
function findComplaint(stderr: string): string | undefined {
  for (const form of COMPLAINTS) {
    const path = form.exec(stderr)?.[1];
    if (path !== undefined) return path;
  }
  return undefined;
}

async function hasVanished(path: string): Promise<boolean> {
  try {
    await lstat(Buffer.from(path, "latin1"));
    return false;
  } catch (error) {
    return error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR");
  }
}

/** mksquashfs names the file but, before 4.6, not the reason: ask the system. */
async function reasonFor(path: string | undefined): Promise<string> {
  if (path === undefined) return "";
  return access(Buffer.from(path, "latin1"), constants.R_OK).then(
    () => "",
    (error: NodeJS.ErrnoException) => (error.code === "EACCES" ? ": Permission denied" : `: ${error.code}`),
  );
}

async function createError(dir: string, error: ToolError, complaint: string | undefined): Promise<BackupCreateError> {
  const { missing, exitCode } = error.facts;
  const stderr = error.facts.stderr.toString().trim();
  const reason = stderr.includes("Permission denied") ? "" : await reasonFor(complaint);
  const words = missing || stderr === "" ? error.message : `mksquashfs failed: ${withoutBanner(stderr)}${reason}`;
  const context = { dir, ...(exitCode === undefined ? {} : { exitCode }), ...(stderr === "" ? {} : { stderr }) };
  return new BackupCreateError(words, context, { cause: error });
}

/** mksquashfs ends with a plea for a bug report when it fails on its own; the lines before say why. */
function withoutBanner(stderr: string): string {
  return stderr.replace(/^FATAL ERROR: ?/gm, "").trim();
}

function readable(path: string): string {
  return Buffer.from(path, "latin1").toString();
}
