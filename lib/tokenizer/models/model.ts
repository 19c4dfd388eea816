// What turns a piece of text into token ids, and what the four kinds of it share.

import { checkArray, checkInteger, checkObject, invalid } from '../../validate'

const CODE = 'HOGWILD_INVALID_MODEL'

/** Ids beyond it are refused: tables have one entry for each id up to the largest. */
export const MAX_TOKEN_ID = 2 ** 22 - 1

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

/** A vocabulary written as { token: id }, or a map where it is no file's. */
export function parseVocab(value: unknown): ReadonlyMap<string, number> {
  if (value instanceof Map) return value
  const vocab = new Map<string, number>()
  for (const [token, id] of Object.entries(checkObject(value, 'model.vocab', CODE))) {
    vocab.set(
      token,
      checkInteger(id, `the id of ${JSON.stringify(token.slice(0, 60))}`, 0, MAX_TOKEN_ID, CODE),
    )
  }
  return vocab
}

/** An entry of a list that must be a pair. */
export function checkPair(value: unknown, name: string): [unknown, unknown] {
  const pair = checkArray(value, name, CODE)
  if (pair.length !== 2) throw invalid(name, 'a pair', value, CODE)
  return pair as [unknown, unknown]
}
