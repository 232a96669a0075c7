import type { DataSetName } from "../data/sets.ts";
import type { ProfileName } from "../profiles.ts";
import type { DataContext } from "./context.ts";

/** What one run of a series gave, by name. Of `unit` of the row that shows it. */
export type Values = Record<string, number>;

/** Something that is run once a round. */
export type Series = () => Promise<Values>;

export interface Row {
  title: string;
  /** Which of the values. @default "duration" */
  value?: string;
  /** @default "ms" */
  unit?: Unit;
  /** The series that ours is compared with. @default "baseline" */
  baseline?: string;
  /** @default "ours" */
  ours?: string;
  /** Other series that are shown beside the two. */
  references?: readonly string[];
}

export type Unit = "ms" | "bytes" | "count";

/**
 * The median of a series' value, `duration` where none is named: of this measurement, or of that of the same name and
 * profile on other data.
 */
export type Medians = (series: string, value?: string, data?: DataSetName) => number;

/** What the package is held to. */
export interface Target {
  requirement: string;
  /** What the requirement is about: a ratio, or a time or a size in the row's unit. */
  measured: (median: Medians) => number;
  unit: "ratio" | Unit;
  limit: { atLeast: number } | { atMost: number } | { below: number };
}

export interface Measurement {
  /** For `--only`. */
  id: string;
  profile: ProfileName;
  data: DataSetName;
  /** Once is enough where a value does not vary, or is a maximum. @default what was asked for */
  rounds?: number;
  rows: readonly Row[];
  targets?: readonly Target[];
  /** Makes everything ready, checks that results are right, and gives what is to be timed. */
  prepare: (context: DataContext) => Promise<Prepared>;
}

export interface Prepared {
  /** By name, in the order in which each round runs them. */
  series: Record<string, Series>;
  /** What a reader has to know: what could not be measured, and why. */
  notes?: readonly string[];
}
