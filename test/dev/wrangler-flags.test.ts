import { expect, test } from "vitest";
import { readWranglerFlags } from "../../dev/wrangler-flags.js";

test("flags are read in each form that wrangler takes", () => {
  for (const args of [
    ["--config", "a.json", "--env", "staging", "--port", "80"],
    ["--config=a.json", "--env=staging", "--port=80"],
    ["-c", "a.json", "-e", "staging", "--port", "80"],
  ]) {
    expect(readWranglerFlags(args)).toMatchObject({ configs: ["a.json"], env: "staging", port: 80 });
  }
});

test("what is replaced is taken out; everything else stays as it was, in order", () => {
  const args = [
    "src/index.ts",
    "--ip",
    "0.0.0.0",
    "--live-reload",
    "-c",
    "a.json",
    "--cwd=x",
    "--env",
    "e",
    "--var",
    "A:1",
  ];
  expect(readWranglerFlags(args)).toMatchObject({
    script: "src/index.ts",
    ip: "0.0.0.0",
    cwd: "x",
    others: ["src/index.ts", "--live-reload", "--env", "e", "--var", "A:1"],
  });
});

test("lists take values up to the next flag, and add up", () => {
  const args = ["--var", "A:1", "B:http://x:2", "--env-file", ".a", ".b", "--var=C:3", "-c", "1.json", "-c", "2.json"];
  expect(readWranglerFlags(args)).toMatchObject({
    vars: { A: "1", B: "http://x:2", C: "3" },
    envFiles: [".a", ".b"],
    configs: ["1.json", "2.json"],
  });
});

test("switches are on when they stand there, and off when they say so", () => {
  expect(readWranglerFlags(["--remote", "-l"])).toMatchObject({ remote: true, local: true, help: false });
  expect(readWranglerFlags(["--remote=false"])).toMatchObject({ remote: false });
  expect(readWranglerFlags(["--local-protocol", "https"])).toMatchObject({ https: true });
});
