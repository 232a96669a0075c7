// Makes directory trees for tests, inside a sandbox: node make-tree.mjs special|random|many DIR [SEED or COUNT]
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";

const [kind, root, argument] = process.argv.slice(2);
const at = (...names) => Buffer.concat([Buffer.from(`${root}/`), Buffer.from(names.join("/"))]);

/** Everything that a file system can hold and an archive can get wrong. */
function special() {
  fs.mkdirSync(root, { recursive: true });
  fs.writeFileSync(at("regular.txt"), "content\n");
  fs.writeFileSync(at("empty-file"), "");
  fs.mkdirSync(at("empty-directory"));
  fs.symlinkSync("/nowhere/at/all", at("dangling-link"));
  fs.symlinkSync("/etc/hostname", at("absolute-link"));
  fs.symlinkSync("regular.txt", at("relative-link"));
  fs.mkdirSync(at("links"));
  fs.linkSync(at("regular.txt"), at("links", "hard-link"));
  for (const [name, mode] of [
    ["setuid", 0o4755],
    ["setgid", 0o2755],
    ["read-only", 0o444],
    ["secret", 0o600],
    ["none", 0o000],
  ]) {
    fs.writeFileSync(at(name), name);
    fs.chownSync(at(name), 1234, 5678);
    fs.chmodSync(at(name), mode);
  }
  fs.mkdirSync(at("sticky"));
  fs.chmodSync(at("sticky"), 0o1777);
  fs.mkdirSync(at("private"));
  fs.writeFileSync(at("private", "file"), "in a private directory");
  fs.chownSync(at("private"), 4321, 8765);
  fs.chmodSync(at("private"), 0o700);
  execFileSync("setfattr", ["-n", "user.note", "-v", "an attribute", at("regular.txt")]);
  execFileSync("setfattr", ["-n", "user.directory", "-v", "0x00ff10", at("sticky")]);
  for (const name of [
    "with blank",
    " leading blank",
    "trailing blank ",
    "new\nline",
    "tab\tname",
    "quote'single",
    'quote"double',
    "back\\slash",
    "glob*?[a]",
    "{brace}",
    "$dollar `tick`",
    "#hash",
    "-rf",
    "--help",
    "ünïcödé-日本語-🗂",
    "e\u0301",
    "x".repeat(255),
    "...",
    "... sticky",
    "!(a|b)",
    "a;b&c|d",
    ".hidden",
    "control\x01\x7f",
  ]) {
    fs.writeFileSync(at(name), name);
  }
  fs.writeFileSync(
    Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe, 0x41])]),
    "a name that is not UTF-8",
  );
  let deep = root;
  while (deep.length + 202 < root.length + 2_900) deep = path.join(deep, "d".repeat(200));
  deep = path.join(deep, "e".repeat(root.length + 3_000 - deep.length - 6));
  fs.mkdirSync(deep, { recursive: true });
  fs.writeFileSync(path.join(deep, "file"), "at a path of 3,000 bytes");
  setTimes();
}

/** A random tree; the same for the same seed. */
function random(seed) {
  let state = seed >>> 0 || 1;
  const next = (limit) => {
    // xorshift32: enough for test data, and short.
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % limit;
  };
  const name = () =>
    Array.from({ length: 1 + next(12) }, () => "abcXYZ019 ._-#'\"\\*[]é日\n"[next(23)])
      .join("")
      .replace(/^\.{1,2}$/, "dot");
  const directories = [root];
  const files = [];
  fs.mkdirSync(root, { recursive: true });
  for (let count = 10 + next(60); count > 0; count--) {
    const target = `${directories[next(directories.length)]}/${name()}`;
    if (Buffer.byteLength(path.basename(target)) > 255 || fs.lstatSync(target, { throwIfNoEntry: false })) continue;
    switch (next(6)) {
      case 0:
        fs.mkdirSync(target);
        directories.push(target);
        break;
      case 1:
        fs.symlinkSync(name(), target);
        break;
      case 2:
        if (files.length > 0) fs.linkSync(files[next(files.length)], target);
        break;
      default:
        fs.writeFileSync(target, Buffer.alloc(next(3) === 0 ? next(300_000) : next(2_000), name()));
        files.push(target);
    }
    if (!fs.lstatSync(target, { throwIfNoEntry: false }) || fs.lstatSync(target).isSymbolicLink()) continue;
    fs.chownSync(target, next(3) * 1000, next(3) * 1000);
    fs.chmodSync(target, [0o644, 0o755, 0o600, 0o4711, 0o1777][next(5)]);
  }
  setTimes();
}

function many(count) {
  for (let index = 0; index < count; index++) {
    const directory = path.join(root, `d${index % 97}`, `e${index % 13}`);
    if (index < 97 * 13) fs.mkdirSync(directory, { recursive: true });
    // Of several sizes: mksquashfs compares each file with all of its size.
    fs.writeFileSync(path.join(directory, `f${index}`), `file ${index}\n`.repeat(1 + (index % 251)));
  }
}

/** Times long past, to the whole second, as an archive keeps them; the deepest first, for a directory's changes with its entries. */
function setTimes() {
  let seconds = 1_000_000_000;
  const visit = (directory) => {
    for (const entry of fs.readdirSync(directory, { withFileTypes: true, encoding: "buffer" })) {
      const target = Buffer.concat([directory, Buffer.from("/"), entry.name]);
      if (entry.isDirectory()) visit(target);
      fs.lutimesSync(target, seconds, seconds);
      seconds += 61;
    }
  };
  visit(Buffer.from(root));
  fs.utimesSync(root, seconds, seconds);
}

({ special, random: () => random(Number(argument)), many: () => many(Number(argument)) })[kind]();
