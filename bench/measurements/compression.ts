import { CpuLimit } from "../cpu-limit.ts";
import { type BenchSandbox, DIR, execStep } from "../sandbox.ts";
import type { DataContext } from "./context.ts";
import type { Measurement, Series } from "./measurement.ts";

/** The package's default compression beside lz4, on all processors and on a quarter of one, as a small container has. */

const FORMATS = { ours: "zstd", lz4: "lz4" } as const;

const QUARTER = 0.25;

/** Runs a sandbox's work with the processors that it may have. */
type Bounds = <Result>(sandbox: BenchSandbox, work: () => Promise<Result>) => Promise<Result>;

const unbounded: Bounds = (_, work) => work();

const bounded: Bounds = async (sandbox, work) => {
  const limit = await CpuLimit.make(QUARTER);
  try {
    return await limit.during(sandbox, work);
  } finally {
    await limit.remove();
  }
};

const ON_QUARTER = { baseline: "lz4, a quarter", ours: "ours, a quarter" };

const compression: Measurement = {
  id: "compression",
  data: "node-app",
  profile: "r2",
  rows: [
    { title: "create: lz4 beside our default", value: "create", baseline: "lz4" },
    { title: "create, restore and read all: lz4 beside our default", baseline: "lz4" },
    { title: "create on a quarter of a CPU: lz4 beside our default", value: "create", ...ON_QUARTER },
    { title: "create, restore and read all on a quarter of a CPU: lz4 beside our default", ...ON_QUARTER },
  ],
  async prepare(context) {
    const source = await context.source();
    const before = await source.digest();
    const ways = Object.entries(FORMATS).map(([name, format]) => ({ name, format }));
    for (const { format } of ways) {
      await context.unhurried(async () => {
        const { handle } = await source.createBackup(format);
        await context.with(context.empty(), async (sandbox) => {
          await sandbox.restoreBackup(handle);
          context.assertSame(`our restore of ${format}`, before, await sandbox.digest());
        });
        await context.forget({ handle });
      });
    }
    const series = (bounds: Bounds, suffix: string): Record<string, Series> =>
      Object.fromEntries(
        ways.map(({ name, format }) => [`${name}${suffix}`, () => thereAndBack(context, format, bounds)]),
      );
    const isLimited = await CpuLimit.isPossible();
    return {
      series: { ...series(unbounded, ""), ...(isLimited && series(bounded, ", a quarter")) },
      notes: isLimited ? [] : ["the processors of a sandbox cannot be limited here (root may)"],
    };
  },
};

async function thereAndBack(context: DataContext, format: "zstd" | "lz4", bounds: Bounds) {
  const source = await context.source();
  const created = await bounds(source, () => source.createBackup(format));
  const restored = await context.with(context.empty(), (sandbox) =>
    bounds(sandbox, () =>
      sandbox.calls([{ method: "restoreBackup", args: [created.handle] }, execStep(`tar -cf - -C ${DIR} . | wc -c`)]),
    ),
  );
  await context.forget({ handle: created.handle });
  const back = restored.reduce((sum, { duration }) => sum + duration, 0);
  return { create: created.duration, duration: created.duration + back };
}

export const COMPRESSION: readonly Measurement[] = [compression];
