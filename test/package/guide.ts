import { readdirSync, readFileSync } from "node:fs";

/**
 * The TypeScript examples of the documentation of Sandbox SDK 0.12, as they stand there, but for the name of the package:
 * `guide/*.txt`. Each becomes a module whose default export runs it.
 */

/** What the examples use and do not declare. */
const SURROUNDINGS = ["env", "sandbox", "backup", "userId", "previousBackup", "endUserRepo"];

export interface GuideExample {
  name: string;
  /** As TypeScript. */
  module: string;
}

export function guideExamples(): GuideExample[] {
  const directory = new URL("guide/", import.meta.url);
  return readdirSync(directory).map((file) => ({
    name: file.replace(/\.txt$/, ""),
    module: toModule(readFileSync(new URL(file, directory), "utf8")),
  }));
}

/** Puts the example's statements into a function, and around them what the documentation leaves out. */
function toModule(example: string): string {
  const isImport = (line: string) => line.startsWith("import ");
  const lines = example.split("\n");
  const imports = lines.filter(isImport);
  const body = lines.filter((line) => !isImport(line)).join("\n");
  const missing = SURROUNDINGS.filter((name) => !new RegExp(`^const ${name} =`, "m").test(body));
  return [
    ...(imports.length > 0 ? imports : ['import { getSandbox } from "sandbox-backup";']),
    'import type { Surroundings } from "./surroundings.js";',
    `export default async function ({ ${missing.join(", ")} }: Surroundings): Promise<void> {`,
    body,
    "}",
    "",
  ].join("\n");
}
