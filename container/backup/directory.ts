import type { Dirent } from "node:fs";
import { lstat, mkdir, opendir, realpath } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { InvalidBackupConfigError } from "../../src/errors.js";
import { BACKUP_ROOTS, isAtOrUnder } from "../../src/protocol.js";

/**
 * The directory that a backup is made of or restored to, with every link resolved. What does not exist yet is appended as
 * it is.
 * @throws {InvalidBackupConfigError} when that leaves the directories that may be backed up
 */
export async function resolveDirectory(dir: string): Promise<string> {
  const real = await resolveExisting(dir);
  if (BACKUP_ROOTS.some((root) => isAtOrUnder(real, root))) return real;
  throw new InvalidBackupConfigError(
    `\`dir\` ${dir} is ${real} after links are followed, and has to be at or under one of ${BACKUP_ROOTS.join(", ")}`,
  );
}

async function resolveExisting(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (!isMissing(error)) throw error;
    // A dangling link would be created through, wherever it leads: it is not "not there yet".
    const link = await lstat(path).then(
      (stats) => stats.isSymbolicLink(),
      () => false,
    );
    if (link) throw new InvalidBackupConfigError(`\`dir\` ${path} is or goes through a symbolic link to nothing`);
    return join(await resolveExisting(dirname(path)), path.slice(dirname(path).length));
  }
}

/**
 * Makes a directory and its parents, as far as they are missing.
 * @returns what was made, the outermost first
 */
export async function makeDirectory(dir: string): Promise<string[]> {
  const outermost = await mkdir(dir, { recursive: true });
  if (outermost === undefined) return [];
  const made = [outermost];
  for (const name of relative(outermost, dir).split("/").filter(Boolean)) made.push(join(made.at(-1) ?? dir, name));
  return made;
}

/** How many entries of a directory `isKnownToHold` looks at: a few tens of ms. */
const MOST_LOOKED_AT = 4000;

/** How many of them at a time: more would take memory, and keep no more of Node's threads busy. */
const LOOKED_AT_TOGETHER = 32;

/**
 * Whether a directory's files have so many bytes together, as a quick look tells: false where its first thousands of
 * entries, the outermost first, have fewer.
 */
export async function isKnownToHold(dir: string, bytes: number): Promise<boolean> {
  const directories = [dir];
  let looked = 0;
  let found = 0;
  // They become more while they are walked.
  for (const parent of directories) {
    for await (const entries of groupsOf(parent)) {
      for (const entry of entries) if (entry.isDirectory()) directories.push(join(parent, entry.name));
      const files = entries.filter((entry) => entry.isFile());
      const sizes = await Promise.all(files.map(({ name }) => sizeOf(join(parent, name))));
      found += sizes.reduce((sum, size) => sum + size, 0);
      looked += entries.length;
      if (found >= bytes) return true;
      if (looked >= MOST_LOOKED_AT) return false;
    }
  }
  return false;
}

/** A directory's entries, some at a time; no more where it is gone by now or may not be read. */
async function* groupsOf(dir: string): AsyncGenerator<Dirent[]> {
  let group: Dirent[] = [];
  try {
    for await (const entry of await opendir(dir)) {
      if (group.push(entry) < LOOKED_AT_TOGETHER) continue;
      yield group;
      group = [];
    }
  } catch {
    // What cannot be looked at counts as nothing; mksquashfs says what is wrong with it.
  }
  yield group;
}

/** In bytes; 0 where the file is gone by now. */
function sizeOf(file: string): Promise<number> {
  return lstat(file).then(
    ({ size }) => size,
    () => 0,
  );
}

/** True when a system call failed because the path does not exist. */
export function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR");
}
