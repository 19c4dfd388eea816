// Long inputs in pieces, so that one can be told how far they are.

import type { PrefillOptions, StepOutput } from './model'

/** Tokens that are computed before the next news; a step's own chunks are no smaller. */
const PIECE = 512

/** How far a prompt is. */
export interface PrefillProgress {
  /** Tokens of the prompt that are in the cache. */
  tokens: number
  /** Of the prompt. */
  totalTokens: number
}

/**
 * Hands `tokens` to `prefill`, which puts them behind a block, but for the first `done`, fewer than all, which are there. What
 * the last piece gave comes back; those before it choose no token. Throws what `prefill` and `onProgress` throw.
 */
export async function prefillInPieces(
  prefill: (tokens: Int32Array, options: PrefillOptions) => Promise<StepOutput>,
  tokens: Int32Array,
  done: number,
  options: PrefillOptions,
  onProgress?: (progress: PrefillProgress) => void,
): Promise<StepOutput> {
  const silent = {
    ...options,
    drafts: undefined,
    sampler: null,
    logits: 'none',
    logprob: false,
    topLogprobs: 0,
    logitBias: undefined,
    processLogits: undefined,
    grammar: undefined,
    hidden: false,
    attentionMass: false,
  } as const
  for (let begin = done; ; begin += PIECE) {
    const end = Math.min(begin + PIECE, tokens.length)
    const isLast = end === tokens.length
    const output = await prefill(tokens.subarray(begin, end), isLast ? options : silent)
    onProgress?.({ tokens: end, totalTokens: tokens.length })
    if (isLast) return output
  }
}
