import { randomUUID } from "node:crypto";
import { constants, type Dirent, type Stats } from "node:fs";
import {
  access,
  chmod,
  copyFile,
  type FileHandle,
  lstat,
  mkdir,
  open,
  readdir,
  readlink,
  realpath,
  rename,
  rm,
  stat,
  unlink,
} from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { getSystemErrorMap } from "node:util";
import { lookup } from "mrmime";
import { FileNotFoundError, FileSystemError, PermissionDeniedError, ValidationError } from "../src/errors.js";
import { type FileInfo, WORKSPACE } from "../src/protocol.js";
import { runTool, ToolError } from "./run.js";

/**
 * The file calls. A path is absolute or relative to /workspace. It may lead anywhere: whoever calls may run commands too.
 * All throw `FileNotFoundError`, `PermissionDeniedError`, or `FileSystemError` for whatever else the system refuses.
 */

/**
 * Makes a caller's path absolute.
 * @param name the argument's name, for the error
 * @throws {ValidationError} when it is empty or holds a NUL character
 */
export function resolvePath(path: string, name = "path"): string {
  if (path === "") throw new ValidationError(`${name} must not be empty`);
  if (path.includes("\0")) throw new ValidationError(`${name} must not contain a NUL character`);
  return resolve(WORKSPACE, path);
}

/**
 * The error for a path, from what the system said; anything that is not the system's is returned as it is.
 * @param more the path's new name, where it was to get one, and a better reason than the system's
 */
export function fileError(
  error: unknown,
  doing: string,
  path: string,
  more: { newPath?: string; reason?: string | undefined } = {},
): unknown {
  if (!isSystemError(error)) return error;
  const { code: systemCode, errno } = error;
  const { newPath, reason = getSystemErrorMap().get(errno)?.[1] ?? systemCode } = more;
  const message = `Cannot ${doing} ${newPath === undefined ? path : `${path} to ${newPath}`}: ${reason}`;
  const context = { path, ...(newPath === undefined ? {} : { newPath }), systemCode };
  switch (systemCode) {
    case "ENOENT":
      return new FileNotFoundError(message, context, { cause: error });
    case "EACCES":
    case "EPERM":
      return new PermissionDeniedError(message, context, { cause: error });
    default:
      return new FileSystemError(message, context, { cause: error });
  }
}

/** An open file, ready to be sent. */
export interface FileContent {
  /** In bytes; undefined where only reading tells, as for the larger files of /proc. */
  size: number | undefined;
  mimeType: string;
  stream: Readable;
}

/** How much of a file is read before the first byte is sent: enough to tell text from binary. In bytes. */
const HEAD_SIZE = 64 * 1024;

/** Opens a regular file for reading. Destroying or ending the stream closes it. */
export async function readFile(path: string): Promise<FileContent> {
  const doing = "read";
  try {
    // Without O_NONBLOCK, opening a FIFO would wait for its writer and keep a thread from all other file calls.
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stats = await file.stat();
      if (stats.isDirectory()) throw isDirectoryError(doing, path, "list it, or name a file in it");
      if (!stats.isFile()) throw new FileSystemError(`Cannot ${doing} ${path}: it is not a regular file`, { path });
      return await contentOf(file, stats, path);
    } catch (error) {
      await file.close();
      throw error;
    }
  } catch (error) {
    throw fileError(error, doing, path);
  }
}

async function contentOf(file: FileHandle, stats: Stats, path: string): Promise<FileContent> {
  const head = await readHead(file);
  const complete = head.length < HEAD_SIZE;
  const mimeType = mimeTypeOf(path, head, complete);
  if (complete) {
    await file.close();
    return { size: head.length, mimeType, stream: Readable.from([head]) };
  }
  // A file of /proc says 0 bytes and holds more. Where the size is true, exactly so much is sent, even if the file grows.
  const size = stats.size >= HEAD_SIZE ? stats.size : undefined;
  const stream = file.createReadStream({ start: 0, ...(size === undefined ? {} : { end: size - 1 }) });
  return { size, mimeType, stream };
}

async function readHead(file: FileHandle): Promise<Buffer> {
  const head = Buffer.alloc(HEAD_SIZE);
  let length = 0;
  while (length < HEAD_SIZE) {
    const { bytesRead } = await file.read(head, length, HEAD_SIZE - length, length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return head.subarray(0, length);
}

function mimeTypeOf(path: string, head: Buffer, complete: boolean): string {
  const text = looksLikeText(head, complete);
  const known = lookup(path);
  // Many an extension has two meanings: a .ts file that is text is no MPEG stream.
  const contradicts = text && known !== undefined && /^(audio|video)\//.test(known);
  if (known !== undefined && !contradicts) return known;
  return text ? "text/plain" : "application/octet-stream";
}

function looksLikeText(head: Buffer, complete: boolean): boolean {
  if (head.includes(0)) return false;
  try {
    // As a stream, so that a character that the end of the head cuts in two is no error.
    new TextDecoder("utf-8", { fatal: true }).decode(head, { stream: !complete });
    return true;
  } catch {
    return false;
  }
}

/**
 * Writes a file from a stream. The file appears or changes when all of the stream has come; one that breaks off leaves
 * it as it was. An existing file keeps its mode and owner, and a link is followed. What cannot be replaced by a rename
 * is written in place: a file with several names, a device, a FIFO, a mount point, a file of somebody else.
 */
export async function writeFile(path: string, body: Readable): Promise<void> {
  const doing = "write";
  try {
    const target = await followLinks(path);
    const existing = await statIfExists(target);
    if (existing?.isDirectory()) throw isDirectoryError(doing, path, "name a file in it");
    if (existing !== undefined) await access(target, constants.W_OK);

    const sibling = await createSibling(target, existing);
    if (sibling === undefined) await writeInPlace(target, existing, body);
    else await replaceBySibling(target, existing, sibling, body);
  } catch (error) {
    if (hasCode(error, "ENOENT")) throw parentNotFound(path, doing, error);
    throw fileError(error, doing, path);
  }
}

/** The path that a write through `path` ends at: unlike with realpath, the last part need not exist. */
async function followLinks(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (!hasCode(error, "ENOENT")) throw error;
  }
  const parent = await realpath(dirname(path));
  const target = join(parent, basename(path));
  const link = await readlink(target).catch(() => undefined);
  return link === undefined ? target : followLinks(resolve(parent, link));
}

interface Sibling {
  path: string;
  file: FileHandle;
}

/** Opens a new file beside `target` that can take its place; undefined where `target` can only be written in place. */
async function createSibling(target: string, existing: Stats | undefined): Promise<Sibling | undefined> {
  if (existing !== undefined && (!existing.isFile() || existing.nlink > 1)) return undefined;
  const path = join(dirname(target), `.sandbox-write-${randomUUID()}`);
  let sibling: Sibling | undefined;
  try {
    // Until it has the mode of the file that it replaces, nobody else may read it.
    sibling = { path, file: await open(path, "wx", existing === undefined ? 0o666 : 0o600) };
    if (existing !== undefined) await sibling.file.chown(existing.uid, existing.gid);
    return sibling;
  } catch (error) {
    if (sibling !== undefined) await discard(sibling);
    // ENOENT: /proc and /sys, where files are written but not made.
    if (existing !== undefined && hasCode(error, "EACCES", "EPERM", "EROFS", "ENOENT")) return undefined;
    throw error;
  }
}

async function replaceBySibling(
  target: string,
  existing: Stats | undefined,
  sibling: Sibling,
  body: Readable,
): Promise<void> {
  try {
    await pipeline(body, sibling.file.createWriteStream());
    if (existing !== undefined) await chmod(sibling.path, existing.mode & 0o7777);
    await rename(sibling.path, target).catch(async (error: unknown) => {
      // A mount point, such as /etc/hosts in a container, and another user's file in /tmp cannot be renamed over.
      if (!hasCode(error, "EBUSY", "EPERM", "EACCES")) throw error;
      await copyFile(sibling.path, target);
      await unlink(sibling.path);
    });
  } catch (error) {
    await discard(sibling);
    throw error;
  }
}

async function discard(sibling: Sibling): Promise<void> {
  await sibling.file.close().catch(() => {});
  await rm(sibling.path, { force: true });
}

async function writeInPlace(target: string, existing: Stats | undefined, body: Readable): Promise<void> {
  // Fails when nobody reads the FIFO, where the next line would wait for that and keep a thread from all other calls.
  const readerCheck = existing?.isFIFO() ? await open(target, constants.O_WRONLY | constants.O_NONBLOCK) : undefined;
  try {
    const file = await open(target, constants.O_WRONLY | constants.O_TRUNC);
    await pipeline(body, file.createWriteStream());
  } finally {
    await readerCheck?.close();
  }
}

/** True when there is something at `path`; a link counts as what it leads to. */
export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (hasCode(error, "ENOENT", "ENOTDIR")) return false;
    throw fileError(error, "look at", path);
  }
}

/** Makes a directory; with `recursive` also those above it, and one that exists already is fine. */
export async function makeDirectory(path: string, recursive: boolean): Promise<void> {
  try {
    await mkdir(path, { recursive });
  } catch (error) {
    if (hasCode(error, "ENOENT")) throw parentNotFound(path, "make the directory", error);
    throw fileError(error, "make the directory", path);
  }
}

/** Deletes a file or a link, but no directory. */
export async function deleteFile(path: string): Promise<void> {
  const doing = "delete";
  try {
    if ((await lstat(path)).isDirectory()) throw isDirectoryError(doing, path, "use exec with rm -r");
    await unlink(path);
  } catch (error) {
    throw fileError(error, doing, path);
  }
}

/** Renames a file, link or directory within its file system, replacing a file that has the new name. */
export async function renameFile(path: string, newPath: string): Promise<void> {
  await checkSourceAndTarget("rename", path, newPath);
  try {
    await rename(path, newPath);
  } catch (error) {
    throw renameError(error, "rename", path, newPath);
  }
}

/**
 * Moves a file, link or directory, also to another file system, and into `newPath` when that is a directory.
 * @returns where it is now
 */
export async function moveFile(path: string, newPath: string): Promise<string> {
  await checkSourceAndTarget("move", path, newPath);
  const into = (await statIfExists(newPath))?.isDirectory() ?? false;
  const target = into ? join(newPath, basename(path)) : newPath;
  try {
    await rename(path, target);
  } catch (error) {
    if (!hasCode(error, "EXDEV")) throw renameError(error, "move", path, target);
    await moveAcrossFileSystems(path, target);
  }
  return target;
}

async function moveAcrossFileSystems(path: string, target: string): Promise<void> {
  try {
    await runTool("mv", ["-f", "-T", "--", path, target]);
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    const message = `Cannot move ${path} to ${target}: ${error.message}`;
    throw new FileSystemError(
      message,
      { path, newPath: target, stderr: error.facts.stderr.toString() },
      { cause: error },
    );
  }
}

/** ENOENT of a rename does not say which of its paths is meant. */
async function checkSourceAndTarget(doing: string, path: string, newPath: string): Promise<void> {
  try {
    await lstat(path);
  } catch (error) {
    throw fileError(error, doing, path);
  }
  const directory = dirname(newPath);
  try {
    await stat(directory);
  } catch (error) {
    throw fileError(error, `${doing} ${path} into`, directory);
  }
}

/** What the system says to a rename, where its own words would not help. */
const RENAME_REASONS: Record<string, string> = {
  EXDEV: "they are on different file systems; move it instead",
  EINVAL: "a directory cannot go into itself",
};

function renameError(error: unknown, doing: string, path: string, newPath: string): unknown {
  const reason = isSystemError(error) ? RENAME_REASONS[error.code] : undefined;
  return fileError(error, doing, path, { newPath, reason });
}

/**
 * Lists a directory, sorted by name; with `recursive` each directory is followed by what is in it. Links are not
 * followed. An entry that goes away meanwhile is left out.
 */
export async function listFiles(
  path: string,
  options: { recursive: boolean; includeHidden: boolean },
): Promise<FileInfo[]> {
  const list = async (directory: string, prefix: string): Promise<FileInfo[]> => {
    const entries = await entriesOf(directory);
    const visible = entries.filter((entry) => options.includeHidden || !entry.name.startsWith("."));
    const infos = await Promise.all(visible.map((entry) => infoOf(directory, prefix, entry.name)));
    const files: FileInfo[] = [];
    for (const info of infos) {
      if (info === undefined) continue;
      files.push(info);
      if (!options.recursive || info.type !== "directory") continue;
      const below = await list(info.absolutePath, `${info.relativePath}/`).catch((error: unknown) => {
        if (error instanceof FileNotFoundError) return [];
        throw error;
      });
      for (const file of below) files.push(file);
    }
    return files;
  };
  return list(path, "");
}

async function entriesOf(directory: string): Promise<Dirent[]> {
  try {
    const entries = await readdir(directory, { withFileTypes: true });
    return entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  } catch (error) {
    throw fileError(error, "list", directory);
  }
}

async function infoOf(directory: string, prefix: string, name: string): Promise<FileInfo | undefined> {
  const absolutePath = join(directory, name);
  try {
    const stats = await lstat(absolutePath);
    return {
      name,
      absolutePath,
      relativePath: prefix + name,
      type: typeOf(stats),
      size: stats.size,
      modifiedAt: stats.mtime.toISOString(),
      mode: modeString(stats.mode),
      permissions: permissionsOf(stats),
    };
  } catch (error) {
    if (hasCode(error, "ENOENT")) return undefined;
    throw fileError(error, "list", absolutePath);
  }
}

function typeOf(stats: Stats): FileInfo["type"] {
  if (stats.isFile()) return "file";
  if (stats.isDirectory()) return "directory";
  return stats.isSymbolicLink() ? "symlink" : "other";
}

function modeString(mode: number): string {
  const letters = [..."rwxrwxrwx"].map((letter, index) => (mode & (0o400 >> index) ? letter : "-"));
  const special = (bit: number, index: number, letter: string) => {
    if (mode & bit) letters[index] = letters[index] === "x" ? letter : letter.toUpperCase();
  };
  special(0o4000, 2, "s");
  special(0o2000, 5, "s");
  special(0o1000, 8, "t");
  return letters.join("");
}

/** By owner, group and mode: asking the system would take three more calls for every entry. */
function permissionsOf(stats: Stats): FileInfo["permissions"] {
  const uid = process.geteuid?.();
  if (uid === 0) {
    return { readable: true, writable: true, executable: stats.isDirectory() || (stats.mode & 0o111) !== 0 };
  }
  const inGroup = stats.gid === process.getegid?.() || (process.getgroups?.() ?? []).includes(stats.gid);
  const shift = uid === stats.uid ? 6 : inGroup ? 3 : 0;
  const bits = stats.mode >> shift;
  return { readable: (bits & 4) !== 0, writable: (bits & 2) !== 0, executable: (bits & 1) !== 0 };
}

async function statIfExists(path: string): Promise<Stats | undefined> {
  return stat(path).catch((error: unknown) => {
    if (hasCode(error, "ENOENT")) return undefined;
    throw fileError(error, "look at", path);
  });
}

/** For something new at `path`: what the system did not find is a directory above it, or what a link leads to. */
function parentNotFound(path: string, doing: string, cause: Error): FileNotFoundError {
  const parent = dirname(path);
  const message = `Cannot ${doing} ${path}: its parent directory does not exist`;
  return new FileNotFoundError(message, { path: parent, systemCode: "ENOENT" }, { cause });
}

function isDirectoryError(doing: string, path: string, instead: string): FileSystemError {
  const message = `Cannot ${doing} ${path}: it is a directory; ${instead}`;
  return new FileSystemError(message, { path, systemCode: "EISDIR" });
}

interface SystemError extends Error {
  code: string;
  errno: number;
}

function isSystemError(error: unknown): error is SystemError {
  return error instanceof Error && "code" in error && "errno" in error && typeof error.errno === "number";
}

function hasCode(error: unknown, ...codes: string[]): error is SystemError {
  return isSystemError(error) && codes.includes(error.code);
}
