import type { DataSetName } from "../data/sets.ts";
import { type BenchSandbox, DIR, execStep, type SandboxKind } from "../sandbox.ts";
import { type DataContext, dropCaches } from "./context.ts";
import type { Measurement, Series, Target, Values } from "./measurement.ts";

/** Work in a restored directory, cold, beside the same in a plain one. */

const WARM = "the caches could not be dropped (root may), so what is called cold is warm";

type Work = (sandbox: BenchSandbox) => Promise<Values>;

/** Works in a directory whose archive has arrived, and whose pages no cache holds. */
function inRestored(
  context: DataContext,
  kind: SandboxKind,
  restore: (sandbox: BenchSandbox) => Promise<unknown>,
  work: Work,
): Promise<Values> {
  return context.with(context.empty(kind), async (sandbox) => {
    await context.unhurried(() => restore(sandbox));
    await dropCaches();
    return work(sandbox);
  });
}

async function inOurs(context: DataContext, kind: SandboxKind, work: Work): Promise<Values> {
  const { handle } = await context.backups();
  return inRestored(context, kind, (sandbox) => sandbox.restoreBackup(handle), work);
}

async function inBaseline(context: DataContext, work: Work): Promise<Values> {
  const { object } = await context.backups();
  return inRestored(context, {}, (sandbox) => sandbox.tool("restore", { dir: DIR, object }), work);
}

/** What a directory of ours is made of in such a sandbox. */
async function layersOf(context: DataContext, kind: SandboxKind): Promise<string[]> {
  const { handle } = await context.backups();
  return context.unhurried(() =>
    context.with(context.empty(kind), async (sandbox) => {
      await sandbox.restoreBackup(handle);
      return sandbox.layers();
    }),
  );
}

/** Which of the layers can be had here, and a line on each that cannot. */
async function tryLayers(context: DataContext, kinds: readonly NonNullable<SandboxKind["layers"]>[]) {
  const available: NonNullable<SandboxKind["layers"]>[] = [];
  const notes: string[] = [];
  for (const kind of kinds) {
    // That a machine does not have them is a result.
    const layers = await layersOf(context, { layers: kind }).catch((error: unknown) => [String(error)]);
    const got = layers[0]?.startsWith("fuse.") ? "fuse" : layers[0] === "overlay" ? "kernel" : undefined;
    if (got === kind) available.push(kind);
    else notes.push(`${kind} layers cannot be had here: asked for them, the restore gave ${layers.join(" over ")}`);
  }
  return { available, notes };
}

/** What a reader has to know of a measurement of ours with the layers that the package takes by itself. */
async function describeOurs(context: DataContext): Promise<string[]> {
  const layers = await layersOf(context, {});
  return [`our restored directory is ${layers.join(" over ")}`, ...(await describeCaches())];
}

async function describeCaches(): Promise<string[]> {
  return (await dropCaches()) ? [] : [WARM];
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
      await context.checkRestores(undefined, ...available);
      const { handle, object } = await context.backups();
      const series: Record<string, Series> = {
        baseline: () =>
          context.with(context.empty(), async (sandbox) => {
            const restore = await sandbox.tool("restore", { dir: DIR, object });
            await dropCaches();
            const { duration } = await sandbox.timedExec(command);
            return { command: duration, total: restore.duration + duration };
          }),
        ours: () =>
          context.with(context.empty(), async (sandbox) => {
            const steps = await sandbox.calls([{ method: "restoreBackup", args: [handle] }, execStep(command)]);
            return { total: steps.reduce((sum, { duration }) => sum + duration, 0) };
          }),
      };
      for (const layers of available) {
        series[layers] = () =>
          inOurs(context, { layers }, async (sandbox) => ({ command: (await sandbox.timedExec(command)).duration }));
      }
      return { series, notes: [...notes, ...(await describeCaches())] };
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
      const source = await context.source();
      const plain = async () => {
        const copy = "/workspace/copy";
        await source.exec(`rm -rf ${copy} && cp -a ${DIR} ${copy}`);
        await dropCaches();
        return timed(`cd ${copy} && ${command(context)}`)(source);
      };
      const here = `cd ${DIR} && ${command(context)}`;
      return {
        series: {
          plain,
          baseline: () => inBaseline(context, timed(here)),
          ours: () => inOurs(context, {}, timed(here)),
        },
        notes: await describeOurs(context),
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
          inBaseline(context, async (sandbox) => {
            await sandbox.exec(edit);
            return { duration: (await sandbox.tool("create", { dir: DIR, object })).duration };
          }),
        ours: () =>
          inOurs(context, {}, async (sandbox) => {
            await sandbox.exec(edit);
            return { duration: (await sandbox.createBackup()).duration };
          }),
      },
      notes: await describeOurs(context),
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
