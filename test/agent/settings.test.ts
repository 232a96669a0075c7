import { afterEach, expect, test, vi } from "vitest";
import { numberSetting } from "../../container/settings.js";

afterEach(() => vi.unstubAllEnvs());

test.each(["", " ", "much", "-1", "0.5"])("a number of '%s' is refused by its variable's name", (configured) => {
  vi.stubEnv("SANDBOX_BACKUP_STALL_TIMEOUT", configured);

  expect(() => numberSetting("SANDBOX_BACKUP_STALL_TIMEOUT", "ms", 1)).toThrow(
    `SANDBOX_BACKUP_STALL_TIMEOUT is ${configured} and has to be a number of ms, 1 or above`,
  );
});

test("a number is taken as it is, and none is none", () => {
  vi.stubEnv("SANDBOX_BACKUP_LAZY", "0");

  expect(numberSetting("SANDBOX_BACKUP_LAZY", "MiB", 0)).toBe(0);
  expect(numberSetting("SANDBOX_BACKUP_CACHE", "MiB", 0)).toBeUndefined();
});
