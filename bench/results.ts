import type { DataSetName } from "./data/sets.ts";
import type { Measurement, Medians, Row, Target, Unit, Values } from "./measurements/measurement.ts";
import type { ProfileName } from "./profiles.ts";
import { median } from "./statistics.ts";

/** What came of one measurement: of each series, what each round gave. */
export interface Measured {
  measurement: Measurement;
  samples: Record<string, Values[]>;
  notes: readonly string[];
}

/** A row of the table. Undefined is what was not measured. */
export interface ResultRow {
  id: string;
  title: string;
  data: DataSetName;
  profile: ProfileName;
  unit: Unit;
  baseline: number | undefined;
  ours: number | undefined;
  references: { name: string; value: number | undefined }[];
}

export interface TargetResult {
  id: string;
  data: DataSetName;
  profile: ProfileName;
  requirement: string;
  limit: Target["limit"];
  unit: Target["unit"];
  value: number | undefined;
  met: boolean | undefined;
}

/** A series or a value that was not measured. */
class NotMeasured extends Error {}

export function resultRows(all: readonly Measured[]): ResultRow[] {
  return all.flatMap((measured) => measured.measurement.rows.map((row) => resultRow(all, measured, row)));
}

function resultRow(all: readonly Measured[], measured: Measured, row: Row): ResultRow {
  const { id, data, profile } = measured.measurement;
  const { title, value = "duration", unit = "ms", baseline = "baseline", ours = "ours", references = [] } = row;
  const find = (series: string) => ifMeasured(() => mediansOf(all, measured)(series, value));
  return {
    ...{ id, title, data, profile, unit },
    baseline: find(baseline),
    ours: find(ours),
    references: references.map((name) => ({ name, value: find(name) })),
  };
}

export function targetResults(all: readonly Measured[]): TargetResult[] {
  return all.flatMap((measured) => {
    const { id, data, profile, targets = [] } = measured.measurement;
    return targets.map(({ requirement, limit, unit, measured: compute }) => {
      const value = ifMeasured(() => compute(mediansOf(all, measured)));
      return {
        id,
        data,
        profile,
        requirement,
        limit,
        unit,
        value,
        met: value === undefined ? undefined : isMet(value, limit),
      };
    });
  });
}

function mediansOf(all: readonly Measured[], { measurement }: Measured): Medians {
  return (series, value = "duration", data = measurement.data) => {
    const found = all.find(
      (other) =>
        other.measurement.id === measurement.id &&
        other.measurement.profile === measurement.profile &&
        other.measurement.data === data,
    );
    const values = (found?.samples[series] ?? []).flatMap((sample) => sample[value] ?? []);
    if (values.length === 0) throw new NotMeasured(`${series}: ${value}`);
    return median(values);
  };
}

function ifMeasured(compute: () => number): number | undefined {
  try {
    return compute();
  } catch (error) {
    if (error instanceof NotMeasured) return undefined;
    throw error;
  }
}

function isMet(value: number, limit: Target["limit"]): boolean {
  if ("atLeast" in limit) return value >= limit.atLeast;
  return "atMost" in limit ? value <= limit.atMost : value < limit.below;
}
