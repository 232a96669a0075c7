// Describes all of a directory tree, one JSON line an entry, for comparison: node manifest.mjs DIR
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import fs from "node:fs";

const root = Buffer.from(process.argv[2]);
const inodes = new Map();
const lines = [];
const buffer = Buffer.alloc(1 << 20);

/** Names are bytes; latin1 shows each. */
function describe(target, name) {
  const stats = fs.lstatSync(target);
  const line = {
    name: name.toString("latin1"),
    mode: stats.mode.toString(8),
    owner: `${stats.uid}:${stats.gid}`,
    time: Math.floor(stats.mtimeMs / 1000),
  };
  if (stats.isFile()) {
    line.size = stats.size;
    line.digest = digest(target);
    // Not `nlink`: fuse-overlayfs counts only the names that were looked up already.
    const inode = `${stats.dev}:${stats.ino}`;
    if (inodes.has(inode)) line.sameAs = inodes.get(inode);
    else inodes.set(inode, line.name);
  }
  if (stats.isSymbolicLink()) line.target = fs.readlinkSync(target, "latin1");
  lines.push(JSON.stringify(line));
  if (!stats.isDirectory()) return;
  for (const entry of fs.readdirSync(target, "buffer").sort(Buffer.compare)) {
    describe(
      Buffer.concat([target, Buffer.from("/"), entry]),
      name.length === 0 ? entry : Buffer.concat([name, Buffer.from("/"), entry]),
    );
  }
}

function digest(target) {
  const hash = createHash("sha256");
  const file = fs.openSync(target, "r");
  for (let count = fs.readSync(file, buffer); count > 0; count = fs.readSync(file, buffer))
    hash.update(buffer.subarray(0, count));
  fs.closeSync(file);
  return hash.digest("hex");
}

/** User extended attributes, by getfattr(1): Node cannot read them. */
function attributes() {
  const options = [
    "--recursive",
    "--physical",
    "--no-dereference",
    "--dump",
    "--encoding=hex",
    "--match=^user\\.",
    ".",
  ];
  const { stdout, stderr } = spawnSync("getfattr", options, {
    cwd: root.toString(),
    maxBuffer: 1 << 28,
    encoding: "latin1",
  });
  // The kernel says so of files in an archive in which nothing has attributes.
  const failures = stderr.split("\n").filter((line) => line !== "" && !line.endsWith(": Operation not supported"));
  if (failures.length > 0) throw new Error(failures.join("\n"));
  return stdout.split("\n\n").filter(Boolean).sort();
}

describe(root, Buffer.alloc(0));
console.log([...lines, ...attributes()].join("\n"));
