import { describe, expect, test } from "vitest";
import { parseBackupOptions, parseHandle, parseRestoreOptions } from "../../src/backups/options.js";
import { InvalidBackupConfigError } from "../../src/errors.js";

const ID = "5f0c3f5e-3f8e-4a2b-9c3d-0123456789ab";

/** What a call is refused with. */
function refusal(call: () => unknown): InvalidBackupConfigError {
  try {
    call();
  } catch (error) {
    if (error instanceof InvalidBackupConfigError) return error;
    throw error;
  }
  throw new Error("it was accepted");
}

const roots = "/workspace, /home, /tmp, /var/tmp, /app";
const dirs: [unknown, string][] = [
  [undefined, "has to be a string: an absolute path"],
  [7, "has to be a string: an absolute path"],
  ["", `has to be an absolute path at or under one of ${roots}`],
  ["workspace", `has to be an absolute path at or under one of ${roots}`],
  ["/", `has to be at or under one of ${roots}`],
  ["/etc", `has to be at or under one of ${roots}`],
  ["/var", `has to be at or under one of ${roots}`],
  ["/workspaces", `has to be at or under one of ${roots}`],
  ["/var/backups/x", `has to be at or under one of ${roots}`],
  ["/workspace/../etc", "must not contain `..`"],
  ["/workspace/..", "must not contain `..`"],
  ["/workspace//a", "has to be normalized"],
  ["/workspace/./a", "has to be normalized"],
  ["/workspace/.", "has to be normalized"],
  ["/workspace/a\0b", "must not contain a NUL character"],
];

describe("createBackup refuses", () => {
  const others: [string, unknown, string][] = [
    ["name", 1, "has to be a string"],
    ["name", null, "has to be a string"],
    ["name", "x".repeat(257), "may have up to 256 characters"],
    ["name", "a\nb", "must not contain control characters"],
    ["name", "a\u0085b", "must not contain control characters"],
    ["ttl", "60", "has to be a finite number of seconds above 0"],
    ["ttl", 0, "has to be a finite number of seconds above 0"],
    ["ttl", -1, "has to be a finite number of seconds above 0"],
    ["ttl", Number.NaN, "has to be a finite number of seconds above 0"],
    ["ttl", Number.POSITIVE_INFINITY, "has to be a finite number of seconds above 0"],
    ["useGitignore", "true", "has to be true or false"],
    ["gitignore", 1, "has to be true or false"],
    ["excludes", "*.log", "has to be an array of globs"],
    ["excludes", { 0: "*.log" }, "has to be an array of globs"],
    ["localBucket", "yes", "has to be true or false"],
    ["localBucket", null, "has to be true or false"],
    ["multipart", 1, "has to be true or false"],
    ["compression", "zstd", "has to be an object { format, level?, threads? }"],
    ["signal", {}, "has to be an AbortSignal"],
    ["onProgress", "print", "has to be a function"],
  ];
  test.each([...dirs.map(([value, reason]): [string, unknown, string] => ["dir", value, reason]), ...others])(
    "%s: %j",
    (option, value, reason) => {
      const error = refusal(() => parseBackupOptions({ dir: "/workspace", [option]: value }));

      expect(error.message).toContain(`\`${option}\` ${reason}`);
      expect(error.context.reason).toContain(`\`${option}\` ${reason}`);
      expect(error.code).toBe("INVALID_BACKUP_CONFIG");
    },
  );

  test.each([
    ["excludes[1]", { excludes: ["ok", 5] }, "has to be a string: a glob relative to `dir`"],
    ["excludes[0]", { excludes: [""] }, "must not be empty"],
    ["excludes[0]", { excludes: ["/etc"] }, "has to be relative to `dir`"],
    ["excludes[0]", { excludes: ["a/../b"] }, "has to be relative to `dir`"],
    ["excludes[0]", { excludes: ["./b"] }, "has to be relative to `dir`"],
    ["excludes[0]", { excludes: ["a\nb"] }, "must not contain control characters"],
    ["excludes[0]", { excludes: ["a\0b"] }, "must not contain control characters"],
    ["excludes[0]", { excludes: ["**"] }, "must not match everything"],
    ["excludes[0]", { excludes: ["**/**"] }, "must not match everything"],
    ["compression.format", { compression: { format: "xz" } }, 'has to be "gzip", "lz4" or "zstd"'],
    ["compression.format", { compression: {} }, 'has to be "gzip", "lz4" or "zstd"'],
    ["compression.level", { compression: { format: "gzip", level: 0 } }, "has to be from 1 to 9 for gzip"],
    ["compression.level", { compression: { format: "gzip", level: 10 } }, "has to be from 1 to 9 for gzip"],
    ["compression.level", { compression: { format: "zstd", level: 23 } }, "has to be from 1 to 22 for zstd"],
    ["compression.level", { compression: { format: "lz4", level: 1 } }, "is not an option of lz4"],
    ["compression.level", { compression: { format: "zstd", level: 1.5 } }, "has to be a whole number"],
    ["compression.threads", { compression: { format: "zstd", threads: "2" } }, "has to be a whole number from 1 to 64"],
    ["compression.threads", { compression: { format: "zstd", threads: 0 } }, "has to be a whole number from 1 to 64"],
    ["compression.threads", { compression: { format: "zstd", threads: 65 } }, "has to be a whole number from 1 to 64"],
  ])("%s of %j", (path, options, reason) => {
    const error = refusal(() => parseBackupOptions({ dir: "/workspace", ...options }));

    expect(error.message).toContain(`\`${path}\` ${reason}`);
  });

  test.each([[undefined], [null], ["/workspace"], [42]])("%j in the place of its options", (options) => {
    expect(refusal(() => parseBackupOptions(options)).message).toContain(
      "createBackup's options have to be an object { dir, … }",
    );
  });

  test("names that are no options, each by name", () => {
    const error = refusal(() => parseBackupOptions({ dir: "/workspace", directory: "/app", ttlSeconds: 5 }));

    expect(error.message).toContain("`directory`, `ttlSeconds` is not an option");
    expect(
      refusal(() => parseBackupOptions({ dir: "/app", compression: { format: "zstd", fast: true } })).message,
    ).toContain("`compression` `fast` is not an option");
  });

  test("several wrong options in one error", () => {
    const { message } = refusal(() => parseBackupOptions({ dir: "/etc", ttl: 0, name: 3 }));

    for (const name of ["`dir`", "`ttl`", "`name`"]) expect(message).toContain(name);
  });
});

describe("createBackup accepts", () => {
  test("a directory alone, and fills in the defaults", () => {
    expect(parseBackupOptions({ dir: "/workspace" })).toEqual({
      dir: "/workspace",
      name: null,
      ttl: 259_200,
      gitignore: false,
      excludes: [],
      localBucket: false,
      compression: { format: "zstd", level: 1 },
      multipart: true,
    });
  });

  test("options that are undefined, as if they were not there", () => {
    const names = ["name", "ttl", "useGitignore", "gitignore", "excludes", "localBucket", "compression", "multipart"];
    const undefineds = Object.fromEntries(names.map((name) => [name, undefined]));

    expect(parseBackupOptions({ dir: "/workspace", ...undefineds })).toMatchObject(
      parseBackupOptions({ dir: "/workspace" }),
    );
  });

  test.each([
    "/workspace",
    "/workspace/a b/ü/日本",
    "/home/user",
    "/tmp",
    "/var/tmp/x",
    "/app",
    "/workspace/a..b/...",
    "/workspace/.git",
    `/workspace/${"n".repeat(255)}`,
  ])("the directory %s", (dir) => {
    expect(parseBackupOptions({ dir }).dir).toBe(dir);
  });

  test("a slash at the end of a directory, and drops it", () => {
    expect(parseBackupOptions({ dir: "/workspace/" }).dir).toBe("/workspace");
  });

  test.each([
    [{ useGitignore: true }, true],
    [{ gitignore: true }, true],
    [{ useGitignore: false, gitignore: true }, false],
    [{ useGitignore: false }, false],
  ])("%j as gitignore: %j", (options, gitignore) => {
    expect(parseBackupOptions({ dir: "/app", ...options }).gitignore).toBe(gitignore);
  });

  test.each([
    [{ format: "gzip" }, { format: "gzip" }],
    [{ format: "lz4" }, { format: "lz4" }],
    [{ format: "zstd" }, { format: "zstd", level: 1 }],
    [
      { format: "zstd", level: 22, threads: 64 },
      { format: "zstd", level: 22, threads: 64 },
    ],
    [
      { format: "gzip", level: 9, threads: 1 },
      { format: "gzip", level: 9, threads: 1 },
    ],
  ])("the compression %j", (compression, expected) => {
    expect(parseBackupOptions({ dir: "/app", compression }).compression).toEqual(expected);
  });

  test.each([0.5, 1, 604_800, Number.MAX_VALUE])("a ttl of %d", (ttl) => {
    expect(parseBackupOptions({ dir: "/app", ttl }).ttl).toBe(ttl);
  });

  test("a name of 256 characters, and an empty one", () => {
    expect(parseBackupOptions({ dir: "/app", name: "n".repeat(256) }).name).toHaveLength(256);
    expect(parseBackupOptions({ dir: "/app", name: "" }).name).toBe("");
  });

  test.each([[["node_modules", "**/*.log", "build/**", "*.tmp", "a b", "[x]", "!not"]], [[]]])(
    "the globs %j",
    (excludes) => {
      expect(parseBackupOptions({ dir: "/app", excludes }).excludes).toEqual(excludes);
    },
  );
});

describe("restoreBackup refuses", () => {
  const uuid = "has to be the UUID that createBackup returned";
  test.each([
    [{ dir: "/app" }, `\`id\` ${uuid}`],
    [{ id: 5, dir: "/app" }, `\`id\` ${uuid}`],
    [{ id: "", dir: "/app" }, `\`id\` ${uuid}`],
    [{ id: "latest", dir: "/app" }, `\`id\` ${uuid}`],
    [{ id: `${ID}/../x`, dir: "/app" }, `\`id\` ${uuid}`],
    [{ id: `../${ID}`, dir: "/app" }, `\`id\` ${uuid}`],
    [{ id: ID, dir: "/app", localBucket: "true" }, "`localBucket` has to be true, false or absent"],
    ...dirs.map(([dir, reason]): [object, string] => [{ id: ID, dir }, `\`dir\` ${reason}`]),
  ])("the handle %j", (handle, reason) => {
    expect(refusal(() => parseHandle(handle)).message).toContain(reason);
  });

  test.each([[undefined], [null], [ID], [[]]])("%j in the place of a handle", (handle) => {
    expect(() => parseHandle(handle)).toThrow(InvalidBackupConfigError);
  });

  test.each([
    [{ signal: true }, "`signal` has to be an AbortSignal"],
    [{ onProgress: {} }, "`onProgress` has to be a function"],
    [{ force: true }, "`force` is not an option"],
    ["now", "restoreBackup's options have to be an object"],
  ])("the options %j", (options, reason) => {
    expect(refusal(() => parseRestoreOptions(options)).message).toContain(reason);
  });
});

describe("restoreBackup accepts", () => {
  test("a handle that went through JSON, with what others have added to it", () => {
    const handle = { id: ID, dir: "/workspace/other", localBucket: true, storedBy: "somebody" };

    expect(parseHandle(JSON.parse(JSON.stringify(handle)))).toEqual({
      id: ID,
      dir: "/workspace/other",
      localBucket: true,
    });
    expect(parseHandle({ id: ID, dir: "/app" })).toEqual({ id: ID, dir: "/app", localBucket: false });
    expect(parseHandle({ id: ID, dir: "/app", localBucket: false }).localBucket).toBe(false);
  });

  test("an id in upper case", () => {
    expect(parseHandle({ id: ID.toUpperCase(), dir: "/app" }).id).toBe(ID);
  });

  test("no options", () => {
    expect(parseRestoreOptions(undefined)).toEqual({});
  });
});
