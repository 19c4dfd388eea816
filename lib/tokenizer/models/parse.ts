// The field `model` of tokenizer.json.

import { checkObject, checkOneOf } from '../../validate'
import { parseBpe } from './bpe'
import type { TokenModel } from './model'
import { parseUnigram } from './unigram'
import { parseWordLevel } from './word-level'
import { parseWordPiece } from './word-piece'

const CODE = 'HOGWILD_INVALID_MODEL'

/** How a tokenizer cuts words into tokens. */
export type TokenizerKind = 'BPE' | 'Unigram' | 'WordLevel' | 'WordPiece'

const TYPES: readonly TokenizerKind[] = ['BPE', 'Unigram', 'WordLevel', 'WordPiece']

const PARSERS = {
  BPE: parseBpe,
  Unigram: parseUnigram,
  WordLevel: parseWordLevel,
  WordPiece: parseWordPiece,
} satisfies Record<TokenizerKind, (json: Record<string, unknown>) => TokenModel>

/** `value` is the field `model` of tokenizer.json. Throws HOGWILD_INVALID_MODEL. */
export function parseModel(value: unknown): { kind: TokenizerKind; model: TokenModel } {
  const object = checkObject(value, 'model', CODE)
  const kind = checkOneOf(object.type ?? guessedType(object), 'model.type', TYPES, CODE)
  return { kind, model: PARSERS[kind](object) }
}

/** Old files do not name it. */
function guessedType(object: Record<string, unknown>): string {
  if (object.merges !== undefined) return 'BPE'
  if (Array.isArray(object.vocab)) return 'Unigram'
  return object.continuing_subword_prefix === undefined ? 'WordLevel' : 'WordPiece'
}
