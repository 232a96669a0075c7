import type { DataSetName } from "../data/sets.ts";
import { peakDuring } from "../memory.ts";
import { DIR } from "../sandbox.ts";
import type { Measurement } from "./measurement.ts";

/** How much memory a backup and a restore take in the container. */

const MB = 1_000_000;

/** All of the sandbox, the agent too. */
const everything = () => true;
/** The baseline's program stands for the agent, which has nothing to do with it. */
const allButAgent = (commandLine: string) => !commandLine.includes("/agent.js");

function memory(data: DataSetName): Measurement {
  return {
    id: "memory",
    data,
    profile: "r2",
    rounds: 1,
    rows: [
      { title: "create: peak memory of agent and tools", value: "create", unit: "bytes" },
      { title: "restore: peak memory of agent and tools", value: "restore", unit: "bytes" },
    ],
    targets: (["create", "restore"] as const).map((operation) => ({
      requirement: `${operation}: peak memory of agent and tools`,
      measured: (median) => median("ours", operation),
      unit: "bytes",
      limit: { below: 200 * MB },
    })),
    async prepare(context) {
      const file = `${DIR}/${context.data.firstFile}`;
      return {
        series: {
          baseline: () =>
            context.with(context.filled(), async (sandbox) => {
              const object = context.newObject();
              const create = () => sandbox.tool("create", { dir: DIR, object });
              const restore = () => sandbox.tool("restore", { dir: DIR, object, file: context.data.firstFile });
              return {
                create: await peakDuring(sandbox, allButAgent, create),
                restore: await peakDuring(sandbox, allButAgent, restore),
              };
            }),
          ours: () =>
            context.with(context.filled(), async (sandbox) => {
              let handle = { id: "", dir: "" };
              const create = await peakDuring(sandbox, everything, async () => {
                ({ handle } = await sandbox.createBackup());
              });
              // In another container, where nothing of it is cached.
              const restore = await context.with(context.empty(), (other) =>
                peakDuring(other, everything, async () => {
                  await other.restoreBackup(handle);
                  await other.exec(`cat ${file}`);
                  await context.system.store.settle();
                }),
              );
              return { create, restore };
            }),
        },
      };
    },
  };
}

export const MEMORY: readonly Measurement[] = (
  ["node-app", "repo", "media", "small", "tree", "duplicates"] as const
).map(memory);
