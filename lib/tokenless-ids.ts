// Ids that a model could choose and that are no text.

import type { Model } from './model'
import type { Tokenizer } from './tokenizer/tokenizer'

/**
 * Ids of the model's vocabulary without a token in its tokenizer, e.g. of rows that only fill its matrices up, but for
 * those that end a text: `stopTokens` or, where it is undefined, those of the model. None without a tokenizer.
 */
export function tokenlessIds(
  { config }: Model,
  tokenizer: Tokenizer | undefined,
  stopTokens: ArrayLike<number> | undefined,
): number[] {
  if (tokenizer === undefined) return []
  const ends = new Set(Array.from(stopTokens ?? config.eosTokenIds))
  return tokenizer.missingIds(config.vocabSize).filter((id) => !ends.has(id))
}
