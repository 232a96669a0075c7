import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { temporaryDirectory } from "../support.js";

// The agent reads PATH once, when it is loaded: programs that a test puts here come before the real ones.
const bin = vi.hoisted(() => {
  const directory = `${process.env.TMPDIR ?? "/tmp"}/agent-test-bin-${process.pid}`;
  process.env.PATH = `${directory}:${process.env.PATH}`;
  return directory;
});
const { planMksquashfs } = await import("../../../container/backup/archive.js");
const { archive, listTree, makeFiles } = await import("./archives.js");
const { BackupCreateError } = await import("../../../src/errors.js");

beforeAll(() => void mkdirSync(bin));
afterAll(() => rm(bin, { recursive: true }));

/** A directory to archive, and where the archive goes. */
async function directory(paths: string[] = ["a", "sub/b"]): Promise<{ dir: string; file: string }> {
  const made = await temporaryDirectory();
  onTestFinished(() => made[Symbol.asyncDispose]());
  const dir = join(made.path, "dir");
  makeFiles(dir, paths);
  return { dir, file: join(made.path, "archive.sqsh") };
}

/** Puts a script before mksquashfs; it finds the real one in `$REAL`. */
function wrapMksquashfs(script: string): void {
  const real = execFileSync("sh", ["-c", "command -v mksquashfs"], { encoding: "utf8" }).trim();
  const wrapper = join(bin, "mksquashfs");
  writeFileSync(wrapper, `#!/bin/sh\nREAL=${real}\n${script}`, { mode: 0o755 });
  onTestFinished(() => rm(wrapper));
}

function extract(file: string): string {
  const target = `${file}.extracted`;
  execFileSync("unsquashfs", ["-quiet", "-no-progress", "-dest", target, file]);
  return target;
}

describe("compression", () => {
  test.each([
    { format: "gzip" as const, level: 3, shown: [/Compression gzip/, /compression-level 3/] },
    { format: "gzip" as const, shown: [/Compression gzip/] },
    { format: "lz4" as const, shown: [/Compression lz4/] },
    { format: "zstd" as const, level: 1, shown: [/Compression zstd/, /compression-level 1/] },
    { format: "zstd" as const, level: 22, threads: 1, shown: [/Compression zstd/, /compression-level 22/] },
  ])("$format at level $level is what the archive says of itself", async ({ shown, ...compression }) => {
    const { dir, file } = await directory();
    const size = await archive(dir, file, {}, { compression });

    const about = execFileSync("unsquashfs", ["-s", file], { encoding: "utf8" });
    for (const line of shown) expect(about).toMatch(line);
    expect(readFileSync(file)).toHaveLength(size);
  });

  test("threads, level and memory become arguments", () => {
    const args = planMksquashfs(
      { dir: "/d", file: "/f", excludeFile: undefined, compression: { format: "zstd", level: 7, threads: 3 } },
      40 * 1024 * 1024,
    ).join(" ");
    expect(args).toMatch(/^\/d \/f /);
    for (const option of ["-comp zstd", "-Xcompression-level 7", "-processors 3", "-mem 40M"])
      expect(args).toContain(option);
    expect(args).not.toContain("-ef");
  });
});

describe("a file that vanishes", () => {
  /**
   * Runs mksquashfs and, whenever it has opened `first` and not yet `gone`, has `gone` vanish. The shell looks by itself: while
   * it started a program for that, on a busy machine, all of `first` could be read.
   */
  const deleteWhileReading = (dir: string, gone: string, again: string) => `
echo attempt >> ${bin}/attempts
${again}
"$REAL" "$@" & pid=$!
while kill -0 $pid 2> /dev/null; do
  for fd in /proc/$pid/fd/*; do
    if [ $fd -ef ${dir}/first ]; then
      kill -STOP $pid; rm -rf ${dir}/${gone}; kill -CONT $pid; break 2
    fi
  done
done
wait $pid`;

  const attempts = () => readFileSync(join(bin, "attempts"), "utf8").split("\n").length - 1;

  test("has the archive made again without it", async () => {
    const { dir, file } = await directory(["sub/kept", "zz/gone"]);
    execFileSync("truncate", ["-s", "512M", join(dir, "first")]);
    writeFileSync(join(bin, "attempts"), "");
    wrapMksquashfs(deleteWhileReading(dir, "zz/gone", ""));

    await archive(dir, file);

    expect(attempts()).toBe(2);
    expect(listTree(extract(file))).toEqual(["first", "sub/", "sub/kept", "zz/"]);
  });

  test("is tolerated when that happens again and again", async () => {
    const { dir, file } = await directory(["sub/kept", "zz/gone"]);
    execFileSync("truncate", ["-s", "512M", join(dir, "first")]);
    writeFileSync(join(bin, "attempts"), "");
    wrapMksquashfs(deleteWhileReading(dir, "zz/gone", `echo back > ${dir}/zz/gone`));

    await archive(dir, file);

    expect(attempts()).toBe(5);
    expect(listTree(extract(file))).toEqual(expect.arrayContaining(["first", "sub/kept"]));
  });

  test("does not hinder an archive under constant churn", async () => {
    const { dir, file } = await directory(Array.from({ length: 200 }, (_, index) => `kept/${index}`));
    mkdirSync(join(dir, "churn"));
    const churn = spawn(
      "sh",
      [
        "-c",
        "trap exit TERM; i=0; while :; do i=$((i+1)); mkdir d$((i%50)); echo $i > d$((i%50))/f; rm -r d$(((i+25)%50)); done 2> /dev/null",
      ],
      {
        cwd: join(dir, "churn"),
        stdio: "ignore",
      },
    );
    await once(churn, "spawn");
    onTestFinished(async () => {
      // The shell ends when the command that it runs has: nothing is made any more while the directory is removed.
      churn.kill("SIGTERM");
      if (churn.exitCode === null && churn.signalCode === null) await once(churn, "exit");
    });

    for (let round = 0; round < 3; round++) {
      await archive(dir, file);
      expect(listTree(extract(file)).filter((path) => path.startsWith("kept/"))).toHaveLength(201);
      await rm(`${file}.extracted`, { recursive: true });
    }
  });
});

describe("an archive that cannot be made leaves no file", () => {
  test("on a full disk, and the error says so", async () => {
    const { dir } = await directory();
    execFileSync("sh", ["-c", `head -c 6000000 /dev/urandom > '${dir}/random'`]);
    const disk = mkdtempSync(join(tmpdir(), "agent-test-disk-"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]);
    onTestFinished(async () => {
      execFileSync("umount", ["-l", disk]);
      await rm(disk, { recursive: true });
    });
    const file = join(disk, "archive.sqsh");

    const error: unknown = await archive(dir, file).catch((reason) => reason);

    expect(error).toBeInstanceOf(BackupCreateError);
    expect(error).toMatchObject({ message: expect.stringContaining("No space left"), context: { dir } });
    expect(existsSync(file)).toBe(false);
  });

  test("when mksquashfs is missing, dies or fails with words of its own", async () => {
    const { dir, file } = await directory();
    wrapMksquashfs(`echo something is wrong >&2; touch ${file}; exit 3`);
    await expect(archive(dir, file)).rejects.toMatchObject({
      message: "mksquashfs failed: something is wrong",
      context: { dir, exitCode: 3, stderr: "something is wrong" },
    });

    writeFileSync(join(bin, "mksquashfs"), `#!/bin/sh\ntouch ${file}; kill -9 $$`);
    await expect(archive(dir, file)).rejects.toMatchObject({
      message: expect.stringContaining("SIGKILL"),
      context: { dir },
    });
    expect(existsSync(file)).toBe(false);
  });

  test("when its signal aborts; mksquashfs has ended by then", async () => {
    const { dir, file } = await directory();
    const pidFile = join(bin, "pid");
    wrapMksquashfs(`touch ${file}; echo $$ > ${pidFile}.new; mv ${pidFile}.new ${pidFile}; sleep 600`);
    const controller = new AbortController();
    const made = archive(dir, file, {}, { signal: controller.signal });
    made.catch(() => {});
    await vi.waitUntil(() => existsSync(pidFile), { timeout: 10_000 });

    controller.abort(new Error("stop it"));

    await expect(made).rejects.toThrow("stop it");
    expect(existsSync(file)).toBe(false);
    expect(existsSync(`/proc/${readFileSync(pidFile, "utf8").trim()}`)).toBe(false);
  });
});

/** The agent's code as an ordinary user runs it: one file that this user can read. */
describe("for an ordinary user", () => {
  const USER = { uid: 65534, gid: 65534 };
  let script = "";

  beforeAll(async () => {
    const { build } = await import("tsup");
    script = join(bin, "archive.mjs");
    await build({
      config: false,
      entry: { archive: join(import.meta.dirname, "../../../container/backup/archive.ts") },
      outDir: bin,
      outExtension: () => ({ js: ".mjs" }),
      format: "esm",
      platform: "node",
      noExternal: [/.*/],
      silent: true,
    });
    chmodSync(bin, 0o755);
  });

  /** What comes of an archive that this user makes. */
  function archiveAsUser(dir: string, file: string): { name?: string; message?: string; size?: number } {
    chmodSync(join(dir, ".."), 0o777);
    const code = `
      const { makeArchive } = await import(${JSON.stringify(script)});
      const made = makeArchive({ dir: ${JSON.stringify(dir)}, file: ${JSON.stringify(file)}, excludeFile: undefined,
        compression: { format: "zstd" }, signal: new AbortController().signal, onProgress: () => {} });
      console.log(JSON.stringify(await made.then((size) => ({ size }), ({ name, message }) => ({ name, message }))));`;
    return JSON.parse(
      execFileSync(process.execPath, ["--input-type=module", "-e", code], { ...USER, encoding: "utf8", cwd: "/" }),
    );
  }

  test.each([
    { what: "a file", harm: (dir: string) => chmodSync(join(dir, "sub/b"), 0o000), named: "sub/b" },
    { what: "a directory", harm: (dir: string) => chmodSync(join(dir, "sub"), 0o000), named: "sub" },
    {
      what: "a directory that can be listed but not entered",
      harm: (dir: string) => chmodSync(join(dir, "sub"), 0o444),
      named: "sub/b",
    },
    {
      what: "a file in a directory of somebody else",
      harm: (dir: string) => {
        chownSync(join(dir, "sub"), 0, 0);
        chmodSync(join(dir, "sub"), 0o700);
      },
      named: "sub",
    },
    { what: "the directory itself", harm: (dir: string) => chmodSync(dir, 0o000), named: "dir" },
    {
      what: "a file whose name has a newline and a comma",
      harm: (dir: string) => {
        writeFileSync(join(dir, "x\ny, z"), "");
        chmodSync(join(dir, "x\ny, z"), 0o000);
      },
      named: "x\ny, z",
    },
  ])("$what that cannot be read fails the archive", async ({ harm, named }) => {
    const { dir, file } = await directory();
    harm(dir);

    const { name, message } = archiveAsUser(dir, file);

    expect(name).toBe("BackupCreateError");
    expect(message).toMatch(/^mksquashfs failed: .*Permission denied/s);
    expect(message).toContain(named);
    expect(existsSync(file)).toBe(false);
  });

  test("what can be read is archived", async () => {
    const { dir, file } = await directory();

    expect(archiveAsUser(dir, file)).toEqual({ size: expect.any(Number) });
    expect(listTree(extract(file))).toEqual(["a", "sub/", "sub/b"]);
  });
});

test("progress grows and never goes beyond the archive", async () => {
  const { dir, file } = await directory();
  execFileSync("sh", ["-c", `head -c 40000000 /dev/urandom > '${dir}/random'`]);
  const reports: number[] = [];

  const size = await archive(
    dir,
    file,
    {},
    { compression: { format: "zstd", level: 15 }, onProgress: (bytes) => reports.push(bytes) },
  );

  expect(reports.length).toBeGreaterThan(0);
  expect(reports).toEqual([...reports].sort((a, b) => a - b));
  expect(reports.at(-1)).toBeLessThanOrEqual(size);
});
