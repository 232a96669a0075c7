import { execFile } from "node:child_process";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** In bytes; what is not used takes no room. */
const SIZE = 48 * 1024 ** 3;

export interface Disk {
  directory: string;
  remove(): Promise<void>;
}

/**
 * An empty file system in a file of `parent`: ext4 with a journal, as containers have. Where the machine's own is ext4 without
 * one, making files takes the longer the more were deleted in the last minute: the kernel looks at each of those.
 * @returns undefined where this user cannot mount one
 */
export async function mountDisk(parent: string): Promise<Disk | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const [image, directory] = [join(parent, "disk.ext4"), join(parent, "disk")];
  const removeFiles = async () => {
    await rm(image, { force: true });
    await rm(directory, { recursive: true, force: true });
  };
  try {
    await mkdir(directory);
    await run("mkfs.ext4", ["-q", image, `${SIZE / 1024}k`]);
    await run("mount", ["-o", "loop", image, directory]);
  } catch {
    // No loop devices, or no mkfs.ext4: the machine's own file system will do.
    await removeFiles();
    return undefined;
  }
  return {
    directory,
    async remove() {
      await run("umount", ["--lazy", directory]);
      await removeFiles();
    },
  };
}
