import { cpus, loadavg } from "node:os";

/** What the results depend on besides the package. */
export function describeMachine(): string {
  const [first] = cpus();
  return `${cpus().length} × ${first?.model ?? "unknown processor"}, Node ${process.versions.node}`;
}

/** A line on what else the machine is doing, where that is enough to change the results. */
export function describeLoad(): string[] {
  const [load = 0] = loadavg();
  if (load < cpus().length) return [];
  return [`the machine was busy with other things: its load was ${load.toFixed(1)} before the run`];
}
