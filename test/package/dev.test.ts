import { join } from "node:path";
import { expect, inject, test } from "vitest";
import { freePort, startDevServer } from "../support/dev-server.js";
import { descendants, stillRunning } from "../support/leftovers.js";

const { directory } = inject("installed");

test("when `sandbox-backup dev` has ended, so have wrangler, workerd and all else that it started", async () => {
  for (let run = 1; run <= 3; run++) {
    const server = await startDevServer({
      cli: join(directory, "node_modules/sandbox-backup/dist/cli.js"),
      cwd: directory,
      config: join(directory, "wrangler.jsonc"),
      directory: join(directory, `stopped-${run}`),
      port: await freePort(),
      env: { WRANGLER_SEND_METRICS: "false" },
    });
    const started = await descendants();
    await server.stop();
    expect(started.length).toBeGreaterThan(2);
    expect(await stillRunning(started)).toEqual([]);
  }
});
