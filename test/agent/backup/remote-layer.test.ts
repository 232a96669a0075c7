import { randomBytes } from "node:crypto";
import { stat } from "node:fs/promises";
import { expect, onTestFinished, test } from "vitest";
import { archivePath, stopLayer } from "../../../container/backup/layers.js";
import { mountRemote } from "../../../container/backup/remote-layer.js";
import { MiB } from "../../../src/protocol.js";
import { buildAgent } from "../bundle.js";
import { temporaryDirectory } from "../support.js";
import { Bucket, digestsOf } from "./bucket.js";

const agentFile = await buildAgent();

/** As much of an archive as is read before it is mounted: its superblock says where the tables begin. */
const content = randomBytes(2 * MiB);
content.writeBigUInt64LE(BigInt(MiB + 5), 64);

/** An archive that appears in a directory before it is fetched, and goes away with the test. */
async function mountArchive() {
  // Its program is what serves the archive.
  const [program = ""] = process.argv.splice(1, 1, agentFile);
  onTestFinished(() => void process.argv.splice(1, 1, program));
  const directory = await temporaryDirectory();
  onTestFinished(() => directory[Symbol.asyncDispose]());
  const bucket = await Bucket.start();
  bucket.content = content;
  const remote = await mountRemote({
    layers: directory.path,
    backupId: "d0ed868c-7c81-4edb-b0da-468ba1bbebe6",
    archive: { size: content.length, etag: "version", digests: digestsOf(content, MiB), sha256: null },
    urls: bucket,
    limits: { stallTimeout: 5_000, attempts: 2, firstDelay: 5, concurrency: 4 },
    signal: new AbortController().signal,
  });
  remote.filled.catch(() => {}); // It is given up when the layer is.
  onTestFinished(() => stopLayer(remote.layer));
  return { ...remote, file: archivePath(directory.path) };
}

// Of two processes that ask for it first, and at once, the kernel may tell one that the file is empty.
test("an archive that is not fetched yet has its size from the moment it is there, for all who open it", async () => {
  const { layer, file } = await mountArchive();
  if (layer.server === undefined) throw new Error("nobody serves it");
  const { pid } = layer.server.process;
  process.kill(pid, "SIGSTOP");
  onTestFinished(() => void process.kill(pid, "SIGCONT"));
  expect((await stat(file)).size).toBe(content.length);
});
