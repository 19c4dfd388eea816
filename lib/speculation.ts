// Drafts: guesses of the tokens that come next, all of which a step checks at once (speculative decoding). What is written
// does not depend on them (StepWorker.drafts): right ones save steps, wrong ones cost a little of theirs.

import type { Block } from './block'
import type { StepOutput } from './model'
import {
  checkInteger,
  checkOneOf,
  checkOptions,
  checkSynchronous,
  checkTokens,
  optionKeys,
} from './validate'

/** What a worker's drafts are made from. */
export interface DraftContext {
  /** Its name; undefined in `generate`. */
  worker: string | undefined
  /** The ids of its view, block after block, up to the token behind which drafts come; -1 where a token has none. */
  tokens: Int32Array
  /** Drafts beyond so many are not used. */
  count: number
}

/** Guesses what comes next. Called once for each step at most. */
export type DraftTokens = (context: DraftContext) => ArrayLike<number>

/** Who guesses, and how many tokens. */
export interface SpeculateOptions {
  /**
   * - `lookup`: what followed the last time that the view's last tokens (three, else two, else one) stood in it: prompt
   *   lookup decoding (Saxena, 2023), LLMA (arXiv 2304.04487). For text that repeats what is there: code, quotes, summaries.
   * - `jacobi`: what the step before would have chosen behind its drafts, were they right: Jacobi iteration
   *   (arXiv 2305.10427), the lookahead of FastCoT (arXiv 2311.08263). It begins with the last token, repeated.
   * - a function that guesses: returns token ids, none where it does not know.
   */
  by: 'lookup' | 'jacobi' | DraftTokens
  /** Most drafts of a worker in a step, 1 to 64; default 8. Each costs what a token of one worker more costs in a step. */
  tokens?: number | undefined
}

/** What drafts have come to. */
export interface SpeculationUsage {
  /** Forward passes that chose tokens. */
  passes: number
  /** Tokens that were guessed. */
  drafted: number
  /** Those of them that were right. */
  accepted: number
}

const KEYS = optionKeys<SpeculateOptions>()({ by: true, tokens: true })

/** SpeculateOptions that were checked. */
export type Speculation = Required<SpeculateOptions> & { tokens: number }

/** `name` is what messages call the options. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkSpeculation(
  value: SpeculateOptions | undefined,
  name: string,
): Speculation | undefined {
  if (value === undefined) return undefined
  const { by, tokens } = checkOptions(value, name, KEYS)
  return {
    by: typeof by === 'function' ? by : checkOneOf(by, `${name}.by`, ['lookup', 'jacobi']),
    tokens: checkInteger(tokens ?? 8, `${name}.tokens`, 1, 64),
  }
}

/** Makes the drafts of one worker. */
export class Drafter {
  readonly #by: Speculation['by']
  readonly #worker: string | undefined
  readonly #vocabSize: number
  /** Of Jacobi iteration: those of the last step. */
  #guesses: readonly number[] = []

  constructor({ by }: Speculation, worker: string | undefined, vocabSize: number) {
    this.#by = by
    this.#worker = worker
    this.#vocabSize = vocabSize
  }

  /** At most `count` drafts behind `tokens`, at least one, the ids of the view. Throws what the user's function throws. */
  draft(tokens: Int32Array, count: number): Int32Array {
    const drafts = this.#guess(tokens, count).slice(0, count)
    const end = drafts.findIndex((id) => id < 0 || id >= this.#vocabSize)
    return end < 0 ? drafts : drafts.subarray(0, end)
  }

  /** A step has checked them. */
  learn({ drafted }: StepOutput): void {
    this.#guesses = drafted?.guesses ?? []
  }

  #guess(tokens: Int32Array, count: number): Int32Array {
    if (this.#by === 'lookup') return lookup(tokens, count)
    if (this.#by === 'jacobi') {
      const guesses = new Int32Array(count).fill(tokens.at(-1) as number)
      guesses.set(this.#guesses.slice(0, count))
      return guesses
    }
    const drafts = this.#by({ worker: this.#worker, tokens, count })
    checkSynchronous(drafts, 'speculate.by')
    return checkTokens(drafts, 'the result of speculate.by', this.#vocabSize)
  }
}

const LONGEST_NGRAM = 3

/** What followed where the longest ending of `tokens` stood the last time; text that repeats itself goes on doing so. */
export function lookup(tokens: Int32Array, count: number): Int32Array {
  for (let n = Math.min(LONGEST_NGRAM, tokens.length - 1); n > 0; n--) {
    const ending = tokens.length - n
    for (let at = ending - 1; at >= 0; at--) {
      let same = 0
      while (same < n && tokens[at + same] === tokens[ending + same]) same++
      if (same < n) continue
      const found = new Int32Array(count)
      for (let i = 0, from = at + n; i < count; i++, from++) {
        found[i] = (from < tokens.length ? tokens[from] : found[from - tokens.length]) as number
      }
      return found
    }
  }
  return new Int32Array(0)
}

/** The ids of a view with tokens that are to come behind it. */
export function tokensOf(blocks: readonly Block[], pending: readonly number[]): Int32Array {
  const parts = [...blocks.map((block) => block.tokens()), pending]
  const ids = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0))
  let end = 0
  for (const part of parts) {
    ids.set(part, end)
    end += part.length
  }
  return ids
}

/** Adds what a step has made of a worker's drafts. */
export function countDrafts(usage: SpeculationUsage, { drafted }: StepOutput): void {
  if (drafted === undefined) return
  usage.drafted += drafted.kept + drafted.guesses.length
  usage.accepted += drafted.kept
}

/** What a step has chosen, as the outputs of the steps that its drafts stood for. */
export function stagesOf(output: StepOutput): StepOutput[] {
  return output.drafted?.chosen.map((chosen) => ({ ...output, ...chosen })) ?? [output]
}
