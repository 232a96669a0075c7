import type { DataSetName } from "../data/sets.ts";
import type { ProfileName } from "../profiles.ts";
import { DIR, type Handle } from "../sandbox.ts";
import type { Measurement, Row, Target } from "./measurement.ts";

/** createBackup of a plain directory, beside the baseline and its two halves alone. */

const ARCHIVE = "/var/backups/bench/alone.sqsh";

function create(data: DataSetName, profile: ProfileName, targets: readonly Target[] = []): Measurement {
  const rows: Row[] = [
    { title: "create", references: ["compress alone", "send alone"] },
    { title: "create: bytes sent", value: "sent", unit: "bytes" },
    { title: "create: round trips", value: "requests", unit: "count" },
  ];
  return {
    id: "create",
    data,
    profile,
    rows,
    targets,
    async prepare(context) {
      await context.checkRestores();
      const source = await context.source();
      await source.tool("compress", { dir: DIR, archive: ARCHIVE });
      const object = context.newObject();
      let latest: Handle | undefined;
      return {
        series: {
          baseline: async () => {
            await context.forget({ object });
            return context.withTraffic(async () => (await source.tool("create", { dir: DIR, object })).duration);
          },
          ours: async () => {
            if (latest !== undefined) await context.forget({ handle: latest });
            return context.withTraffic(async () => {
              const { handle, duration } = await source.createBackup();
              latest = handle;
              return duration;
            });
          },
          "compress alone": async () => ({
            duration: (await source.tool("compress", { dir: DIR, archive: ARCHIVE })).duration,
          }),
          "send alone": async () => {
            await context.forget({ object });
            const sent = await source.tool("send", { archive: ARCHIVE, object: `${object}/data.sqsh` });
            return { duration: sent.duration };
          },
        },
      };
    },
  };
}

const faster = (atLeast: number): Target => ({
  requirement: `${atLeast}× faster than the baseline`,
  measured: (median) => median("baseline") / median("ours"),
  unit: "ratio",
  limit: { atLeast },
});

export const CREATE: readonly Measurement[] = [
  create("node-app", "r2", [
    faster(1.4),
    {
      requirement: "of the longer of 'compress alone' and 'send alone'",
      measured: (median) => median("ours") / Math.max(median("compress alone"), median("send alone")),
      unit: "ratio",
      limit: { atMost: 1.2 },
    },
  ]),
  create("node-app", "far", [faster(1.6)]),
  create("node-app", "lan"),
  create("media", "r2", [
    {
      requirement: "of 'send alone'",
      measured: (median) => median("ours") / median("send alone"),
      unit: "ratio",
      limit: { atMost: 1.15 },
    },
  ]),
  create("small", "r2", [
    {
      requirement: "more than 'compress alone'",
      measured: (median) => median("ours") - median("compress alone"),
      unit: "ms",
      limit: { below: 150 },
    },
    { requirement: "the whole call", measured: (median) => median("ours"), unit: "ms", limit: { below: 120 } },
  ]),
  create("repo", "r2"),
  create("tree", "r2"),
];
