import { execFileSync } from "node:child_process";
import { chmod, chown, link, lstat, mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { existsResultSchema, type FileInfo, listResultSchema, MiB } from "../../src/protocol.js";
import { errorOf, eventually, TestAgent, temporaryDirectory } from "./support.js";

const isRoot = process.getuid?.() === 0;

async function scene() {
  const agent = await TestAgent.start();
  const directory = await temporaryDirectory();
  return {
    agent,
    path: (...parts: string[]) => join(directory.path, ...parts),
    async [Symbol.asyncDispose]() {
      await agent[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

// Reading

test("reads a file with its length and media type", async () => {
  await using it = await scene();
  const types: Record<string, [contents: string | Buffer, type: string]> = {
    "page.html": ["<p>", "text/html"],
    "data.json": ["{}", "application/json"],
    "module.ts": ["export {};", "text/plain"],
    "photo.png": [Buffer.from([0x89, 0x50, 0x4e, 0x47]), "image/png"],
    Makefile: ["all: é\n", "text/plain"],
    noise: [Buffer.from([0, 1, 2, 255]), "application/octet-stream"],
    empty: ["", "text/plain"],
  };
  for (const [name, [contents, type]] of Object.entries(types)) {
    await writeFile(it.path(name), contents);
    const response = await it.agent.read(it.path(name));
    expect([name, response.headers.get("content-type")]).toEqual([name, type]);
    expect(response.headers.get("content-length")).toBe(String(Buffer.from(contents).length));
    expect(Buffer.from(await response.arrayBuffer())).toEqual(Buffer.from(contents));
  }
});

test.each([64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 3 * MiB])("reads a file of %i bytes whole", async (size) => {
  await using it = await scene();
  const contents = Buffer.alloc(size, "0123456789");
  await writeFile(it.path("file"), contents);
  const response = await it.agent.read(it.path("file"));
  expect(response.headers.get("content-length")).toBe(String(size));
  expect(contents.equals(Buffer.from(await response.arrayBuffer()))).toBe(true);
});

test("takes text for text where the first part of it ends within a character", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), `x${"é".repeat(64 * 1024)}`);
  expect((await it.agent.read(it.path("file"))).headers.get("content-type")).toBe("text/plain");
});

test("reads what /proc gives, although it says 0 bytes", async () => {
  await using it = await scene();
  expect(await (await it.agent.read("/proc/self/status")).text()).toContain("Name:");
});

test("resolves a relative path against /workspace", async () => {
  await using it = await scene();
  expect(await errorOf(await it.agent.read("no/such/file"))).toEqual({
    status: 404,
    name: "FileNotFoundError",
    code: "FILE_NOT_FOUND",
    message: "Cannot read /workspace/no/such/file: no such file or directory",
    context: { path: "/workspace/no/such/file", systemCode: "ENOENT" },
  });
});

test("reads neither a directory nor a FIFO", async () => {
  await using it = await scene();
  execFileSync("mkfifo", [it.path("fifo")]);
  expect(await errorOf(await it.agent.read(it.path()))).toMatchObject({
    status: 500,
    code: "FILESYSTEM_ERROR",
    message: `Cannot read ${it.path()}: it is a directory; list it, or name a file in it`,
  });
  expect((await errorOf(await it.agent.read(it.path("fifo")))).message).toContain("it is not a regular file");
});

test("refuses a path that is missing, empty, or holds a NUL character", async () => {
  await using it = await scene();
  expect(await errorOf(await it.agent.fetch("/v1/files/content"))).toMatchObject({ status: 400 });
  expect((await errorOf(await it.agent.read(""))).message).toBe("path must not be empty");
  expect((await errorOf(await it.agent.read("a\0b"))).message).toBe("path must not contain a NUL character");
});

test.runIf(isRoot)("reads for root what its mode forbids to others", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), "secret", { mode: 0 });
  expect(await (await it.agent.read(it.path("file"))).text()).toBe("secret");
});

// Writing

test("writes a new file, and says where", async () => {
  await using it = await scene();
  const response = await it.agent.write(it.path("new"), "contents");
  expect(await response.json()).toEqual({ path: it.path("new") });
  expect(await readFile(it.path("new"), "utf8")).toBe("contents");
  expect((await stat(it.path("new"))).mode & 0o777).toBe(0o666 & ~process.umask());
  expect(await readdir(it.path())).toEqual(["new"]);
});

test("writes an empty file", async () => {
  await using it = await scene();
  expect((await it.agent.write(it.path("empty"), "")).status).toBe(200);
  expect(await readFile(it.path("empty"), "utf8")).toBe("");
});

test("keeps the mode and owner of a file that it replaces", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), "old");
  if (isRoot) await chown(it.path("file"), 1234, 5678);
  await chmod(it.path("file"), 0o4751);
  const before = await stat(it.path("file"));
  await it.agent.write(it.path("file"), "new");
  const after = await stat(it.path("file"));
  expect([after.mode, after.uid, after.gid]).toEqual([before.mode, before.uid, before.gid]);
  expect(await readFile(it.path("file"), "utf8")).toBe("new");
});

test("writes through a link, also to a file that does not exist yet", async () => {
  await using it = await scene();
  await mkdir(it.path("far"));
  await writeFile(it.path("far/file"), "old");
  await symlink("far/file", it.path("link"));
  await symlink("far/new", it.path("dangling"));
  await it.agent.write(it.path("link"), "one");
  await it.agent.write(it.path("dangling"), "two");
  expect(await readFile(it.path("far/file"), "utf8")).toBe("one");
  expect(await readFile(it.path("far/new"), "utf8")).toBe("two");
  expect((await lstat(it.path("link"))).isSymbolicLink()).toBe(true);
});

test("writes all names of a file that has several", async () => {
  await using it = await scene();
  await writeFile(it.path("one"), "a long old text");
  await link(it.path("one"), it.path("two"));
  await it.agent.write(it.path("one"), "new");
  expect(await readFile(it.path("two"), "utf8")).toBe("new");
});

test("writes to a device, and to a FIFO that is read", async () => {
  await using it = await scene();
  execFileSync("mkfifo", [it.path("fifo")]);
  expect((await it.agent.write("/dev/null", "x")).status).toBe(200);
  expect((await stat("/dev/null")).isCharacterDevice()).toBe(true);

  expect((await errorOf(await it.agent.write(it.path("fifo"), "x"))).code).toBe("FILESYSTEM_ERROR");
  const read = it.agent.run({ command: "cat fifo", cwd: it.path() });
  await eventually(async () => (await it.agent.write(it.path("fifo"), "through")).ok);
  expect((await read).stdout).toBe("through");
});

test("writes to a file of /proc, beside which none can be made", async () => {
  await using it = await scene();
  const previous = await readFile("/proc/self/comm", "utf8");
  expect((await it.agent.write("/proc/self/comm", "written")).status).toBe(200);
  expect(await readFile("/proc/self/comm", "utf8")).toBe("written\n");
  await writeFile("/proc/self/comm", previous.trim());
});

test.runIf(isRoot)("writes to a file that is a mount point", async () => {
  await using it = await scene();
  await writeFile(it.path("outer"), "outer");
  await writeFile(it.path("mounted"), "old");
  execFileSync("mount", ["--bind", it.path("mounted"), it.path("outer")]);
  try {
    expect((await it.agent.write(it.path("outer"), "new")).status).toBe(200);
    expect(await readFile(it.path("mounted"), "utf8")).toBe("new");
    expect((await readdir(it.path())).sort()).toEqual(["mounted", "outer"]);
  } finally {
    execFileSync("umount", [it.path("outer")]);
  }
});

test("leaves a file as it was when the new contents break off", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), "old");
  const leaving = new AbortController();
  const body = new ReadableStream<Uint8Array>({
    start: (controller) => controller.enqueue(new Uint8Array(MiB)),
  });
  const write = it.agent.fetch(it.agent.contentPath(it.path("file")), {
    method: "PUT",
    body,
    duplex: "half",
    signal: leaving.signal,
  } as RequestInit);
  const names = () => readdir(it.path());
  await eventually(async () => (await names()).length === 2);
  leaving.abort();
  await expect(write).rejects.toThrow();
  await eventually(async () => (await names()).length === 1);
  expect(await readFile(it.path("file"), "utf8")).toBe("old");
});

test("does not make the directories above a file, and says which is missing", async () => {
  await using it = await scene();
  expect(await errorOf(await it.agent.write(it.path("a/b"), "x"))).toMatchObject({
    status: 404,
    message: `Cannot write ${it.path("a/b")}: its parent directory does not exist`,
    context: { path: it.path("a") },
  });
  expect(await errorOf(await it.agent.write(it.path(), "x"))).toMatchObject({
    code: "FILESYSTEM_ERROR",
    message: `Cannot write ${it.path()}: it is a directory; name a file in it`,
  });
});

test("says why the system refuses, once", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), "");
  expect(await errorOf(await it.agent.write(it.path("file/below"), "x"))).toMatchObject({
    code: "FILESYSTEM_ERROR",
    message: `Cannot write ${it.path("file/below")}: not a directory`,
    context: { path: it.path("file/below"), systemCode: "ENOTDIR" },
  });
  expect(await errorOf(await it.agent.files({ action: "delete", path: "/proc/version" }))).toMatchObject({
    status: 403,
    code: "PERMISSION_DENIED",
    message: expect.stringMatching(/^Cannot delete \/proc\/version: (operation not permitted|permission denied)$/),
  });
});

// The other actions

test("tells whether something exists, by what a link leads to", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), "");
  await symlink("nowhere", it.path("dangling"));
  const exists = async (name: string) =>
    existsResultSchema.parse(await (await it.agent.files({ action: "exists", path: it.path(name) })).json()).exists;
  expect(await exists("file")).toBe(true);
  expect(await exists("")).toBe(true);
  expect(await exists("missing")).toBe(false);
  expect(await exists("file/below")).toBe(false);
  expect(await exists("dangling")).toBe(false);
});

test("makes a directory, with those above it only when asked to", async () => {
  await using it = await scene();
  const make = (name: string, recursive: boolean) =>
    it.agent.files({ action: "mkdir", path: it.path(name), recursive });
  expect((await make("a", false)).status).toBe(200);
  expect((await make("b/c/d", true)).status).toBe(200);
  expect((await make("b/c/d", true)).status).toBe(200);
  expect(await errorOf(await make("x/y", false))).toMatchObject({
    code: "FILE_NOT_FOUND",
    context: { path: it.path("x") },
  });
  expect((await errorOf(await make("a", false))).message).toBe(
    `Cannot make the directory ${it.path("a")}: file already exists`,
  );
});

test("deletes a file and a link, but no directory", async () => {
  await using it = await scene();
  await mkdir(it.path("directory"));
  await writeFile(it.path("file"), "");
  await symlink("directory", it.path("link"));
  const remove = (name: string) => it.agent.files({ action: "delete", path: it.path(name) });
  expect((await remove("file")).status).toBe(200);
  expect((await remove("link")).status).toBe(200);
  expect((await errorOf(await remove("directory"))).message).toContain("it is a directory; use exec with rm -r");
  expect((await errorOf(await remove("file"))).code).toBe("FILE_NOT_FOUND");
  expect(await readdir(it.path())).toEqual(["directory"]);
});

test("renames a file and a directory, and says which path is missing", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), "x");
  await mkdir(it.path("directory"));
  const rename = (path: string, newPath: string) =>
    it.agent.files({ action: "rename", path: it.path(path), newPath: it.path(newPath) });
  expect(await (await rename("file", "renamed")).json()).toEqual({ path: it.path("renamed") });
  expect((await rename("directory", "other")).status).toBe(200);
  expect((await readdir(it.path())).sort()).toEqual(["other", "renamed"]);

  expect((await errorOf(await rename("file", "x"))).message).toBe(
    `Cannot rename ${it.path("file")}: no such file or directory`,
  );
  expect((await errorOf(await rename("renamed", "a/b"))).message).toBe(
    `Cannot rename ${it.path("renamed")} into ${it.path("a")}: no such file or directory`,
  );
  expect((await errorOf(await rename("other", "other/below"))).message).toContain("a directory cannot go into itself");
});

test("moves into a directory that exists, as mv does", async () => {
  await using it = await scene();
  await mkdir(it.path("directory"));
  await writeFile(it.path("file"), "x");
  const request = { action: "move", path: it.path("file"), newPath: it.path("directory") };
  expect(await (await it.agent.files(request)).json()).toEqual({ path: it.path("directory/file") });
  expect(await readFile(it.path("directory/file"), "utf8")).toBe("x");
});

test.runIf(isRoot)("moves to another file system, but does not rename there", async () => {
  await using it = await scene();
  await mkdir(it.path("other"));
  await mkdir(it.path("tree"));
  await writeFile(it.path("tree/file"), "x");
  execFileSync("mount", ["-t", "tmpfs", "tmpfs", it.path("other")]);
  try {
    const paths = { path: it.path("tree"), newPath: it.path("other/tree") };
    expect((await errorOf(await it.agent.files({ action: "rename", ...paths }))).message).toContain(
      "they are on different file systems; move it instead",
    );
    expect((await it.agent.files({ action: "move", ...paths })).status).toBe(200);
    expect(await readFile(it.path("other/tree/file"), "utf8")).toBe("x");
    expect(await readdir(it.path())).toEqual(["other"]);
  } finally {
    execFileSync("umount", [it.path("other")]);
  }
});

test("lists a directory sorted, with what each entry is", async () => {
  await using it = await scene();
  await mkdir(it.path("b"));
  await chmod(it.path("b"), 0o1777);
  await writeFile(it.path("b/inner"), "");
  await writeFile(it.path("a"), "12345");
  await chmod(it.path("a"), 0o2640);
  await symlink("b", it.path("c"));
  await writeFile(it.path(".hidden"), "");
  const list = async (options: object): Promise<FileInfo[]> =>
    listResultSchema.parse(await (await it.agent.files({ action: "list", path: it.path(), ...options })).json()).files;

  const plain = await list({ recursive: false, includeHidden: false });
  expect(plain.map(({ name, type }) => [name, type])).toEqual([
    ["a", "file"],
    ["b", "directory"],
    ["c", "symlink"],
  ]);
  expect(plain[0]).toEqual({
    name: "a",
    absolutePath: it.path("a"),
    relativePath: "a",
    type: "file",
    size: 5,
    modifiedAt: (await stat(it.path("a"))).mtime.toISOString(),
    mode: "rw-r-S---",
    permissions: { readable: true, writable: true, executable: false },
  });
  expect(plain[1]?.mode).toBe("rwxrwxrwt");

  const all = await list({ recursive: true, includeHidden: true });
  expect(all.map((file) => file.relativePath)).toEqual([".hidden", "a", "b", "b/inner", "c"]);
});

test("says why a path cannot be listed", async () => {
  await using it = await scene();
  await writeFile(it.path("file"), "");
  const list = (name: string) =>
    it.agent.files({ action: "list", path: it.path(name), recursive: true, includeHidden: true });
  expect((await errorOf(await list("missing"))).code).toBe("FILE_NOT_FOUND");
  expect((await errorOf(await list("file"))).message).toBe(`Cannot list ${it.path("file")}: not a directory`);
});

test("lists a tree that changes all the while", async () => {
  await using it = await scene();
  const leaving = new AbortController();
  const command = "while :; do mkdir -p x/y; touch x/y/z; rm -r x; done";
  const events = it.agent.exec({ command, cwd: it.path() }, leaving.signal);
  await events.next();
  await eventually(async () => (await readdir(it.path())).length > 0);
  for (let round = 0; round < 50; round++) {
    const response = await it.agent.files({ action: "list", path: it.path(), recursive: true, includeHidden: true });
    expect(response.status).toBe(200);
  }
  leaving.abort();
  await events.next().catch(() => {});
});
