import type { Unit } from "../measurements/measurement.ts";
import type { TargetResult } from "../results.ts";

export function formatValue(value: number | undefined, unit: Unit | "ratio"): string {
  if (value === undefined) return "–";
  switch (unit) {
    case "ratio":
      return `${value.toFixed(value < 100 ? 2 : 0)}×`;
    case "count":
      return String(Math.round(value));
    case "bytes":
      return value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
    case "ms":
      return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`;
  }
}

/** How many times as fast, or as little, ours is. */
export function formatGain(baseline: number | undefined, ours: number | undefined): string {
  const isKnown = baseline !== undefined && ours !== undefined && ours !== 0;
  return formatValue(isKnown ? baseline / ours : undefined, "ratio");
}

/** `≥ 1.40×`. */
export function formatLimit({ limit, unit }: Pick<TargetResult, "limit" | "unit">): string {
  if ("atLeast" in limit) return `≥ ${formatValue(limit.atLeast, unit)}`;
  return "atMost" in limit ? `≤ ${formatValue(limit.atMost, unit)}` : `< ${formatValue(limit.below, unit)}`;
}
