import { parseArgs } from "node:util";
import { DATA_SET_NAMES, type DataSetName } from "./data/sets.ts";
import { MEASUREMENTS } from "./measurements/all.ts";
import { PROFILES, type ProfileName } from "./profiles.ts";

export const USAGE = `npm run bench -- [options]

  --profile <names>  only what is measured with these: ${Object.keys(PROFILES).join(", ")}
  --data <names>     only what is measured on these: ${DATA_SET_NAMES.join(", ")}
  --only <names>     only these: ${[...new Set(MEASUREMENTS.map(({ id }) => id))].join(", ")}
  --rounds <number>  how often each is measured; medians are shown (default: 5)
  --quick            each once, on a few files: shows that all of it works, and measures nothing

Names are separated by commas. The results go to bench/results/.`;

export interface Options {
  profiles: readonly ProfileName[];
  data: readonly DataSetName[];
  only: readonly string[];
  rounds: number;
  quick: boolean;
  help: boolean;
}

/** The command line is wrong; the message says how. */
export class UsageError extends Error {}

/** @throws {UsageError} */
export function readOptions(args: readonly string[]): Options {
  const { values } = parse(args);
  const quick = values.quick ?? false;
  const rounds = Number(values.rounds ?? (quick ? 1 : 5));
  if (!Number.isInteger(rounds) || rounds < 1) throw new UsageError(`--rounds ${values.rounds}: no number of rounds`);
  return {
    profiles: choose("profile", values.profile, Object.keys(PROFILES) as ProfileName[]),
    data: choose("data", values.data, DATA_SET_NAMES),
    only: choose("only", values.only, [...new Set(MEASUREMENTS.map(({ id }) => id))]),
    rounds,
    quick,
    help: values.help ?? false,
  };
}

function parse(args: readonly string[]) {
  const text = { type: "string" } as const;
  const flag = { type: "boolean" } as const;
  try {
    return parseArgs({
      args: [...args],
      options: { profile: text, data: text, only: text, rounds: text, quick: flag, help: flag },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function choose<Name extends string>(option: string, value: string | undefined, all: readonly Name[]): readonly Name[] {
  if (value === undefined) return all;
  return value.split(",").map((name) => {
    const known = all.find((candidate) => candidate === name);
    if (known === undefined) throw new UsageError(`--${option} ${name}: there are ${all.join(", ")}`);
    return known;
  });
}
