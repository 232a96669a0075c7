import { execFileSync } from "node:child_process";
import { appendFile, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, expect, test, vi } from "vitest";
import { ArchiveCache, type ArchiveIdentity } from "../../../container/backup/cache.js";
import { MiB } from "../../../src/protocol.js";
import { temporaryDirectory } from "../support.js";

const digests = { chunkSize: MiB, sha256: "AAAA" };

let store: string;

beforeEach(async () => {
  const directory = await temporaryDirectory();
  store = directory.path;
  return () => {
    vi.unstubAllEnvs();
    return directory[Symbol.asyncDispose]();
  };
});

/** Writes an archive of a MiB and has it kept, as an operation does, which then removes its own. */
async function keep(cache: ArchiveCache, backupId: string, content = backupId): Promise<ArchiveIdentity> {
  const file = join(store, "made");
  await writeFile(file, content.padEnd(MiB));
  const identity = { backupId, size: MiB, digests };
  await cache.keep(file, identity);
  await rm(file);
  return identity;
}

/** What the cache lends; undefined when it has not got it. */
async function lend(cache: ArchiveCache, identity: ArchiveIdentity): Promise<string | undefined> {
  const target = join(store, "lent");
  if (!(await cache.lend(identity, target))) return undefined;
  const content = (await readFile(target, "utf8")).trim();
  await rm(target);
  return content;
}

const kept = async () => (await readdir(join(store, "archives"))).sort();

test("lends what it was given, again and again", async () => {
  const cache = new ArchiveCache(store, 10 * MiB);
  const first = await keep(cache, "first");
  expect(await lend(cache, first)).toBe("first");
  expect(await lend(cache, first)).toBe("first");
  expect(await lend(cache, { ...first, backupId: "other" })).toBeUndefined();
});

test("lends nothing but the archive that is asked for", async () => {
  const cache = new ArchiveCache(store, 10 * MiB);
  for (const other of [
    { size: MiB - 1 },
    { digests: { chunkSize: MiB, sha256: "BBBB" } },
    { digests: { chunkSize: 2 * MiB, sha256: "AAAA" } },
    { digests: null, etag: "1" },
  ]) {
    const identity = await keep(cache, "first");
    expect(await lend(cache, { ...identity, ...other })).toBeUndefined();
    expect(await kept()).toEqual([]);
  }
});

test("knows an archive without digests by its ETag", async () => {
  const cache = new ArchiveCache(store, 10 * MiB);
  const file = join(store, "fetched");
  await writeFile(file, "old".padEnd(MiB));
  const old = { backupId: "old", size: MiB, etag: "1", digests: null };
  await cache.keep(file, old);
  expect(await lend(cache, old)).toBe("old");
  expect(await lend(cache, { ...old, etag: "2" })).toBeUndefined();
});

test("drops the least recently used for another, but none that is mounted", async () => {
  const cache = new ArchiveCache(store, 3 * MiB);
  const mounted = await keep(cache, "mounted");
  await cache.lend(mounted, join(store, "mounted"));
  const second = await keep(cache, "second");
  await keep(cache, "third");
  await lend(cache, second);
  await keep(cache, "fourth");
  expect(await kept()).toEqual(["fourth.sqsh", "mounted.sqsh", "second.sqsh"]);
});

test("does not keep what is larger than all of it, and nothing when it is turned off", async () => {
  const identity = await keep(new ArchiveCache(store, MiB - 1), "first");
  const off = new ArchiveCache(store, 0);
  await keep(off, "second");
  expect(await lend(off, identity)).toBeUndefined();
  expect(await readdir(store)).toEqual([]);
});

test.each<[string, (file: string) => Promise<void>]>([
  ["removed", (file) => rm(file)],
  ["truncated", (file) => truncate(file, 10)],
  ["appended to", (file) => appendFile(file, "x")],
  ["written to", (file) => writeFile(file, "x".padEnd(MiB))],
  ["replaced", async (file) => void execFileSync("sh", ["-c", `cp -p ${file} ${file}.new && mv ${file}.new ${file}`])],
])("does not lend what was %s since", async (_, change) => {
  const cache = new ArchiveCache(store, 10 * MiB);
  const identity = await keep(cache, "first");
  await change(join(store, "archives", "first.sqsh"));
  expect(await lend(cache, identity)).toBeUndefined();
});

test("takes a quarter of the free space at most, also when others take that later", async () => {
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=16m", "tmpfs", store]);
  try {
    const cache = new ArchiveCache(store);
    for (const name of ["a", "b", "c", "d", "e"]) await keep(cache, name);
    expect(await kept()).toEqual(["b.sqsh", "c.sqsh", "d.sqsh", "e.sqsh"].slice(-(await kept()).length));
    expect((await kept()).length).toBeGreaterThanOrEqual(3);
    await writeFile(join(store, "taken"), Buffer.alloc(9 * MiB));
    await cache.trim();
    expect(await kept()).toEqual(["e.sqsh"]);
  } finally {
    execFileSync("umount", [store]);
  }
});

test("forgets what an earlier agent has kept", async () => {
  await keep(new ArchiveCache(store, 10 * MiB), "first");
  await keep(new ArchiveCache(store, 10 * MiB), "second");
  expect(await kept()).toEqual(["second.sqsh"]);
});

test("a failure to keep an archive is not one of what made it", async () => {
  const cache = new ArchiveCache(store, 10 * MiB);
  await cache.keep(join(store, "nothing"), { backupId: "first", size: 1, digests });
  expect(await lend(cache, { backupId: "first", size: 1, digests })).toBeUndefined();
});

test.each(["", "much", "-1"])("a limit of '%s' is refused by its name", (configured) => {
  vi.stubEnv("SANDBOX_BACKUP_CACHE", configured);

  expect(() => new ArchiveCache(store)).toThrow(
    `SANDBOX_BACKUP_CACHE is ${configured} and has to be a number of MiB, 0 or above`,
  );
});

test("SANDBOX_BACKUP_CACHE is how many MiB it may take", async () => {
  vi.stubEnv("SANDBOX_BACKUP_CACHE", "2");
  const cache = new ArchiveCache(store);
  for (const backupId of ["first", "second", "third"]) await keep(cache, backupId);

  expect(await kept()).toEqual(["second.sqsh", "third.sqsh"]);
});
