import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, inject, test } from "vitest";

const run = promisify(execFile);
const { directory } = inject("installed");

/** Gives what the user's own compiler finds wrong. */
async function compile(project: string): Promise<string> {
  const tsc = join(directory, "node_modules/typescript/bin/tsc");
  return run(process.execPath, [tsc, "--project", project], { cwd: directory }).then(
    ({ stdout }) => stdout,
    ({ stdout }: { stdout: string }) => stdout,
  );
}

describe("a Worker project with `strict`, in which declarations of libraries are checked too", () => {
  test("compiles the documentation's examples, and what the public API promises", async () => {
    expect(await compile("tsconfig.json")).toBe("");
  });

  test("compiles the example on errors when catch clauses are not of type unknown", async () => {
    // It reads `error.code` of a caught error. Under `strict` that is unknown, whatever a library declares: the example
    // as it was published needs `useUnknownInCatchVariables: false`. `isSandboxError(error)` does without.
    expect(await compile("tsconfig.untyped-catch.json")).toBe("");
  });
});
