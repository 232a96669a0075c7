import { randomInt } from "node:crypto";
import { mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { replaceDirectory } from "../../../container/backup/extract.js";
import { Mounts } from "../../../container/backup/mount.js";
import { COMPRESSION_FORMATS } from "../../../src/protocol.js";
import { temporaryDirectory } from "../support.js";
import { archive, makeFiles, makeTree, manifest, NEVER } from "./archives.js";

const seeds = Array.from({ length: 50 }, () => randomInt(2 ** 31));

test.each(seeds)("a random tree of seed %i comes back, extracted and mounted", async (seed) => {
  const base = await temporaryDirectory();
  const mounts = new Mounts();
  onTestFinished(async () => {
    await mounts.shutdown();
    await base[Symbol.asyncDispose]();
  });
  const [source, target] = [join(base.path, "source"), join(base.path, "target")];
  makeTree("random", source, seed);
  makeFiles(target, ["later", "sub/later"]);
  const before = manifest(source);
  const file = join(base.path, "archive.sqsh");
  await archive(source, file, {}, { compression: { format: COMPRESSION_FORMATS[seed % 3] ?? "zstd" } });

  await replaceDirectory({ archive: file, dir: target, stagingName: ".staging", mounts, signal: NEVER });
  expect(manifest(target)).toBe(before);

  const layers = join(base.path, "layers");
  mkdirSync(layers);
  renameSync(file, join(layers, "archive.sqsh"));
  await mounts.mount(target, layers, NEVER);
  expect(manifest(target)).toBe(before);

  // The archive of a mounted directory is another file, but holds the same.
  await mounts.countLinks(target, NEVER);
  await archive(target, file);
  await replaceDirectory({ archive: file, dir: target, stagingName: ".staging", mounts, signal: NEVER });
  expect(manifest(target)).toBe(before);
});
