import { execFileSync } from "node:child_process";
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { makeDirectory } from "../../../container/backup/directory.js";
import { replaceDirectory } from "../../../container/backup/extract.js";
import { Mounts } from "../../../container/backup/mount.js";
import { temporaryDirectory } from "../support.js";
import { archive, listTree, makeFiles, makeTree, manifest, NEVER } from "./archives.js";

const STAGING = ".staging";

async function directory(): Promise<string> {
  const made = await temporaryDirectory();
  onTestFinished(() => made[Symbol.asyncDispose]());
  return made.path;
}

/** An archive of a directory with these files. */
async function archiveOf(paths: string[]): Promise<string> {
  const base = await directory();
  makeFiles(join(base, "source"), paths);
  await archive(join(base, "source"), join(base, "archive.sqsh"));
  return join(base, "archive.sqsh");
}

function replace(file: string, dir: string, signal = NEVER): Promise<void> {
  return replaceDirectory({ archive: file, dir, stagingName: STAGING, mounts: new Mounts(), signal });
}

/** Contents and attributes of a directory, and its time to the nanosecond. */
function stateOf(dir: string): unknown {
  return { files: manifest(dir), time: statSync(dir, { bigint: true }).mtimeNs };
}

function mountTmpfs(dir: string, ...options: string[]): void {
  execFileSync("mount", ["-t", "tmpfs", ...options, "tmpfs", dir]);
  onTestFinished(() => void execFileSync("umount", ["-l", dir]));
}

describe("replaceDirectory", () => {
  test("makes a directory what the archive holds, and keeps the directory itself", async () => {
    const file = await archiveOf(["a", "sub/b", ".hidden"]);
    const dir = await directory();
    makeFiles(dir, ["a/was/a/directory", "sub", "later", ".gone"]);
    const { ino } = statSync(dir);

    await replace(file, dir);

    expect(listTree(dir)).toEqual([".hidden", "a", "sub/", "sub/b"]);
    expect(statSync(dir).ino).toBe(ino);
  });

  test("makes a directory that is missing, with its parents", async () => {
    const file = await archiveOf(["a"]);
    const dir = join(await directory(), "not/there/yet");

    await replace(file, dir);

    expect(listTree(dir)).toEqual(["a"]);
  });

  test.each<[string, (file: string) => void]>([
    ["no archive", (file) => writeFileSync(file, "no archive")],
    ["empty", (file) => truncateSync(file)],
    ["cut off", (file) => truncateSync(file, 5_000)],
    [
      "damaged in its data",
      (file) => {
        const handle = openSync(file, "r+");
        writeSync(handle, Buffer.alloc(2_000, 0xaa), 0, 2_000, 1_000);
        closeSync(handle);
      },
    ],
  ])("leaves a directory exactly as it was when the archive is %s", async (_, damage) => {
    const base = await directory();
    mkdirSync(join(base, "source"));
    execFileSync("sh", ["-c", "seq 200000 | sha256sum > source/a; seq 100000 > source/b; echo small > source/c"], {
      cwd: base,
    });
    const file = join(base, "archive.sqsh");
    await archive(join(base, "source"), file, {}, { compression: { format: "gzip" } });
    damage(file);
    const dir = await directory();
    makeTree("random", dir, 3);
    const before = stateOf(dir);

    await expect(replace(file, dir)).rejects.toThrow(/unsquashfs/);

    expect(stateOf(dir)).toEqual(before);
    await expect(replace(file, join(base, "missing/dir"))).rejects.toThrow(/unsquashfs/);
    expect(readdirSync(base)).not.toContain("missing");
  });

  test("leaves a directory exactly as it was when the disk is full", async () => {
    const base = await directory();
    mkdirSync(join(base, "source"));
    execFileSync("sh", ["-c", "head -c 6000000 /dev/urandom > source/large"], { cwd: base });
    await archive(join(base, "source"), join(base, "archive.sqsh"));
    const dir = await directory();
    mountTmpfs(dir, "-o", "size=4m");
    makeTree("random", dir, 4);
    const before = stateOf(dir);

    await expect(replace(join(base, "archive.sqsh"), dir)).rejects.toThrow(/No space left/);

    expect(stateOf(dir)).toEqual(before);
  });

  test("goes all the way back when one entry cannot be moved, as one that is a mount point", async () => {
    const file = await archiveOf(["a", "b/c", "z"]);
    const dir = await directory();
    makeTree("random", dir, 5);
    makeFiles(dir, ["a", "mounted/", "zz/last"]);
    mountTmpfs(join(dir, "mounted"));
    writeFileSync(join(dir, "mounted/file"), "on the other disk");
    const before = stateOf(dir);

    await expect(replace(file, dir)).rejects.toThrow(/EBUSY/);

    expect(stateOf(dir)).toEqual(before);
    expect(readFileSync(join(dir, "mounted/file"), "utf8")).toBe("on the other disk");
  });

  test("ends with the reason of its signal, and all is as before", async () => {
    const file = await archiveOf(["a"]);
    const dir = await directory();
    makeFiles(dir, ["b"]);
    const before = stateOf(dir);
    const controller = new AbortController();
    controller.abort(new Error("enough"));

    await expect(replace(file, dir, controller.signal)).rejects.toThrow("enough");

    expect(stateOf(dir)).toEqual(before);
  });
});

describe("makeDirectory", () => {
  test("tells what it made, the outermost first", async () => {
    const base = await directory();

    expect(await makeDirectory(join(base, "a/b/c"))).toEqual([join(base, "a"), join(base, "a/b"), join(base, "a/b/c")]);
    expect(await makeDirectory(join(base, "a/b/c"))).toEqual([]);
    expect(await makeDirectory(join(base, "a/d"))).toEqual([join(base, "a/d")]);
  });
});
