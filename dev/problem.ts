/** Something that the user of the command line has to put right. Its message says what and how; no stack is shown for it. */
export class Problem extends Error {
  override readonly name = "Problem";
}
