// What turns a piece of text into token ids: one of the four models of tokenizer.json.

import { checkArray, checkInteger, checkObject, checkOneOf, invalid } from '../../validate'
import { parseBpe } from './bpe'
import { parseUnigram } from './unigram'
import { parseWordLevel } from './word-level'
import { parseWordPiece } from './word-piece'

const CODE = 'HOGWILD_INVALID_MODEL'

/** Ids beyond it are refused: tables have one entry for each id up to the largest. */
export const MAX_TOKEN_ID = 2 ** 24 - 1

export interface TokenModel {
  /** Token to id. */
  readonly vocab: ReadonlyMap<string, number>
  /** The tokens by id, for a vocabulary that may have one twice. */
  readonly list?: readonly string[]
  /** The unknown token's id, where there is one. */
  readonly unknownId: number | undefined
  /**
   * Appends the ids of a piece of text. Ids for which `forbidden` is true are not used: a piece is then put
   * together from others, or is unknown.
   */
  tokenize(piece: string, ids: number[], forbidden?: (id: number) => boolean): void
}

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

/** A vocabulary written as { token: id }. */
export function parseVocab(value: unknown): Map<string, number> {
  const vocab = new Map<string, number>()
  for (const [token, id] of Object.entries(checkObject(value, 'model.vocab', CODE))) {
    vocab.set(token, checkInteger(id, `the id of ${JSON.stringify(token.slice(0, 60))}`, 0, MAX_TOKEN_ID, CODE))
  }
  return vocab
}

/** An entry of a list that must be a pair. */
export function checkPair(value: unknown, name: string): [unknown, unknown] {
  const pair = checkArray(value, name, CODE)
  if (pair.length !== 2) throw invalid(name, 'a pair', value, CODE)
  return pair as [unknown, unknown]
}
