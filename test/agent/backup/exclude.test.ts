import { execFileSync } from "node:child_process";
import { chownSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { BackupCreateError } from "../../../src/errors.js";
import { temporaryDirectory } from "../support.js";
import { archivedPaths, listTree, makeFiles } from "./archives.js";

/** A directory with these files, and a `.gitignore` of these lines where there are some. */
async function directory(paths: readonly string[]): Promise<string> {
  const made = await temporaryDirectory();
  onTestFinished(() => made[Symbol.asyncDispose]());
  makeFiles(made.path, paths);
  return made.path;
}

function git(dir: string, ...args: string[]): void {
  execFileSync("git", ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "safe.directory=*", ...args], {
    cwd: dir,
    stdio: "pipe",
  });
}

/** A repository with these files, in whose `.gitignore` these lines stand; `tracked` are added although they match. */
async function repository(paths: string[], ignore: string[], tracked: string[] = []): Promise<string> {
  const dir = await directory([...paths, ...tracked]);
  if (ignore.length > 0) writeFileSync(join(dir, ".gitignore"), ignore.join("\n"), "latin1");
  git(dir, "init", "-q");
  if (tracked.length > 0) git(dir, "add", "--force", "--", ...tracked);
  return dir;
}

/** What a backup that leaves out what git ignores keeps, `.git` and `.gitignore` aside. */
async function kept(dir: string): Promise<string[]> {
  const paths = await archivedPaths(dir, { gitignore: true });
  return paths.filter((path) => !/(^|\/)\.git(ignore$|\/)/.test(path));
}

describe("what git ignores is left out", () => {
  test("by the root's, nested and negated rules", async () => {
    const dir = await repository(
      ["a.log", "keep.log", "a.txt", "sub/b.log", "sub/b.tmp", "sub/b.txt", "sub/deep/c.tmp", "sub/deep/d.log"],
      ["*.log", "!keep.log"],
    );
    writeFileSync(join(dir, "sub/.gitignore"), "*.tmp\n!d.log\n");

    expect(await kept(dir)).toEqual(["a.txt", "keep.log", "sub/", "sub/b.txt", "sub/deep/", "sub/deep/d.log"]);
  });

  test("by .git/info/exclude and by the user's own ignore file", async () => {
    const dir = await repository(["private", "mine.swp", "kept"], []);
    writeFileSync(join(dir, ".git/info/exclude"), "private\n");
    const home = await directory([".config/git/"]);
    writeFileSync(join(home, ".config/git/ignore"), "*.swp\n");
    vi.stubEnv("HOME", home);
    onTestFinished(() => void vi.unstubAllEnvs());

    expect(await kept(dir)).toEqual(["kept"]);
  });

  test("by the rules of the directories above, for a subdirectory of a repository", async () => {
    const dir = await repository(
      ["packages/one/dist/x", "packages/one/src/x", "packages/one/only-here", "packages/one/a.tmp"],
      ["dist/", "/packages/one/only-here"],
    );
    writeFileSync(join(dir, "packages/.gitignore"), "*.tmp\n");

    expect(await kept(join(dir, "packages/one"))).toEqual(["src/", "src/x"]);
  });

  test("and nothing that git does not list: .git, tracked files, files of the same name elsewhere", async () => {
    const dir = await repository(
      ["build/out.js", "build/deep/out.js", "a/build/out.js", ".env", "a/.env.example"],
      ["/build/", ".env", "*.gen"],
      ["packages/build/out.js", "tracked.gen", "packages/.env"],
    );

    expect(await kept(dir)).toEqual([
      "a/",
      "a/.env.example",
      "a/build/",
      "a/build/out.js",
      "packages/",
      "packages/.env",
      "packages/build/",
      "packages/build/out.js",
      "tracked.gen",
    ]);
    expect(await archivedPaths(dir, { gitignore: true })).toEqual(expect.arrayContaining([".git/HEAD", ".gitignore"]));
  });

  test("but for the tracked files in an ignored directory", async () => {
    const dir = await repository(["dist/a", "dist/sub/b", "dist/other/d"], ["dist/"], ["dist/keep", "dist/sub/keep"]);

    expect(await kept(dir)).toEqual(["dist/", "dist/keep", "dist/sub/", "dist/sub/keep"]);
  });

  test("with its directories, of which no skeleton stays", async () => {
    const dir = await repository(
      ["node_modules/a/b/c", "empty/", "ignored/empty/", "new/a.log", "new/a.txt", "logs/a.log"],
      ["node_modules/", "ignored/", "*.log"],
    );

    const paths = await kept(dir);
    expect(paths).toEqual(expect.arrayContaining(["empty/", "new/", "new/a.txt"]));
    expect(paths.filter((path) => /node_modules|ignored|\.log/.test(path))).toEqual([]);
  });

  test("whatever characters its names have", async () => {
    const names = [
      "star*",
      "set[ab]",
      "back\\slash",
      "new\nline",
      "#hash",
      " leading",
      "trailing ",
      "  ",
      "tab\t",
      "quote'\"",
      "... sticky",
      "...",
      "!bang",
      "!(a|b)",
      "@(a)",
      "-rf",
      "bytes\xff\xfe",
      "\xe9",
      "cr\r",
      "~",
      "$(x)",
      "a:b",
    ];
    // Names that a pattern made of the ignored ones could match too.
    const others = [
      "starlight",
      "seta",
      "setb",
      "backslash",
      "newline",
      "new line",
      "hash",
      "leading",
      "trailing",
      "sticky",
      "bang",
      "a",
      "b",
      "rf",
      "bytes",
    ];
    const dir = await repository(
      [
        ...names.flatMap((name) => [`ignored/${name}`, `deep/ignored/${name}/file`]),
        ...others,
        ...others.map((name) => `deep/${name}`),
      ],
      [],
    );
    rmSync(join(dir, "ignored"), { recursive: true });
    makeFiles(dir, names);
    const escaped = (name: string) => name.replace(/[*[\]\\!#? \t]/g, "\\$&");
    const ignorable = names.filter((name) => !name.includes("\n") && !name.includes("\r"));
    writeFileSync(
      join(dir, ".gitignore"),
      [...ignorable.map((name) => `/${escaped(name)}`), "/new?line", "/cr?", "/deep/ignored/*/", "!/new line"].join(
        "\n",
      ),
      "latin1",
    );

    const expected = [...others, "deep/", ...others.map((name) => `deep/${name}`)];
    const paths = await kept(dir);
    expect(paths.filter((path) => path !== "deep/ignored/")).toEqual(expected.sort());
  });

  test.each([
    { count: 50_000, what: "no others", others: [] },
    {
      count: 1_000,
      what: "a few others",
      others: ["keep", "keep.o", ".hidden", "sub/file.txt", "!(x)", "a|b", "c)", "[d", "e]", "f\\|g", "*", "new\nline"],
    },
    { count: 1_000, what: "hidden ones among them", others: [".other", "other"], hidden: true },
  ])("also where $count names of one directory are, and $what", async ({ count, others, hidden }) => {
    const ignored = Array.from({ length: count }, (_, index) => `crowd/${hidden && index % 2 ? "." : ""}f${index}.o`);
    const dir = await repository(["crowd/a.o/", "crowd/b.o/c/d", "crowd/sub/e.o", ...ignored], ["*.o", "!keep.o"]);
    makeFiles(
      dir,
      others.map((name) => `crowd/${name}`),
    );

    const started = performance.now();
    const paths = await kept(dir);

    const expected = others.flatMap((name) => (name.includes("/") ? [] : [`crowd/${name}`]));
    const below = others.some((name) => name.startsWith("sub/")) ? ["crowd/sub/", "crowd/sub/file.txt"] : [];
    expect(paths.filter((path) => path !== "crowd/" && (below.length > 0 || path !== "crowd/sub/"))).toEqual(
      [...expected, ...below].sort(),
    );
    // Without the shortcut for crowded directories this takes more than a minute.
    expect(performance.now() - started).toBeLessThan(15_000);
  });

  test("exactly, also where too many names stay for one line of mksquashfs", async () => {
    const ignored = Array.from({ length: 400 }, (_, index) => `crowd/f${index}.o`);
    const others = Array.from({ length: 400 }, (_, index) => `crowd/${"long".repeat(15)}${index}`);
    const dir = await repository([...ignored, ...others], ["*.o"]);

    expect(await kept(dir)).toEqual(["crowd/", ...others.sort()]);
  });

  test("in a repository that belongs to somebody else", async () => {
    const dir = await repository(["secret.env", "kept"], ["*.env"]);
    for (const path of [dir, join(dir, ".git")]) chownSync(path, 4321, 4321);

    expect(await kept(dir)).toEqual(["kept"]);
  });

  test("in a working tree whose repository is elsewhere", async () => {
    const dir = await repository(["main.txt"], ["*.log"], ["main.txt"]);
    git(dir, "add", ".gitignore");
    git(dir, "commit", "-q", "-m", "c");
    const other = join(await directory([]), "worktree");
    git(dir, "worktree", "add", "-q", other);
    makeFiles(other, ["a.log", "b.txt"]);

    expect(await archivedPaths(other, { gitignore: true })).toEqual([".git", ".gitignore", "b.txt", "main.txt"]);
  });
});

describe("without a repository to ask", () => {
  test("everything stays where there is none", async () => {
    const dir = await directory(["a.log", ".gitignore", "sub/b"]);

    expect(await archivedPaths(dir, { gitignore: true })).toEqual([".gitignore", "a.log", "sub/", "sub/b"]);
  });

  test("a backup fails when there is no git", async () => {
    const dir = await repository(["a.log"], ["*.log"]);
    vi.stubEnv("PATH", await directory([]));
    onTestFinished(() => void vi.unstubAllEnvs());

    const error: unknown = await archivedPaths(dir, { gitignore: true }).catch((reason) => reason);
    expect(error).toBeInstanceOf(BackupCreateError);
    expect(error).toMatchObject({
      message: expect.stringContaining("needs git, which is not installed"),
      context: { dir },
    });
  });

  test.each([
    { damage: "has lost its HEAD", harm: (dir: string) => rmSync(join(dir, ".git/HEAD")) },
    { damage: "has a damaged index", harm: (dir: string) => writeFileSync(join(dir, ".git/index"), "no index") },
    { damage: "has a damaged configuration", harm: (dir: string) => writeFileSync(join(dir, ".git/config"), "[core") },
    {
      damage: "is a link to nowhere",
      harm: (dir: string) => {
        rmSync(join(dir, ".git"), { recursive: true });
        writeFileSync(join(dir, ".git"), "gitdir: /nowhere/at/all\n");
      },
    },
    {
      damage: "is empty",
      harm: (dir: string) => {
        rmSync(join(dir, ".git"), { recursive: true });
        mkdirSync(join(dir, ".git"));
      },
    },
  ])("a backup fails, and keeps no secrets, when the repository $damage", async ({ harm }) => {
    const dir = await repository(["secret.env", "sub/a"], ["*.env"]);
    harm(dir);

    await expect(archivedPaths(dir, { gitignore: true })).rejects.toBeInstanceOf(BackupCreateError);
    await expect(archivedPaths(join(dir, "sub"), { gitignore: true })).rejects.toBeInstanceOf(BackupCreateError);
  });
});

describe("globs leave out", () => {
  const TREE = [
    "a/b/c.log",
    "a/b/d.txt",
    "a/x/y/b/e.txt",
    "a/.hidden/b/f",
    "dist/main.js",
    "src/dist/other.js",
    "src/main.js",
    "src/new\nline/deep/main.js",
    "src/\n/main.js",
    ".env",
    ".cache/x",
    "src/.env",
    "[a]",
    "... odd/x",
    "src/odd/x",
  ];
  const leavesOut = async (excludes: string[]) => {
    const dir = await directory(TREE);
    const left = new Set(await archivedPaths(dir, { excludes }));
    return listTree(dir).filter((path) => !left.has(path));
  };

  test.each<[string, string[]]>([
    ["*.log", ["a/b/c.log"]],
    ["**/*.log", ["a/b/c.log"]],
    ["a/b/*.log", ["a/b/c.log"]],
    ["b/*.log", []],
    ["main.js", ["dist/main.js", "src/\n/main.js", "src/main.js", "src/new\nline/deep/main.js"]],
    ["src/*.js", ["src/main.js"]],
    ["src/**/*.js", ["src/\n/main.js", "src/dist/other.js", "src/main.js", "src/new\nline/deep/main.js"]],
    ["dist", ["dist/", "dist/main.js", "src/dist/", "src/dist/other.js"]],
    ["dist/", ["dist/", "dist/main.js", "src/dist/", "src/dist/other.js"]],
    ["dist/**", ["dist/", "dist/main.js", "src/dist/", "src/dist/other.js"]],
    ["**/dist", ["dist/", "dist/main.js", "src/dist/", "src/dist/other.js"]],
    ["**/dist/**", ["dist/", "dist/main.js", "src/dist/", "src/dist/other.js"]],
    ["src/dist/**", ["src/dist/", "src/dist/other.js"]],
    ["**/dist/*.js", ["dist/main.js", "src/dist/other.js"]],
    ["a/**/b", ["a/b/", "a/b/c.log", "a/b/d.txt", "a/x/y/b/", "a/x/y/b/e.txt"]],
    ["a/**/*.txt", ["a/b/d.txt", "a/x/y/b/e.txt"]],
    ["?.log", ["a/b/c.log"]],
    ["[a-c].log", ["a/b/c.log"]],
    ["\\[a\\]", ["[a]"]],
    [".env", [".env", "src/.env"]],
    [
      ".*",
      [
        "... odd/",
        "... odd/x",
        ".cache/",
        ".cache/x",
        ".env",
        "a/.hidden/",
        "a/.hidden/b/",
        "a/.hidden/b/f",
        "src/.env",
      ],
    ],
    ["*env", []],
    ["a/*/b", []],
    ["a/.*/b", ["a/.hidden/b/", "a/.hidden/b/f"]],
    ["... odd/x", ["... odd/x"]],
    ["nothing-like-it", []],
  ])("by %j just what it matches", async (glob, expected) => {
    expect(await leavesOut([glob])).toEqual([...expected].sort());
  });

  test("by several what any of them matches", async () => {
    expect(await leavesOut(["*.log", "a/**/e.txt", "src/*.js"])).toEqual(["a/b/c.log", "a/x/y/b/e.txt", "src/main.js"]);
  });

  test("together with what git ignores", async () => {
    const dir = await repository(["a.log", "b.tmp", "c"], ["*.log"]);
    const paths = await archivedPaths(dir, { gitignore: true, excludes: ["*.tmp", ".git*"] });

    expect(paths).toEqual(["c"]);
  });
});

test("exact paths are left out whatever they are called", async () => {
  const dir = await directory(["a/[x]*/file", "a/x1/file", "b"]);

  expect(await archivedPaths(dir, { paths: ["a/[x]*"] })).toEqual(["a/", "a/x1/", "a/x1/file", "b"]);
  expect(readFileSync(join(dir, "a/[x]*/file"), "latin1")).toBe("a/[x]*/file");
});
