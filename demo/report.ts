/** What the demo writes for people: steps, facts, and a bar while something takes long. */

/** What takes longer than this gets a bar, or on a pipe a line, in ms. */
const LONG = 1000;

const REDRAW_INTERVAL = 100;
const BAR_WIDTH = 24;

/** Column at which durations begin. */
const DURATION_COLUMN = 88;

const MARKS = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/** How far something is. `expected` is null where that is not known. */
export interface Progress {
  phase: string;
  done: number;
  expected: number | null;
}

/** Something was not as it should be. */
export class CheckFailed extends Error {}

export class Report {
  readonly #isTerminal = process.stdout.isTTY === true;
  readonly #hasColors = this.#isTerminal && process.stdout.hasColors() && process.env.NO_COLOR === undefined;
  #steps = 0;
  #checks = 0;

  /** How many facts were checked. */
  get checks(): number {
    return this.#checks;
  }

  title(text: string): void {
    this.#line(this.#style("1", text));
  }

  step(title: string): void {
    this.#steps += 1;
    this.#line(`\n${this.#style("1;36", `${this.#steps}. ${title}`)}`);
  }

  /** What is done, as a command or a call. */
  doing(text: string): void {
    this.#line(`   ${this.#style("2", `$ ${text}`)}`);
  }

  /** Wrapped to the width of the other lines. */
  note(text: string): void {
    for (const line of text.match(new RegExp(`\\S.{0,${DURATION_COLUMN - 1}}(?=\\s|$)`, "g")) ?? []) {
      this.#line(`     ${this.#style("2", line)}`);
    }
  }

  /** Something that happened, and how long it took in ms. */
  done(text: string, duration?: number): void {
    this.#fact(text, duration);
  }

  /** @throws {CheckFailed} when `holds` is false */
  check(text: string, holds: boolean, otherwise: string): void {
    if (!holds) throw new CheckFailed(`${text}: it is not so. ${otherwise}`);
    this.#checks += 1;
    this.#fact(text);
  }

  failure(text: string): void {
    this.#line(`\n   ${this.#style("1;31", "✗")} ${text.replaceAll("\n", "\n     ")}`);
  }

  end(text: string): void {
    this.#line(`\n${this.#style("1;32", text)}`);
  }

  /** Does `work` and gives its result and how long it took, in ms. */
  async during<Result>(
    label: string,
    work: (onProgress: (progress: Progress) => void) => Promise<Result>,
  ): Promise<{ result: Result; duration: number }> {
    const start = performance.now();
    const elapsed = () => performance.now() - start;
    let progress: Progress | undefined;
    const draw = () => {
      if (elapsed() >= LONG) this.#redraw(barLine(label, elapsed(), progress));
    };
    const timer = this.#isTerminal
      ? setInterval(draw, REDRAW_INTERVAL)
      : setTimeout(() => this.#line(`   … ${label}`), LONG);
    try {
      const result = await work((latest) => {
        progress = latest;
      });
      return { result, duration: elapsed() };
    } finally {
      clearInterval(timer);
      this.#redraw("");
    }
  }

  #fact(text: string, duration?: number): void {
    const time = duration === undefined ? "" : formatDuration(duration).padStart(8);
    const line = time === "" ? text : `${text.padEnd(DURATION_COLUMN - 5)}${this.#style("2", time)}`;
    this.#line(`   ${this.#style("32", "✓")} ${line}`);
  }

  #redraw(line: string): void {
    if (!this.#isTerminal) return;
    const width = process.stdout.columns || 80;
    process.stdout.write(`\r\x1b[2K${line.slice(0, width - 1)}`);
  }

  #line(text: string): void {
    process.stdout.write(`${text}\n`);
  }

  #style(code: string, text: string): string {
    return this.#hasColors ? `\x1b[${code}m${text}\x1b[0m` : text;
  }
}

function barLine(label: string, elapsed: number, progress: Progress | undefined): string {
  const mark = MARKS[Math.floor(elapsed / REDRAW_INTERVAL) % MARKS.length];
  const start = `   ${mark} ${label}`;
  if (progress === undefined) return `${start} … ${formatDuration(elapsed)}`;
  const { phase, done, expected } = progress;
  if (expected === null) return `${start}  ${phase} ${formatBytes(done)}  ${formatDuration(elapsed)}`;
  const filled = expected === 0 ? BAR_WIDTH : Math.round((done / expected) * BAR_WIDTH);
  const bar = "█".repeat(filled) + "░".repeat(Math.max(0, BAR_WIDTH - filled));
  return `${start}  ${bar} ${phase} ${formatBytes(done)} of ${formatBytes(expected)}  ${formatDuration(elapsed)}`;
}

export function formatDuration(milliseconds: number): string {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

export function formatBytes(bytes: number): string {
  if (bytes < 1e3) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export function formatCount(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
