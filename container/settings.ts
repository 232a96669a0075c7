import { InvalidBackupConfigError } from "../src/errors.js";

/**
 * A number from the container's environment; undefined where the variable is not set.
 * @param least it has to be this or above
 * @throws {InvalidBackupConfigError} that names the variable, what it is, and what it has to be
 */
export function numberSetting(name: string, unit: "ms" | "MiB", least: number): number | undefined {
  const configured = process.env[name];
  if (configured === undefined) return undefined;
  const value = Number(configured);
  if (configured.trim() !== "" && value >= least) return value;
  throw new InvalidBackupConfigError(`${name} is ${configured} and has to be a number of ${unit}, ${least} or above`);
}
