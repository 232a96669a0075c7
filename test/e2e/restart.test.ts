import { expect, test } from "vitest";
import { eventually } from "../support/eventually.js";
import { newFaultySandbox, system, worker } from "./context.js";

test.skipIf(system.faults === undefined)(
  "an upload that was cut off by a restart of the Durable Object is aborted by its next run",
  async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec("head -c 20000000 /dev/urandom > random");
    await faults.set([{ method: "PUT", url: "partNumber=2", instead: "hang" }]);
    const cutOff = sandbox.fail("createBackup", [{ dir: "/workspace" }]);
    await eventually(async () => (await faults.requests()).some(({ url }) => url.includes("partNumber=2")));
    const begun = (await faults.requests()).find(({ uploadId }) => uploadId !== undefined);

    await sandbox.call("restart", []);
    await cutOff;
    await sandbox.call("exists", ["/workspace"]);

    const aborted = await eventually(async () =>
      (await faults.requests()).find(
        ({ method, url, status }) => method === "DELETE" && status === 204 && url.includes("uploadId="),
      ),
    );
    expect(aborted.url).toContain(encodeURIComponent(begun?.uploadId ?? "none"));
    const id = /backups\/([^/]+)\//.exec(aborted.url)?.[1];
    expect(await eventually(async () => (await worker.listKeys(`backups/${id}/`)).length === 0)).toBe(true);
    await faults.set([]);
    await sandbox.createBackup({ dir: "/workspace" });
  },
);
