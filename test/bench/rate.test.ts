import { expect, test } from "vitest";
import { Rate } from "../../bench/store/rate.js";

test("bytes pass at the rate, however they are divided", () => {
  let now = 0;
  const rate = new Rate(1_000_000, () => now);
  let waited = 0;
  for (let chunk = 0; chunk < 100; chunk++) {
    const wait = rate.reserve(10_000);
    waited += wait;
    now += wait;
  }
  // One second's worth, less what may pass at once.
  expect(waited).toBeGreaterThan(980);
  expect(waited).toBeLessThanOrEqual(1000);
});

test("a late timer is made up for", () => {
  let now = 0;
  const rate = new Rate(1_000_000, () => now);
  for (let chunk = 0; chunk < 100; chunk++) now += rate.reserve(10_000) + 2;
  expect(now).toBeLessThan(1020);
});

test("a pause saves up no more than a moment's worth", () => {
  let now = 0;
  const rate = new Rate(1_000_000, () => now);
  rate.reserve(10_000);
  now = 60_000;
  expect(rate.reserve(1_000_000)).toBeCloseTo(990);
});

test("those that share a rate wait for each other", () => {
  const rate = new Rate(1_000_000, () => 0);
  expect(rate.reserve(100_000)).toBeCloseTo(90);
  expect(rate.reserve(100_000)).toBeCloseTo(190);
});
