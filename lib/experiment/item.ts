// What an experiment asks about, what workers make of it, and what a grader says.

/** One problem: fields from a data set. */
export type Item = Readonly<Record<string, unknown>>

/** A text that comes into the common block of a run. */
export interface LateMessage {
  /** Behind so many steps, at least 1. */
  step: number
  text: string
}

/** What there is of a cell after so many steps. */
export interface Outcome {
  /** Of the team; undefined where there is none. */
  answer: string | undefined
  /** Whether the finisher extracted the answer, since nobody had given one. */
  early: boolean
  /** What each worker has written, by name, in worker order: sampled text, and what it was given beside. */
  texts: Readonly<Record<string, string>>
  /** Sequential steps so far. */
  steps: number
  /** Sampled tokens of all workers so far. */
  tokens: number
}

/** Right or wrong, or a score in [0, 1]; with further numbers of one's own, whose means the summary has. */
export type Grade =
  | boolean
  | number
  | { score: boolean | number; metrics?: Readonly<Record<string, number>> | undefined }

/** Judges an outcome. `expected`: what the item's field for it has, undefined where it has none. */
export type Grader = (outcome: Outcome, item: Item, expected: unknown) => Grade | Promise<Grade>
