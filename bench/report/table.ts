import type { ResultRow, TargetResult } from "../results.ts";
import { formatGain, formatLimit, formatValue } from "./format.ts";

/** The results as text: a table of medians, and one of targets. */
export function resultTables(
  rows: readonly ResultRow[],
  targets: readonly TargetResult[],
  notes: readonly string[],
): string {
  const results = table(
    ["measured", "data", "profile", "baseline", "ours", "ratio", "beside them"],
    rows.map(({ title, data, profile, unit, baseline, ours, references }) => [
      title,
      data,
      profile,
      formatValue(baseline, unit),
      formatValue(ours, unit),
      formatGain(baseline, ours),
      references.map(({ name, value }) => `${name} ${formatValue(value, unit)}`).join(", "),
    ]),
  );
  const held = table(
    ["target", "data", "profile", "requirement", "limit", "measured", "met"],
    targets.map(({ met, value, unit, ...target }) => [
      target.id,
      target.data,
      target.profile,
      target.requirement,
      formatLimit({ ...target, unit }),
      formatValue(value, unit),
      met === undefined ? "not measured" : met ? "yes" : "NO",
    ]),
  );
  return [results, held, notes.map((note) => `- ${note}`).join("\n")].filter(Boolean).join("\n\n");
}

function table(head: readonly string[], body: readonly (readonly string[])[]): string {
  if (body.length === 0) return "";
  const widths = head.map((title, column) => Math.max(...[head, ...body].map((row) => (row[column] ?? title).length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd();
  return [line(head), widths.map((width) => "─".repeat(width)).join("  "), ...body.map(line)].join("\n");
}
