import type { DataSetName } from "../data/sets.ts";
import type { ProfileName } from "../profiles.ts";
import { DIR } from "../sandbox.ts";
import type { Measurement, Target } from "./measurement.ts";

/** restoreBackup in a container that has just started, until the first file is read. */

function firstFile(
  data: DataSetName,
  profile: ProfileName,
  targets: readonly Target[] = [],
  baseline = true,
): Measurement {
  return {
    id: "first-file",
    data,
    profile,
    rows: [
      { title: "restore to first file" },
      { title: "restore: bytes fetched", value: "fetched", unit: "bytes" },
      { title: "restore: round trips", value: "requests", unit: "count" },
    ],
    targets,
    async prepare(context) {
      const { handle, object } = await context.backups();
      if (baseline) await context.checkRestores();
      const file = context.data.firstFile;
      const ours = () =>
        context.with(context.empty(), async (sandbox) => {
          let restore = 0;
          const traffic = await context.withTraffic(async () => {
            const [restored, read] = await sandbox.calls([
              { method: "restoreBackup", args: [handle] },
              { method: "readFile", args: [`${DIR}/${file}`] },
            ]);
            restore = restored?.duration ?? 0;
            return restore + (read?.duration ?? 0);
          });
          return { ...traffic, restore };
        });
      const theirs = () =>
        context.with(context.empty(), (sandbox) =>
          context.withTraffic(async () => (await sandbox.tool("restore", { dir: DIR, object, file })).duration),
        );
      return { series: { ...(baseline && { baseline: theirs }), ours } };
    },
  };
}

const faster = (atLeast: number): Target => ({
  requirement: `${atLeast}× faster than the baseline`,
  measured: (median) => median("baseline") / median("ours"),
  unit: "ratio",
  limit: { atLeast },
});

/** However large the archive is. */
function sameAs(data: DataSetName, measured: Target["measured"]): Target {
  return {
    requirement: `between this and ${data}, one ten times the other`,
    measured,
    unit: "ratio",
    limit: { atMost: 1.5 },
  };
}

export const RESTORE: readonly Measurement[] = [
  firstFile("node-app", "r2", [faster(5)]),
  firstFile("media", "r2", [faster(15)]),
  firstFile("small", "r2", [
    {
      requirement: "the whole call",
      measured: (median) => median("ours", "restore"),
      unit: "ms",
      limit: { below: 120 },
    },
  ]),
  firstFile("node-app", "far"),
  firstFile("tree", "r2"),
  firstFile(
    "node-app-x10",
    "r2",
    [sameAs("node-app", (median) => median("ours") / median("ours", "duration", "node-app"))],
    false,
  ),
  firstFile(
    "media-tenth",
    "r2",
    [sameAs("media", (median) => median("ours", "duration", "media") / median("ours"))],
    false,
  ),
];
