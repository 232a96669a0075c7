import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../run.ts";

/** A git repository with history, the same every time. */

const WORDS = "archive mount layer bucket worker sandbox restore range part upload cache squash".split(" ");

export async function fillRepository(
  directory: string,
  { files, commits }: { files: number; commits: number },
): Promise<void> {
  // Not in the sandbox, which shows its files at a path that git cannot take for its working directory.
  const cwd = await mkdtemp(join(tmpdir(), "sbb-repo-"));
  try {
    await run("git", ["init", "--quiet", "--initial-branch=main"], { cwd });
    await run("git", ["fast-import", "--quiet"], { cwd, input: history(files, commits) });
    await run("git", ["reset", "--quiet", "--hard"], { cwd });
    await run("cp", ["-a", `${cwd}/.`, directory]);
  } finally {
    await rm(cwd, { recursive: true, force: true });
  }
}

/** For git-fast-import(1): all files in the first commit, and a few of them anew in each that follows. */
async function* history(files: number, commits: number): AsyncGenerator<string> {
  const next = pseudoRandom(20_261_121);
  for (let commit = 0; commit < commits; commit++) {
    const message = `Change ${commit}\n`;
    yield `commit refs/heads/main\ncommitter Bench <bench@example.com> ${1_700_000_000 + commit * 600} +0000\ndata ${message.length}\n${message}`;
    if (commit === 0) {
      yield fileChange("README.md", "# A repository to be backed up\n");
      for (let file = 0; file < files; file++) yield fileChange(pathOf(file), text(next));
    } else {
      for (let change = 0; change < 4; change++) yield fileChange(pathOf(next(files)), text(next));
    }
    yield "\n";
  }
}

function fileChange(path: string, content: string): string {
  return `M 100644 inline ${path}\ndata ${content.length}\n${content}\n`;
}

function pathOf(file: number): string {
  return `packages/p${file % 40}/src/module${file}.ts`;
}

function text(next: (limit: number) => number): string {
  return Array.from({ length: 20 + next(150) }, (_, line) => {
    const word = () => WORDS[next(WORDS.length)];
    return `export const ${word()}${line} = ${word()}(${next(1_000_000)}, "${word()} ${word()}");\n`;
  }).join("");
}

/** xorshift32: enough for test data, and short. */
function pseudoRandom(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % limit;
  };
}
