import { read as readFrom, writevSync } from "node:fs";
import { promisify } from "node:util";

/**
 * Serves one read-only file by FUSE: the kernel's requests are read from /dev/fuse and answered there. Messages are those of
 * include/uapi/linux/fuse.h, protocol 7.31; their integers are the machine's, little-endian wherever workers' containers run.
 */

const readDevice = promisify(readFrom);

/** Requests of this protocol that a file gets; others are answered with ENOSYS, and the kernel does without them. */
const Opcode = {
  FORGET: 2,
  GETATTR: 3,
  OPEN: 14,
  READ: 15,
  STATFS: 17,
  RELEASE: 18,
  INIT: 26,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
} as const;

/** Those that get no answer. */
const UNANSWERED: readonly number[] = [Opcode.FORGET, Opcode.INTERRUPT, Opcode.BATCH_FORGET];

const IN_HEADER = 40;
const OUT_HEADER = 16;
const PROTOCOL = { major: 7, minor: 31 };

/** FUSE_ASYNC_READ: reads come side by side. FUSE_MAX_PAGES: and are larger than 128 KiB. */
const FLAGS = (1 << 0) | (1 << 22);
const FOPEN_KEEP_CACHE = 1 << 1;
/** How much the kernel reads ahead, and at once, in bytes. */
const READ_AHEAD = 128 * 1024;
const MOST_PAGES = 256;

/** Larger than any request of a file that is only read; the kernel refuses a buffer of less than 8 KiB. */
const REQUEST_SIZE = 64 * 1024;
/** Requests that are waited for at a time: each takes a thread of Node's pool of four. */
const READERS = 2;

/** For attributes and the kernel's own cache: it never changes. In seconds. */
const FOREVER = 2n ** 31n;

const EIO = 5;
const ENOSYS = 38;

export interface ServedFile {
  /** In bytes. */
  readonly size: number;
  /** Bytes of the file, `length` of them or all up to its end; at once where they are there. A failure becomes EIO. */
  read(offset: number, length: number): Buffer | Promise<Buffer>;
}

/** The descriptor of /dev/fuse in mount(8), and in the process that serves the file. */
export const DEVICE = 3;

/** Arguments of mount(8) for a file whose requests come to that descriptor. -i: without libfuse's helper, which may be missing. */
export const MOUNT_ARGS = ["-i", "-t", "fuse", "-o", `ro,fd=${DEVICE},rootmode=100400,user_id=0,group_id=0`];

/** Answers the requests that come to an open /dev/fuse. Returns when the mount is gone. */
export async function serveFile(device: number, file: ServedFile): Promise<void> {
  await Promise.all(Array.from({ length: READERS }, () => answerRequests(device, file)));
}

async function answerRequests(device: number, file: ServedFile): Promise<void> {
  const request = Buffer.alloc(REQUEST_SIZE);
  for (;;) {
    try {
      const { bytesRead } = await readDevice(device, request, 0, request.length, null);
      answer(device, file, request.subarray(0, bytesRead));
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      // The mount was taken off.
      if (code === "ENODEV") return;
      // A request was interrupted before it was read.
      if (code !== "ENOENT" && code !== "EINTR" && code !== "EAGAIN") throw error;
    }
  }
}

function answer(device: number, file: ServedFile, request: Buffer): void {
  const opcode = request.readUInt32LE(4);
  const unique = request.readBigUInt64LE(8);
  if (UNANSWERED.includes(opcode)) return;
  try {
    const body = bodyFor(opcode, file, request.subarray(IN_HEADER));
    if (body === undefined) send(device, unique, ENOSYS);
    else if (body instanceof Promise)
      body.then(
        (bytes) => send(device, unique, 0, bytes),
        () => send(device, unique, EIO),
      );
    else send(device, unique, 0, body);
  } catch {
    // The disk says no; the reader learns of it.
    send(device, unique, EIO);
  }
}

/** What the request is answered with; undefined where it is one that a file does without. */
function bodyFor(opcode: number, file: ServedFile, request: Buffer): Buffer | Promise<Buffer> | undefined {
  switch (opcode) {
    case Opcode.INIT:
      return initReply();
    case Opcode.GETATTR:
      return attributesReply(file.size);
    case Opcode.OPEN:
      return openReply();
    case Opcode.READ:
      return read(file, request);
    case Opcode.STATFS:
      return statfsReply();
    case Opcode.RELEASE:
    case Opcode.DESTROY:
      return Buffer.alloc(0);
    default:
      return undefined;
  }
}

/** struct fuse_out_header, and the body. */
function send(device: number, unique: bigint, error: number, body: Buffer = Buffer.alloc(0)): void {
  const header = Buffer.alloc(OUT_HEADER);
  header.writeUInt32LE(OUT_HEADER + body.length, 0);
  header.writeInt32LE(-error, 4);
  header.writeBigUInt64LE(unique, 8);
  try {
    writevSync(device, [header, body]);
  } catch (failure) {
    // Who asked has gone, or the mount.
    const code = failure instanceof Error && "code" in failure ? failure.code : undefined;
    if (code !== "ENOENT" && code !== "ENODEV") throw failure;
  }
}

/** struct fuse_read_in: the handle, the offset (64 bits each), and the size (32 bits). */
function read(file: ServedFile, request: Buffer): Buffer | Promise<Buffer> {
  const offset = Number(request.readBigUInt64LE(8));
  const length = Math.max(0, Math.min(request.readUInt32LE(16), file.size - offset));
  return file.read(offset, length);
}

/** struct fuse_init_out */
function initReply(): Buffer {
  const body = Buffer.alloc(64);
  body.writeUInt32LE(PROTOCOL.major, 0);
  body.writeUInt32LE(PROTOCOL.minor, 4);
  body.writeUInt32LE(READ_AHEAD, 8);
  body.writeUInt32LE(FLAGS, 12);
  body.writeUInt16LE(64, 16); // max_background
  body.writeUInt16LE(48, 18); // congestion_threshold
  body.writeUInt32LE(4096, 20); // max_write
  body.writeUInt32LE(1, 24); // time_gran
  body.writeUInt16LE(MOST_PAGES, 28);
  return body;
}

/** struct fuse_attr_out */
function attributesReply(size: number): Buffer {
  const body = Buffer.alloc(104);
  body.writeBigUInt64LE(FOREVER, 0);
  body.writeBigUInt64LE(1n, 16); // ino
  body.writeBigUInt64LE(BigInt(size), 24);
  body.writeBigUInt64LE(BigInt(Math.ceil(size / 512)), 32);
  body.writeUInt32LE(0o100400, 76); // mode
  body.writeUInt32LE(1, 80); // nlink
  body.writeUInt32LE(4096, 96); // blksize
  return body;
}

/** struct fuse_open_out */
function openReply(): Buffer {
  const body = Buffer.alloc(16);
  body.writeUInt32LE(FOPEN_KEEP_CACHE, 8);
  return body;
}

/** struct fuse_statfs_out */
function statfsReply(): Buffer {
  const body = Buffer.alloc(80);
  body.writeUInt32LE(4096, 40); // bsize
  body.writeUInt32LE(255, 44); // namelen
  body.writeUInt32LE(4096, 48); // frsize
  return body;
}
