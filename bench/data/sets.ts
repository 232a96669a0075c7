import { randomFillSync } from "node:crypto";
import { createWriteStream, mkdirSync, writeFileSync } from "node:fs";
import { appendFile, copyFile, open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fillMiniature, fillNodeApp } from "./node-app.ts";
import { fillRepository } from "./repository.ts";

/** What is backed up. */

export interface DataSet {
  description: string;
  /** Makes it in a directory that exists and is empty. */
  fill(directory: string): Promise<void>;
  /** A small file of it, for the restores that are measured by the first file that is read. */
  firstFile: string;
}

const MiB = 1024 * 1024;

export const DATA_SET_NAMES = [
  "node-app",
  "repo",
  "media",
  "small",
  "tree",
  "duplicates",
  "node-app-x10",
  "media-tenth",
] as const;

export type DataSetName = (typeof DATA_SET_NAMES)[number];

/** @param quick the same kinds of data in a few files each, which show that everything works and nothing more */
export function dataSets(quick: boolean): Record<DataSetName, DataSet> {
  const nodeApp = quick ? fillMiniature : fillNodeApp;
  const size = (bytes: number) => (quick ? bytes / 256 : bytes);
  return {
    "node-app": {
      description: "an installed Vite, React and Next project: 34,500 files, 600 MB",
      fill: nodeApp,
      firstFile: "package.json",
    },
    repo: {
      description: "a git repository of 3,000 commits with its 2,000 files checked out",
      fill: (directory) =>
        fillRepository(directory, quick ? { files: 40, commits: 30 } : { files: 2000, commits: 3000 }),
      firstFile: "README.md",
    },
    media: {
      description: "1 GiB of random bytes in 40 files",
      fill: (directory) => fillRandom(directory, 40, size(1024 * MiB)),
      firstFile: "caption.txt",
    },
    small: {
      description: "20 small files",
      fill: async (directory) => fillTexts(directory, 20),
      firstFile: "d0/f0.txt",
    },
    tree: {
      description: "200,000 small files",
      fill: async (directory) => fillTexts(directory, quick ? 400 : 200_000),
      firstFile: "d0/f0.txt",
    },
    duplicates: {
      description: "2 GB in four random files, two pairs that are equal and differ a little from each other",
      fill: (directory) => fillDuplicates(directory, size(512 * MiB)),
      firstFile: "caption.txt",
    },
    "node-app-x10": {
      description: "node-app and a random file that makes the archive ten times as large",
      fill: async (directory) => {
        await nodeApp(directory);
        await writeRandom(join(directory, "model.bin"), size(1400 * MiB));
      },
      firstFile: "package.json",
    },
    "media-tenth": {
      description: "a tenth of media",
      fill: (directory) => fillRandom(directory, 4, size(102 * MiB)),
      firstFile: "caption.txt",
    },
  };
}

async function fillRandom(directory: string, files: number, bytes: number): Promise<void> {
  await writeFile(join(directory, "caption.txt"), "What nothing compresses.\n");
  for (let file = 0; file < files; file++) {
    await writeRandom(join(directory, `clip${file}.mp4`), Math.floor(bytes / files));
  }
}

/** Files of a few hundred bytes, a hundred in a directory. */
function fillTexts(directory: string, files: number): void {
  for (let file = 0; file < files; file++) {
    const parent = join(directory, `d${Math.floor(file / 100)}`);
    if (file % 100 === 0) mkdirSync(parent);
    // Of 2,003 sizes: mksquashfs compares each file with all of its size, and real trees have few of the same.
    const size = 17 + ((file * 17) % 2003);
    // For so many of them the promises would take most of the time.
    writeFileSync(join(parent, `f${file}.txt`), `This is file ${file}.\n`.repeat(128).slice(0, size));
  }
}

async function fillDuplicates(directory: string, bytes: number): Promise<void> {
  const path = (name: string) => join(directory, name);
  await writeFile(path("caption.txt"), "One build, and the next.\n");
  await writeRandom(path("build1.img"), bytes);
  await copyFile(path("build1.img"), path("build1-copy.img"));
  await copyFile(path("build1.img"), path("build2.img"));
  const file = await open(path("build2.img"), "r+");
  await file.write(Buffer.from("changed"), 0, 7, Math.floor(bytes / 2));
  await file.close();
  await appendFile(path("build2.img"), "longer");
  await copyFile(path("build2.img"), path("build2-copy.img"));
}

async function writeRandom(path: string, bytes: number): Promise<void> {
  const file = createWriteStream(path);
  const chunk = Buffer.alloc(4 * MiB);
  for (let left = bytes; left > 0; left -= chunk.length) {
    randomFillSync(chunk);
    const part = Buffer.from(chunk.subarray(0, Math.min(left, chunk.length)));
    await new Promise<void>((resolve, reject) => file.write(part, (error) => (error ? reject(error) : resolve())));
  }
  await new Promise<void>((resolve) => file.end(resolve));
}
