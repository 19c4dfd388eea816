// Long inputs in pieces, so that one can be told how far they are.

import type { Block } from './block'
import type { Model, PrefillOptions, StepOutput } from './model'

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
 * Puts `tokens`, at least one, behind the block, which is in `model`'s cache. What the last piece gave comes back;
 * those before it choose no token. Throws as `Model.prefill`; where there is no room for all, none is computed.
 */
export async function prefillInPieces(
  model: Model,
  block: Block,
  tokens: Int32Array,
  options: PrefillOptions,
  onProgress?: (progress: PrefillProgress) => void,
): Promise<StepOutput> {
  if (tokens.length > PIECE) {
    block.cache.beginPass([{ view: { blocks: [block] }, tokens: tokens.length }]).abort()
  }
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
  for (let begin = 0; ; begin += PIECE) {
    const end = Math.min(begin + PIECE, tokens.length)
    const isLast = end === tokens.length
    const output = await model.prefill(
      block,
      tokens.subarray(begin, end),
      isLast ? options : silent,
    )
    onProgress?.({ tokens: end, totalTokens: tokens.length })
    if (isLast) return output
  }
}
