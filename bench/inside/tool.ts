import { spawnSync } from "node:child_process";
import {
  closeSync,
  createReadStream,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { Agent, type IncomingMessage, request } from "node:http";
import { dirname } from "node:path";
import { text } from "node:stream/consumers";

/**
 * The straightforward way to back up a directory, and its parts alone, for comparison. It runs in the sandbox, as the agent
 * does: `node tool.ts <command> <arguments as JSON>`, and prints its result as JSON. How long it took does not include
 * the start of its process. One file, for the sandbox sees nothing else of the benchmark.
 */

export interface Commands {
  /** mksquashfs with lz4 to a file, sent and deleted; its metadata after it. */
  create: { arguments: { dir: string; object: string }; result: { duration: number; size: number } };
  /** Downloaded by 8 ranges, mounted by squashfuse under fuse-overlayfs; then one file is read, where one is named. */
  restore: { arguments: { dir: string; object: string; file?: string }; result: { duration: number } };
  /** mksquashfs with the package's own settings, to a file that is left there. */
  compress: { arguments: { dir: string; archive: string }; result: { duration: number; size: number } };
  /** Sends a file, as fast as it goes. */
  send: { arguments: { archive: string; object: string }; result: { duration: number } };
  /** unsquashfs into a new directory. */
  extract: { arguments: { archive: string; dir: string }; result: { duration: number } };
}

/** Up to this size an archive is sent by one PUT, in bytes. */
const LARGEST_PUT = 10 * 1024 * 1024;
const LEAST_PART = 5 * 1024 * 1024;
const MOST_PARTS = 16;
const RANGES = 8;

/** Where the baseline keeps its archive and its layers. */
const LAYERS = "/var/backups/baseline";

const agent = new Agent({ keepAlive: true });

const commands: { [Name in keyof Commands]: (args: Commands[Name]["arguments"]) => Promise<object> } = {
  async create({ dir, object }) {
    const archive = `${LAYERS}/new.sqsh`;
    mkdirSync(LAYERS, { recursive: true });
    run("mksquashfs", [dir, archive, "-noappend", "-no-progress", "-quiet", "-comp", "lz4", "-processors", "8"]);
    const { size } = statSync(archive);
    await send(archive, `${object}/data.sqsh`);
    await call("HEAD", `${object}/data.sqsh`);
    await call("PUT", `${object}/meta.json`, JSON.stringify({ dir, sizeBytes: size }));
    rmSync(archive);
    return { size };
  },

  async restore({ dir, object, file }) {
    const archive = `${LAYERS}/archive.sqsh`;
    const [lower, upper, work] = [`${LAYERS}/lower`, `${LAYERS}/upper`, `${LAYERS}/work`];
    unmount(dir);
    unmount(lower);
    rmSync(LAYERS, { recursive: true, force: true });
    for (const path of [dir, lower, upper, work]) mkdirSync(path, { recursive: true });
    const { sizeBytes } = JSON.parse(await call("GET", `${object}/meta.json`)) as { sizeBytes: number };
    await call("HEAD", `${object}/data.sqsh`);
    await download(`${object}/data.sqsh`, sizeBytes, archive);
    run("squashfuse", [archive, lower]);
    run("fuse-overlayfs", ["-o", `lowerdir=${lower},upperdir=${upper},workdir=${work}`, dir]);
    if (file !== undefined) readFileSync(`${dir}/${file}`);
    return {};
  },

  async compress({ dir, archive }) {
    mkdirSync(dirname(archive), { recursive: true });
    const settings = ["-comp", "zstd", "-Xcompression-level", "1", "-mem", "64M"];
    run("mksquashfs", [dir, archive, "-noappend", "-no-progress", "-quiet", ...settings]);
    return { size: statSync(archive).size };
  },

  async send({ archive, object }) {
    await send(archive, object);
    return {};
  },

  async extract({ archive, dir }) {
    run("unsquashfs", ["-quiet", "-no-progress", "-dest", dir, archive]);
    return {};
  },
};

/** Sends a file by one PUT, or in parts that are all on their way at once. */
async function send(file: string, object: string): Promise<void> {
  const { size } = statSync(file);
  if (size <= LARGEST_PUT) {
    await call("PUT", object, createReadStream(file), size);
    return;
  }
  const uploadId = /<UploadId>(.*)<\/UploadId>/.exec(await call("POST", `${object}?uploads=`))?.[1];
  const partSize = Math.max(LEAST_PART, Math.ceil(size / MOST_PARTS));
  const parts = await Promise.all(
    Array.from({ length: Math.ceil(size / partSize) }, async (_, index) => {
      const start = index * partSize;
      const end = Math.min(size, start + partSize) - 1;
      const body = createReadStream(file, { start, end });
      const url = `${object}?partNumber=${index + 1}&uploadId=${uploadId}`;
      const { headers } = await exchange("PUT", url, body, end + 1 - start);
      return `<Part><PartNumber>${index + 1}</PartNumber><ETag>${headers.etag}</ETag></Part>`;
    }),
  );
  const list = `<CompleteMultipartUpload>${parts.join("")}</CompleteMultipartUpload>`;
  await call("POST", `${object}?uploadId=${uploadId}`, list);
}

async function download(object: string, size: number, file: string): Promise<void> {
  const descriptor = openSync(file, "w");
  truncateSync(file, size);
  const rangeSize = Math.max(1, Math.ceil(size / RANGES));
  await Promise.all(
    Array.from({ length: Math.ceil(size / rangeSize) }, async (_, index) => {
      let position = index * rangeSize;
      const range = `bytes=${position}-${Math.min(size, position + rangeSize) - 1}`;
      const response = await open("GET", object, undefined, undefined, { range });
      for await (const chunk of response as AsyncIterable<Buffer>) {
        writeSync(descriptor, chunk, 0, chunk.length, position);
        position += chunk.length;
      }
    }),
  );
  closeSync(descriptor);
}

type Body = string | NodeJS.ReadableStream;

async function call(method: string, url: string, body?: Body, size?: number): Promise<string> {
  return (await exchange(method, url, body, size)).body;
}

async function exchange(method: string, url: string, body?: Body, size?: number) {
  const response = await open(method, url, body, size);
  return { headers: response.headers, body: await text(response) };
}

/** @throws when the store refuses */
async function open(
  method: string,
  url: string,
  body?: Body,
  size?: number,
  headers: Record<string, string> = {},
): Promise<IncomingMessage> {
  const length = typeof body === "string" ? Buffer.byteLength(body) : size;
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const all = { ...headers, ...(length !== undefined && { "content-length": length }) };
    const outgoing = request(url, { method, agent, headers: all }, resolve).on("error", reject);
    if (typeof body === "object") body.pipe(outgoing);
    else outgoing.end(body);
  });
  if (response.statusCode === undefined || response.statusCode >= 300) {
    throw new Error(`${method} ${url}: HTTP ${response.statusCode}`);
  }
  return response;
}

/** A program that goes on in the background is not waited for: it holds none of this process's pipes. */
function run(program: string, args: readonly string[]): void {
  const { status, error } = spawnSync(program, args, { stdio: ["ignore", "ignore", "inherit"] });
  if (error !== undefined) throw error;
  if (status !== 0) throw new Error(`${program} exited with ${status}`);
}

function unmount(path: string): void {
  if (readFileSync("/proc/mounts", "utf8").includes(` ${path} fuse`)) run("umount", ["-l", path]);
}

const [name = "", json = "{}"] = process.argv.slice(2);
const start = performance.now();
const result = await commands[name as keyof Commands](JSON.parse(json));
console.log(JSON.stringify({ duration: performance.now() - start, ...result }));
agent.destroy();
