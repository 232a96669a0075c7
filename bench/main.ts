import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { MINIATURE_JOB, NODE_APP_JOB } from "./data/node-app.ts";
import { type DataSetName, dataSets } from "./data/sets.ts";
import { describeLoad, describeMachine } from "./machine.ts";
import { MEASUREMENTS } from "./measurements/all.ts";
import { DataContext } from "./measurements/context.ts";
import type { Measurement, Values } from "./measurements/measurement.ts";
import { type Options, readOptions, USAGE, UsageError } from "./options.ts";
import { chart } from "./report/chart.ts";
import { formatValue } from "./report/format.ts";
import { resultTables } from "./report/table.ts";
import { type Measured, resultRows, targetResults } from "./results.ts";
import { System } from "./system.ts";

/**
 * The benchmark: the package beside the straightforward way to do the same, in turns, on one machine and one store. Before
 * anything is timed, what it gives is checked.
 */

const RESULTS = new URL("./results", import.meta.url).pathname;

const start = performance.now();
const say = (line: string) => console.log(`${clock(performance.now() - start)}  ${line}`);

/** The user has had enough. */
class Interrupted extends Error {}

async function bench(options: Options): Promise<number> {
  const wanted = MEASUREMENTS.filter(
    ({ id, profile, data }) =>
      options.only.includes(id) && options.profiles.includes(profile) && options.data.includes(data),
  );
  // The same on other data, or farther away, would show nothing more.
  const chosen = options.quick
    ? wanted.filter(({ id }, index) => wanted.findIndex((one) => one.id === id) === index)
    : wanted;
  if (chosen.length === 0) throw new UsageError("Nothing is measured with all of these options together.");
  say(`${chosen.length} measurements on ${describeMachine()}`);
  const interrupt = new AbortController();
  const interrupted = new Promise<never>((_, reject) => {
    interrupt.signal.addEventListener("abort", () => reject(interrupt.signal.reason));
  });
  // Before it is waited for, too.
  interrupted.catch(() => {});
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => interrupt.abort(new Interrupted(signal)));
  }
  const notes = describeLoad();
  const all: Measured[] = [];
  const system = await System.start(interrupt.signal);
  try {
    if (system.disk === undefined) notes.push("sandboxes are on the machine's own file system");
    const failures = await Promise.race([measureAll(system, chosen, options, interrupt.signal, all), interrupted]);
    await report(all, notes, options);
    return failures === 0 ? 0 : 1;
  } catch (error) {
    // What was measured is worth having.
    if (error instanceof Interrupted && all.length > 0) {
      await report(all, [...notes, `interrupted: ${all.length} of ${chosen.length} measurements`], options);
    }
    throw error;
  } finally {
    await system.stop();
  }
}

/** Adds to `all` what was measured, one after another. */
async function measureAll(
  system: System,
  chosen: readonly Measurement[],
  options: Options,
  signal: AbortSignal,
  all: Measured[],
): Promise<number> {
  let failures = 0;
  const sets = dataSets(options.quick);
  for (const name of new Set<DataSetName>(chosen.map(({ data }) => data))) {
    say(`${name}: ${options.quick ? "a miniature of " : ""}${sets[name].description}`);
    const job = options.quick ? MINIATURE_JOB : NODE_APP_JOB;
    const context = new DataContext({ system, name, data: sets[name], job, say: (line) => say(`  ${line}`) });
    for (const measurement of chosen.filter(({ data }) => data === name)) {
      try {
        all.push(await measure(context, measurement, options.rounds));
      } catch (error) {
        signal.throwIfAborted();
        // The others are worth their time all the same.
        failures += 1;
        say(`  FAILED: ${titleOf(measurement)}: ${error instanceof Error ? error.message : error}`);
      }
    }
    await context.close();
  }
  return failures;
}

async function measure(context: DataContext, measurement: Measurement, rounds: number): Promise<Measured> {
  say(`  ${titleOf(measurement)}`);
  await context.useProfile(measurement.profile);
  const prepared = await measurement.prepare(context);
  const samples: Record<string, Values[]> = {};
  for (let round = 0; round < (measurement.rounds ?? rounds); round++) {
    for (const [name, series] of Object.entries(prepared.series)) {
      const values = await series();
      samples[name] = [...(samples[name] ?? []), values];
    }
  }
  const notes = (prepared.notes ?? []).map((note) => `${titleOf(measurement)}: ${note}`);
  const measured = { measurement, samples, notes };
  for (const { title, unit, baseline, ours } of resultRows([measured])) {
    say(`    ${title}: baseline ${formatValue(baseline, unit)}, ours ${formatValue(ours, unit)}`);
  }
  return measured;
}

/** Prints the tables, and leaves everything in files. */
async function report(all: readonly Measured[], facts: readonly string[], { quick, rounds }: Options): Promise<void> {
  const rows = resultRows(all);
  const targets = targetResults(all);
  const notes = [
    ...(quick ? ["a quick run, on miniatures of the data: these times mean nothing"] : []),
    ...facts,
    ...new Set(all.flatMap((measured) => measured.notes)),
  ];
  const tables = resultTables(rows, targets, notes);
  const subtitle = `${describeMachine()}; medians of ${rounds}; each pair to a scale of its own`;
  const raw = all.map(({ measurement: { id, data, profile }, samples }) => ({ id, data, profile, samples }));
  const run = { machine: describeMachine(), at: new Date().toISOString(), quick, rounds };
  await mkdir(RESULTS, { recursive: true });
  await writeFile(join(RESULTS, "results.txt"), `${tables}\n`);
  await writeFile(
    join(RESULTS, "results.json"),
    `${JSON.stringify({ ...run, rows, targets, notes, samples: raw }, undefined, 2)}\n`,
  );
  await writeFile(join(RESULTS, "chart.svg"), chart(rows, subtitle));
  console.log(`\n${tables}\n`);
  say(`The same, with every sample and a chart, is in ${RESULTS}`);
}

function titleOf({ id, data, profile }: Measurement): string {
  return `${id}, ${data}, ${profile}`;
}

function clock(milliseconds: number): string {
  const seconds = Math.floor(milliseconds / 1000);
  return `${String(Math.floor(seconds / 60)).padStart(2, "0")}:${String(seconds % 60).padStart(2, "0")}`;
}

try {
  const options = readOptions(process.argv.slice(2));
  if (options.help) console.log(USAGE);
  else process.exitCode = await bench(options);
} catch (error) {
  if (error instanceof Interrupted) {
    console.error(`Interrupted by ${error.message}.`);
    process.exitCode = 1;
  } else if (error instanceof UsageError) {
    console.error(`${error.message}\n\n${USAGE}`);
    process.exitCode = 2;
  } else {
    throw error;
  }
}
