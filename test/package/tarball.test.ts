import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { access, readFile } from "node:fs/promises";
import { get } from "node:http";
import { isBuiltin } from "node:module";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, inject, test, vi } from "vitest";

const run = promisify(execFile);
const { directory, packed, tarballSize } = inject("installed");
const dist = join(directory, "node_modules/sandbox-backup/dist");

describe("the tarball", () => {
  test("holds the built files, README, licence and Dockerfile, and nothing else", () => {
    expect(packed).toEqual([
      "Dockerfile",
      "LICENSE",
      "README.md",
      "dist/agent.js",
      "dist/cli.js",
      "dist/index.d.ts",
      "dist/index.js",
      "package.json",
    ]);
  });

  test("takes less than 200 kB", () => {
    expect(tarballSize).toBeLessThan(200_000);
  });

  test("installs a command that says how it is used", async () => {
    const { stdout } = await run("npx", ["sandbox-backup", "--help"], { cwd: directory });
    expect(stdout).toContain("sandbox-backup dev [flags of wrangler dev]");
  });

  test("names the path of the agent, for Dockerfiles and build tools", async () => {
    const program = "console.log(import.meta.resolve('sandbox-backup/agent'))";
    const { stdout } = await run("node", ["--input-type=module", "--eval", program], { cwd: directory });
    expect(stdout.trim()).toBe(`file://${dist}/agent.js`);
  });

  test("has no `any` in its types", async () => {
    const types = await readFile(join(dist, "index.d.ts"), "utf8");
    const code = types.replace(/\/\*[\s\S]*?\*\/|\/\/.*|"[^"\n]*"/g, "");
    expect(code.match(/.*\bany\b.*/g)).toBeNull();
  });
});

describe("the agent", () => {
  const node20 = findNode(20);

  test("imports nothing but what Node has", async () => {
    const agent = await readFile(join(dist, "agent.js"), "utf8");
    const imported = [...agent.matchAll(/^(?:import|export) .*?from "([^"]+)";$/gm)].map(([, name]) => name ?? "");
    expect(imported.length).toBeGreaterThan(0);
    expect(imported.filter((name) => !isBuiltin(name))).toEqual([]);
  });

  test.skipIf(node20 === undefined)("runs as one file on Node 20", async () => {
    const socket = join(directory, "agent.sock");
    const agent = spawn(node20 ?? "", [join(dist, "agent.js"), "--listen", socket], { cwd: "/", env: {} });
    try {
      await vi.waitFor(() => access(socket), { timeout: 10_000 });
      const [response] = await once(get({ socketPath: socket, path: "/v1/health" }), "response");
      expect(response.statusCode).toBe(200);
    } finally {
      agent.kill();
    }
  });
});

/** A Node of this major version, which npm scripts put behind their own on the PATH. */
function findNode(major: number): string | undefined {
  return (process.env.PATH ?? "")
    .split(delimiter)
    .map((folder) => join(folder, "node"))
    .find((path) => existsSync(path) && execFileSync(path, ["--version"]).toString().startsWith(`v${major}.`));
}
