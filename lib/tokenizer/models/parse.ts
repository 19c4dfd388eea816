// The field `model` of tokenizer.json.

import { checkObject, checkOneOf } from '../../validate'
import { parseBpe } from './bpe'
import type { TokenModel } from './model'
import { parseUnigram } from './unigram'
import { parseWordLevel } from './word-level'
import { parseWordPiece } from './word-piece'

const CODE = 'HOGWILD_INVALID_MODEL'

const TYPES = ['BPE', 'Unigram', 'WordLevel', 'WordPiece'] as const

/** `value` is the field `model` of tokenizer.json. Throws HOGWILD_INVALID_MODEL. */
export function parseModel(value: unknown): TokenModel {
  const object = checkObject(value, 'model', CODE)
  const type = checkOneOf(object.type ?? guessedType(object), 'model.type', TYPES, CODE)
  switch (type) {
    case 'BPE':
      return parseBpe(object)
    case 'Unigram':
      return parseUnigram(object)
    case 'WordLevel':
      return parseWordLevel(object)
    case 'WordPiece':
      return parseWordPiece(object)
  }
}

/** Old files do not name it. */
function guessedType(object: Record<string, unknown>): string {
  if (object.merges !== undefined) return 'BPE'
  if (Array.isArray(object.vocab)) return 'Unigram'
  return object.continuing_subword_prefix === undefined ? 'WordLevel' : 'WordPiece'
}
