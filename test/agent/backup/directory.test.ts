import { mkdir, mkdtemp, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { isKnownToHold } from "../../../container/backup/directory.js";

const MiB = 1024 * 1024;

describe("what a directory is known to hold", () => {
  async function makeDirectory(): Promise<string> {
    const dir = await mkdtemp(join(tmpdir(), "sandbox-backup-test-"));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    return dir;
  }

  async function makeFile(path: string, size: number): Promise<void> {
    await mkdir(join(path, ".."), { recursive: true });
    await writeFile(path, "");
    await truncate(path, size);
  }

  test("is the sum of its files, at any depth", async () => {
    const dir = await makeDirectory();
    await makeFile(join(dir, "a"), MiB);
    await makeFile(join(dir, "b/c/d"), MiB);
    expect(await isKnownToHold(dir, 2 * MiB)).toBe(true);
    expect(await isKnownToHold(dir, 2 * MiB + 1)).toBe(false);
  });

  test("is not what a link leads to", async () => {
    const other = await makeDirectory();
    await makeFile(join(other, "large"), MiB);
    const dir = await makeDirectory();
    await symlink(other, join(dir, "directory"));
    await symlink(join(other, "large"), join(dir, "file"));
    expect(await isKnownToHold(dir, MiB)).toBe(false);
  });

  test("is nothing where there is no directory", async () => {
    expect(await isKnownToHold(join(await makeDirectory(), "missing"), 1)).toBe(false);
  });

  test("is what the outermost thousands of entries tell", async () => {
    const dir = await makeDirectory();
    await Promise.all(Array.from({ length: 4000 }, (_, index) => writeFile(join(dir, `empty-${index}`), "")));
    await makeFile(join(dir, "deep/large"), MiB);
    expect(await isKnownToHold(dir, MiB)).toBe(false);
  });
});
