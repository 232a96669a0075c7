import { expect, test } from "vitest";
import { parseCpuList } from "../../../container/backup/cpus.js";

test.each([
  { list: "0", cpus: [0] },
  { list: "0-3", cpus: [0, 1, 2, 3] },
  { list: "1,4-5,10-11", cpus: [1, 4, 5, 10, 11] },
])("the list $list names CPUs", ({ list, cpus }) => {
  expect(parseCpuList(list)).toEqual(cpus);
});
