import type { System } from "../e2e/system.js";
import { CleanUp } from "./clean-up.js";
import { startContainerSystem } from "./container-system.js";
import { Engine } from "./engine.js";
import { isContainerRuntime } from "./runtimes.js";

/**
 * Runs systems of containers on one engine: `main.ts <the Worker's configuration> <runtime>…`. Writes to its output what they are
 * reached by, as JSON. When its input ends it stops and removes all that it started: so nothing stays, however the process
 * ends that holds the other end.
 */
async function main([config = "", ...runtimes]: string[]): Promise<void> {
  const cleanUp = new CleanUp();
  const end = async () => {
    process.stdin.destroy();
    await cleanUp.run();
  };
  process.stdin.resume().once("end", () => void end().catch(fail));
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void end().catch(fail));
  try {
    const engine = await Engine.open(cleanUp);
    const systems = await Promise.all(runtimes.map((runtime) => start(engine, config, runtime, cleanUp)));
    const described = systems.map(([runtime, system]) => [
      runtime,
      { ...system, leavesLocalBucket: system.hasProduction && systems.length > 1 },
    ]);
    process.stdout.write(JSON.stringify(Object.fromEntries(described)));
    process.stdout.end();
  } catch (error) {
    fail(error);
    await end();
  }
}

async function start(engine: Engine, config: string, runtime: string, all: CleanUp): Promise<[string, System]> {
  if (!isContainerRuntime(runtime)) throw new Error(`There is no runtime ${runtime}.`);
  const cleanUp = new CleanUp();
  all.add(() => cleanUp.run());
  const fuse = runtime === "containers-fuse";
  return [runtime, await startContainerSystem({ engine, config, fuse }, cleanUp)];
}

function fail(error: unknown): void {
  console.error(error);
  process.exitCode = 1;
}

await main(process.argv.slice(2)).catch(fail);
