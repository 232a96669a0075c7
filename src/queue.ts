/** Runs one piece of work after another, in the order in which they came. One that fails does not hinder the next. */
export class Queue {
  #last: Promise<unknown> = Promise.resolve();

  /**
   * Runs `work` when everything before it has ended.
   * @throws what `work` throws; the signal's reason, when it aborts before the turn of `work`, which then never runs
   */
  run<Result>(work: () => Promise<Result>, signal?: AbortSignal): Promise<Result> {
    const turn = this.#last.then(() => {
      signal?.throwIfAborted();
      return work();
    });
    this.#last = turn.catch(() => {});
    return turn;
  }
}
