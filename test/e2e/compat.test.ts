import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { needsPath, newSandbox, worker } from "./context.js";

/** Objects of this package and of Sandbox SDK 0.12 are the same, in both directions. */

const dir = "/workspace/tree";
const paths = [
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
];

describe.each(paths)("a backup made by the $path path", ({ localBucket }) => {
  needsPath(localBucket);

  test("is the two objects that Sandbox SDK 0.12 knows, and its six keys", async () => {
    const sandbox = newSandbox();
    await sandbox.makeTree("special", dir);

    const { id } = await sandbox.createBackup({ dir, name: "a name", ttl: 1234, localBucket });

    const keys = await worker.listKeys(`backups/${id}`);
    expect(keys.sort()).toEqual([`backups/${id}/data.sqsh`, `backups/${id}/meta.json`]);
    const archive = await worker.getObject(`backups/${id}/data.sqsh`);
    const metadata = JSON.parse((await worker.getObject(`backups/${id}/meta.json`)).toString()) as Record<
      string,
      unknown
    >;
    const createdAt = String(metadata.createdAt);
    expect(metadata).toMatchObject({ id, dir, name: "a name", sizeBytes: archive.length, ttl: 1234 });
    expect(new Date(createdAt).toISOString()).toBe(createdAt);
  });

  test("has null for a name that was not given, and three days of ttl", async () => {
    const sandbox = newSandbox();
    await sandbox.exec("mkdir tree");

    const { id } = await sandbox.createBackup({ dir, localBucket });

    const metadata: unknown = JSON.parse((await worker.getObject(`backups/${id}/meta.json`)).toString());
    expect(metadata).toMatchObject({ name: null, ttl: 259_200 });
  });

  test.each([
    { compression: undefined, format: "zstd" },
    { compression: { format: "gzip" as const }, format: "gzip" },
    { compression: { format: "gzip" as const, level: 1 }, format: "gzip" },
    { compression: { format: "lz4" as const, threads: 1 }, format: "lz4" },
    { compression: { format: "zstd" as const, level: 19, threads: 2 }, format: "zstd" },
  ])(
    "with compression $compression is squashfs 4.0 in $format, which unsquashfs reads",
    async ({ compression, format }) => {
      const sandbox = newSandbox();
      await sandbox.makeTree("random", dir, 7);
      const before = await sandbox.manifest(dir);
      const { id } = await sandbox.createBackup({ dir, localBucket, compression });
      const archive = await worker.getObject(`backups/${id}/data.sqsh`);
      await sandbox.do("writeFile", ["/root/data.sqsh", archive.toString("base64"), { encoding: "base64" }]);

      const facts = await sandbox.exec("unsquashfs -s /root/data.sqsh");
      await sandbox.exec("unsquashfs -q -n -d /root/out /root/data.sqsh");

      expect(facts).toContain("SQUASHFS 4:0 superblock");
      expect(facts).toMatch(new RegExp(`^Compression ${format}$`, "m"));
      expect(await sandbox.manifest("/root/out")).toBe(before);
    },
  );
});

describe.each(paths)("a backup of Sandbox SDK 0.12, restored by the $path path", ({ localBucket }) => {
  needsPath(localBucket);

  test.each(["gzip", "lz4", "zstd"])("in %s comes back byte for byte", async (format) => {
    const sandbox = newSandbox();
    await sandbox.makeTree("special", dir);
    const before = await sandbox.manifest(dir);
    await sandbox.exec(`mksquashfs tree /root/data.sqsh -comp ${format} -no-progress -quiet`);
    const { content } = await sandbox.do<{ content: string }>("readFile", ["/root/data.sqsh", { encoding: "base64" }]);
    const archive = Buffer.from(content, "base64");
    const id = randomUUID();
    const sizeBytes = archive.length;
    const metadata = { id, dir, name: null, sizeBytes, ttl: 259_200, createdAt: new Date().toISOString() };
    await worker.putObject(`backups/${id}/data.sqsh`, archive);
    await worker.putObject(`backups/${id}/meta.json`, JSON.stringify(metadata));
    await sandbox.exec("rm -rf tree && mkdir tree && echo later > tree/later");

    await sandbox.restoreBackup({ id, dir, ...(localBucket && { localBucket }) });

    expect(await sandbox.manifest(dir)).toBe(before);
  });
});
