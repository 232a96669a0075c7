/** Steps that undo others, in reverse. */
export class CleanUp {
  readonly #steps: (() => unknown)[] = [];
  #running: Promise<void> | undefined;

  /** What comes when all is undone already is undone at once. */
  add(step: () => unknown): void {
    this.#steps.push(step);
    if (this.#running !== undefined) this.#running = this.#running.then(() => this.#undo());
  }

  /**
   * May be called again, and then waits for the same.
   * @throws an AggregateError when steps failed; the others were taken
   */
  run(): Promise<void> {
    this.#running ??= this.#undo();
    return this.#running;
  }

  async #undo(): Promise<void> {
    const errors: unknown[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw new AggregateError(errors, `Not all was undone: ${errors.join("; ")}`);
  }
}
