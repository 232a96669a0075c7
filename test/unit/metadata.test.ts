import { env } from "cloudflare:workers";
import { describe, expect, test } from "vitest";
import { archiveKey, metadataKey, readMetadata, writeMetadata } from "../../src/backups/bucket.js";
import { assertNotExpired, type BackupMetadata } from "../../src/backups/metadata.js";
import { BackupExpiredError, BackupNotFoundError, BackupRestoreError } from "../../src/errors.js";

const ID = "5f0c3f5e-3f8e-4a2b-9c3d-0123456789ab";

/** As Sandbox SDK 0.12 writes it. */
const older: BackupMetadata = {
  id: ID,
  dir: "/workspace",
  name: null,
  sizeBytes: 4096,
  ttl: 600,
  createdAt: "2026-05-01T00:00:00.000Z",
};
const created = Date.parse(older.createdAt);

test("the two objects of a backup have the keys of Sandbox SDK 0.12", () => {
  expect(archiveKey(ID)).toBe(`backups/${ID}/data.sqsh`);
  expect(metadataKey(ID)).toBe(`backups/${ID}/meta.json`);
});

describe("meta.json", () => {
  const store = (content: string) => env.BACKUP_BUCKET.put(metadataKey(ID), content);
  const read = () => readMetadata(env.BACKUP_BUCKET, ID, "/app");

  test("is read as it was written", async () => {
    const metadata = {
      ...older,
      name: "Ünïcödé",
      etag: "0".repeat(32),
      digests: { chunkSize: 1_048_576, sha256: "AAAA" },
    };
    await writeMetadata(env.BACKUP_BUCKET, metadata);

    expect(await read()).toEqual(metadata);
    const stored = await env.BACKUP_BUCKET.get(metadataKey(ID));
    expect(stored?.httpMetadata?.contentType).toBe("application/json");
  });

  test("of Sandbox SDK 0.12 is read, with the six keys that it has", async () => {
    await store(JSON.stringify(older));

    expect(await read()).toEqual(older);
  });

  test("of a writer that left out name and ttl gets their defaults", async () => {
    const { name: _name, ttl: _ttl, ...others } = older;
    await store(JSON.stringify(others));

    expect(await read()).toEqual({ ...older, ttl: 259_200 });
  });

  test("with keys of a later writer is read without them", async () => {
    await store(JSON.stringify({ ...older, layers: [1, 2] }));

    expect(await read()).toEqual(older);
  });

  test("that is missing means that there is no such backup", async () => {
    await env.BACKUP_BUCKET.delete(metadataKey(ID));

    await expect(read()).rejects.toBeInstanceOf(BackupNotFoundError);
    await expect(read()).rejects.toMatchObject({ context: { backupId: ID } });
  });

  test.each([
    ["", "empty"],
    ["{", "cut off"],
    ["null", "null"],
    ["[]", "a list"],
    [JSON.stringify({ ...older, sizeBytes: "4096" }), "a size that is text"],
    [JSON.stringify({ ...older, sizeBytes: -1 }), "a size below 0"],
    [JSON.stringify({ ...older, createdAt: "yesterday" }), "a time that is none"],
    [JSON.stringify({ ...older, ttl: "600" }), "a ttl that is text"],
  ])("that is damaged (%j) is reported so", async (content) => {
    await store(content);

    const error = await read().catch((error: unknown) => error);

    expect(error).toBeInstanceOf(BackupRestoreError);
    expect(error).toMatchObject({
      context: { dir: "/app", backupId: ID },
      message: `backups/${ID}/meta.json is damaged: it is not the metadata of a backup`,
    });
  });
});

describe("a backup with a ttl of 600 s", () => {
  const check = (after: number, metadata = older) => assertNotExpired(metadata, new Date(created + after));

  test("is good until 60 s before its end", () => {
    expect(() => check(0)).not.toThrow();
    expect(() => check(540_000)).not.toThrow();
  });

  test("has expired from then on, and says since when it counts", () => {
    expect(() => check(540_001)).toThrow(BackupExpiredError);
    try {
      check(540_001);
    } catch (error) {
      expect(error).toMatchObject({ context: { backupId: ID, expiredAt: "2026-05-01T00:10:00.000Z" } });
    }
  });
});

test("a ttl of less than a minute has expired when the backup is made", () => {
  expect(() => assertNotExpired({ ...older, ttl: 59 }, new Date(created))).toThrow(BackupExpiredError);
  expect(() => assertNotExpired({ ...older, ttl: 60 }, new Date(created))).not.toThrow();
});

test("the largest ttl never expires", () => {
  expect(() => assertNotExpired({ ...older, ttl: Number.MAX_VALUE }, new Date(8.64e15))).not.toThrow();
});

test("an expiry beyond what a date can hold is still reported as a time", () => {
  const late = { ...older, ttl: 8.64e12 - created / 1000 + 10 };

  expect(() => assertNotExpired(late, new Date(8.64e15))).toThrow("+275760-09-13T00:00:00.000Z");
});
