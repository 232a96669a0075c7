import type { DataSetName } from "../data/sets.ts";
import { type BenchSandbox, DIR, execStep, type SandboxKind } from "../sandbox.ts";
import { type DataContext, dropCaches } from "./context.ts";
import type { Measurement, Series, Target, Values } from "./measurement.ts";

/** Work in a restored directory, cold, beside the same in a plain one. */

const WARM = "the caches could not be dropped (root may), so what is called cold is warm";

/** A restored directory whose archive has arrived, and whose pages no cache holds. */
function restored(
  context: DataContext,
  kind: SandboxKind,
  work: (sandbox: BenchSandbox) => Promise<Values>,
  restore: (sandbox: BenchSandbox) => Promise<unknown>,
): Promise<Values> {
  return context.with(context.empty(kind), async (sandbox) => {
    await context.unhurried(() => restore(sandbox));
    await dropCaches();
    return work(sandbox);
  });
}

async function withOurs(context: DataContext) {
  const { handle, object } = await context.backups();
  return {
    ours: (kind: SandboxKind, work: (sandbox: BenchSandbox) => Promise<Values>) =>
      restored(context, kind, work, (sandbox) => sandbox.restoreBackup(handle)),
    baseline: (work: (sandbox: BenchSandbox) => Promise<Values>) =>
      restored(context, {}, work, (sandbox) => sandbox.tool("restore", { dir: DIR, object })),
    handle,
    object,
  };
}

/** Which of the layers can be had here, and a line on each. */
async function tryLayers(context: DataContext, kinds: readonly NonNullable<SandboxKind["layers"]>[]) {
  const { handle } = await context.backups();
  const available: NonNullable<SandboxKind["layers"]>[] = [];
  const notes: string[] = [];
  for (const kind of kinds) {
    const layers = await context.unhurried(() =>
      context.with(context.empty({ layers: kind }), async (sandbox) => {
        await sandbox.restoreBackup(handle);
        return sandbox.layers();
      }),
    );
    const isFuse = layers[0]?.startsWith("fuse.") ?? false;
    if (isFuse === (kind === "fuse")) available.push(kind);
    else notes.push(`${kind} layers cannot be had here: asked for them, the restore gave ${layers.join(" over ")}`);
  }
  return { available, notes };
}

async function describeLayers(context: DataContext): Promise<string> {
  const { handle } = await context.backups();
  const layers = await context.unhurried(() =>
    context.with(context.empty(), async (sandbox) => {
      await sandbox.restoreBackup(handle);
      return sandbox.layers();
    }),
  );
  return `our restored directory is ${layers.join(" over ")}`;
}

const timed = (command: string) => async (sandbox: BenchSandbox) => ({
  duration: (await sandbox.timedExec(command)).duration,
});

/** A command that only reads: alone in a directory that was restored before, and from the start of the restore. */
function read(
  id: string,
  data: DataSetName,
  { title, command }: { title: string; command: string },
  targets: readonly Target[] = [],
): Measurement {
  return {
    id,
    data,
    profile: "r2",
    rows: [
      { title: `restore to ${title}`, value: "total" },
      { title: `${title}, cold, kernel layers`, value: "command", ours: "kernel" },
      { title: `${title}, cold, FUSE`, value: "command", ours: "fuse" },
    ],
    targets,
    async prepare(context) {
      const { available, notes } = await tryLayers(context, ["kernel", "fuse"]);
      await context.checkRestores(...available);
      const { handle, object } = await context.backups();
      const { ours } = await withOurs(context);
      const series: Record<string, Series> = {
        baseline: () =>
          context.with(context.empty(), async (sandbox) => {
            const { duration } = await sandbox.tool("restore", { dir: DIR, object });
            await dropCaches();
            const command_ = (await sandbox.timedExec(command)).duration;
            return { command: command_, total: duration + command_ };
          }),
        ours: () =>
          context.with(context.empty(), async (sandbox) => {
            const steps = await sandbox.calls([{ method: "restoreBackup", args: [handle] }, execStep(command)]);
            return { total: steps.reduce((sum, { duration }) => sum + duration, 0) };
          }),
      };
      for (const layers of available) {
        series[layers] = () =>
          ours({ layers }, async (sandbox) => ({ command: (await sandbox.timedExec(command)).duration }));
      }
      return { series, notes: [...notes, ...((await dropCaches()) ? [] : [WARM])] };
    },
  };
}

/** Something that is done once in each directory: its own copy of the plain one, ours, and the baseline's. */
function work(
  id: string,
  title: string,
  command: (context: DataContext) => string,
  targets: readonly Target[],
): Measurement {
  return {
    id,
    data: "node-app",
    profile: "lan",
    rows: [{ title, references: ["plain"] }],
    targets,
    async prepare(context) {
      await context.checkRestores();
      const { ours, baseline } = await withOurs(context);
      const source = await context.source();
      const plain = async () => {
        const copy = "/workspace/copy";
        await source.exec(`rm -rf ${copy} && cp -a ${DIR} ${copy}`);
        await dropCaches();
        return timed(`cd ${copy} && ${command(context)}`)(source);
      };
      const here = `cd ${DIR} && ${command(context)}`;
      return {
        series: { plain, baseline: () => baseline(timed(here)), ours: () => ours({}, timed(here)) },
        notes: [await describeLayers(context), ...((await dropCaches()) ? [] : [WARM])],
      };
    },
  };
}

/** Another backup of a restored directory in which a file has changed. */
const createAgain: Measurement = {
  id: "create-restored",
  data: "node-app",
  profile: "lan",
  rows: [{ title: "create of the restored directory, cold", references: ["plain"] }],
  targets: [nearPlain(2)],
  async prepare(context) {
    await context.checkRestores();
    const { ours, baseline } = await withOurs(context);
    const source = await context.source();
    const object = context.newObject();
    const edit = `echo changed >> ${DIR}/package.json`;
    return {
      series: {
        plain: async () => {
          await dropCaches();
          return { duration: (await source.createBackup()).duration };
        },
        baseline: () =>
          baseline(async (sandbox) => {
            await sandbox.exec(edit);
            return { duration: (await sandbox.tool("create", { dir: DIR, object })).duration };
          }),
        ours: () =>
          ours({}, async (sandbox) => {
            await sandbox.exec(edit);
            return { duration: (await sandbox.createBackup()).duration };
          }),
      },
      notes: [await describeLayers(context), ...((await dropCaches()) ? [] : [WARM])],
    };
  },
};

/** With kernel layers, which the note on the layers tells. */
function nearPlain(atMost: number): Target {
  return {
    requirement: "of the plain directory",
    measured: (median) => median("ours") / median("plain"),
    unit: "ratio",
    limit: { atMost },
  };
}

const faster = (series: "kernel" | "fuse", atLeast: number): Target => ({
  requirement: `${atLeast}× faster than the baseline, ${series === "kernel" ? "kernel layers" : "FUSE"}`,
  measured: (median) => median("baseline", "command") / median(series, "command"),
  unit: "ratio",
  limit: { atLeast },
});

export const RESTORED: readonly Measurement[] = [
  read("find", "node-app", { title: "find", command: `find ${DIR} | wc -l` }, [
    faster("kernel", 10),
    faster("fuse", 1.8),
  ]),
  read("git-status", "repo", { title: "git status", command: `git -C ${DIR} status --short` }),
  read("read-all", "node-app", { title: "reading everything", command: `tar -cf - -C ${DIR} . | wc -c` }),
  work("job", "build in the restored directory, cold", ({ job }) => job, [nearPlain(1.3)]),
  createAgain,
  work("delete", "rm -rf node_modules in the restored directory, cold", () => "rm -rf node_modules", [nearPlain(2)]),
];
