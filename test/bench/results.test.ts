import { expect, test } from "vitest";
import type { Measurement } from "../../bench/measurements/measurement.js";
import { chart } from "../../bench/report/chart.js";
import { resultTables } from "../../bench/report/table.js";
import { type Measured, resultRows, targetResults } from "../../bench/results.js";
import { median } from "../../bench/statistics.js";

const measurement: Measurement = {
  id: "create",
  data: "media",
  profile: "r2",
  rows: [{ title: "create", references: ["send alone", "compress alone"] }],
  targets: [
    { requirement: "faster", measured: (of) => of("baseline") / of("ours"), unit: "ratio", limit: { atLeast: 2 } },
    { requirement: "quick", measured: (of) => of("ours"), unit: "ms", limit: { below: 400 } },
    { requirement: "as small", measured: (of) => of("ours", "duration", "small"), unit: "ms", limit: { atMost: 1 } },
  ],
  prepare: () => Promise.reject(new Error("not prepared here")),
};

const measured: Measured = {
  measurement,
  samples: {
    baseline: [{ duration: 900 }, { duration: 5000 }, { duration: 1000 }],
    ours: [{ duration: 400 }, { duration: 400 }, { duration: 1 }],
    "send alone": [{ duration: 380 }],
  },
  notes: [],
};

test("the median of an odd and of an even number", () => {
  expect(median([5, 1, 3])).toBe(3);
  expect(median([4, 1, 3, 2])).toBe(2.5);
  expect(() => median([])).toThrow("no median");
});

test("a row shows medians, and what was not measured as such", () => {
  expect(resultRows([measured])).toMatchObject([
    {
      baseline: 1000,
      ours: 400,
      references: [
        { name: "send alone", value: 380 },
        { name: "compress alone", value: undefined },
      ],
    },
  ]);
});

test("a target is met, missed, or not measured", () => {
  expect(targetResults([measured]).map(({ value, met }) => ({ value, met }))).toEqual([
    { value: 2.5, met: true },
    { value: 400, met: false },
    { value: undefined, met: undefined },
  ]);
});

test("a target may look at the same measurement on other data", () => {
  const small = { ...measured, measurement: { ...measurement, data: "small" as const } };
  expect(targetResults([measured, small])[2]).toMatchObject({ value: 400, met: false });
});

test("the tables and the chart show all of it", () => {
  const rows = resultRows([measured]);
  const tables = resultTables(rows, targetResults([measured]), ["a note"]);
  expect(tables).toContain("create    media  r2       1.00 s    400 ms  2.50×  send alone 380 ms, compress alone –");
  expect(tables).toMatch(/faster +≥ 2\.00× +2\.50× +yes/);
  expect(tables).toMatch(/quick +< 400 ms +400 ms +NO/);
  expect(tables).toContain("- a note");
  const svg = chart(rows, "a <machine>");
  expect(svg).toContain("a &lt;machine>");
  expect(svg.match(/rx="2"/g)).toHaveLength(2);
});
