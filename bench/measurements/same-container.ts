import type { DataSetName } from "../data/sets.ts";
import { type BenchSandbox, DIR, execStep } from "../sandbox.ts";
import type { DataContext } from "./context.ts";
import type { Measurement, Target } from "./measurement.ts";

/** What goes on in one container: back to a checkpoint, and from one checkpoint to the next. */

function rollback(data: DataSetName, targets: readonly Target[]): Measurement {
  return {
    id: "rollback",
    data,
    profile: "r2",
    rows: [
      { title: "rollback in the same container" },
      { title: "rollback: bytes fetched", value: "fetched", unit: "bytes" },
    ],
    targets,
    async prepare(context) {
      const [mine, theirs] = [await context.filled(), await context.filled()];
      const object = context.newObject();
      const damage = `rm -f ${DIR}/${context.data.firstFile} && echo new > ${DIR}/new`;
      const back = (sandbox: BenchSandbox, restore: () => Promise<number>) => async () => {
        await sandbox.exec(damage);
        return context.withTraffic(restore);
      };
      const { handle } = await context.unhurried(async () => {
        await theirs.tool("create", { dir: DIR, object });
        return mine.createBackup();
      });
      const series = {
        baseline: back(theirs, async () => (await theirs.tool("restore", { dir: DIR, object })).duration),
        ours: back(mine, () => mine.restoreBackup(handle)),
      };
      await context.unhurried(async () => {
        const before = await mine.digest();
        await series.ours();
        context.assertSame("our rollback", before, await mine.digest());
        // The baseline's is its restore, which is checked elsewhere.
        await series.baseline();
        context.assertSame("the baseline's rollback", "", await theirs.exec(`ls ${DIR} | grep -x new || true`));
      });
      return { series };
    },
  };
}

const EDIT = `cd ${DIR} && git ls-files | head -10 | while read file; do echo changed >> "$file"; done`;

/** An agent's turn: restore, edit 10 files, create. Each begins with the backup that the last has made. */
const loop: Measurement = {
  id: "loop",
  data: "repo",
  profile: "r2",
  rows: [{ title: "restore, edit 10 files, create" }, { title: "loop: round trips", value: "requests", unit: "count" }],
  async prepare(context) {
    await context.checkRestores();
    const { handle, object } = await context.backups();
    const [mine, theirs] = [await context.empty(), await context.empty()];
    let latest = handle;
    let from = object;
    const turn = async () => {
      const [restored, edited, created] = await mine.calls([
        { method: "restoreBackup", args: [latest] },
        execStep(EDIT),
        { method: "createBackup", args: [{ dir: DIR }] },
      ]);
      latest = created?.value as typeof handle;
      return (restored?.duration ?? 0) + (edited?.duration ?? 0) + (created?.duration ?? 0);
    };
    const theirTurn = async () => {
      const restored = await theirs.tool("restore", { dir: DIR, object: from });
      const edited = await theirs.timedExec(EDIT);
      from = context.newObject();
      const created = await theirs.tool("create", { dir: DIR, object: from });
      return restored.duration + edited.duration + created.duration;
    };
    await checkTurn("our loop", context, mine, turn);
    await checkTurn("the baseline's loop", context, theirs, theirTurn);
    return { series: { baseline: () => context.withTraffic(theirTurn), ours: () => context.withTraffic(turn) } };
  },
};

/** Two turns add two lines to each of the files. */
async function checkTurn(how: string, context: DataContext, sandbox: BenchSandbox, turn: () => Promise<unknown>) {
  await context.unhurried(async () => {
    await turn();
    await turn();
  });
  const count = `cd ${DIR} && git diff --numstat | sort | head -20 | cut -f 1 | sort | uniq -c | tr -s ' '`;
  context.assertSame(how, " 10 2\n", await sandbox.exec(count));
}

export const SAME_CONTAINER: readonly Measurement[] = [
  rollback("node-app", [
    {
      requirement: "8× faster than the baseline",
      measured: (median) => median("baseline") / median("ours"),
      unit: "ratio",
      limit: { atLeast: 8 },
    },
    { requirement: "the whole call", measured: (median) => median("ours"), unit: "ms", limit: { below: 200 } },
  ]),
  rollback("small", []),
  loop,
];
