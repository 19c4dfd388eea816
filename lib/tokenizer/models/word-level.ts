// One token per piece.

import { HogwildError } from '../../errors'
import { checkString } from '../../validate'
import { parseVocab, type TokenModel } from './model'

const CODE = 'HOGWILD_INVALID_MODEL'

export function parseWordLevel(object: Record<string, unknown>): TokenModel {
  const vocab = parseVocab(object.vocab)
  const unknown = checkString(object.unk_token ?? '<unk>', 'model.unk_token', CODE)
  const unknownId = vocab.get(unknown)
  return {
    vocab,
    unknownId,
    tokenize(piece, ids, forbidden = () => false) {
      const id = vocab.get(piece)
      if (id !== undefined && !forbidden(id)) ids.push(id)
      else ids.push(needUnknown(unknownId, piece))
    },
  }
}

/** The id of a piece that the vocabulary lacks. */
export function needUnknown(unknownId: number | undefined, piece: string): number {
  if (unknownId !== undefined) return unknownId
  const shown = JSON.stringify(piece.slice(0, 60))
  throw new HogwildError(`the vocabulary has neither ${shown} nor an unknown token`, CODE)
}
