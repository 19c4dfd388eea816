// WordPiece (BERT): the longest token first, again and again. A word that leaves a rest is unknown.

import { checkInteger, checkString } from '../../validate'
import { parseVocab, type TokenModel } from './model'
import { needUnknown } from './word-level'

const CODE = 'HOGWILD_INVALID_MODEL'

export function parseWordPiece(object: Record<string, unknown>): TokenModel {
  const vocab = parseVocab(object.vocab)
  const unknown = checkString(object.unk_token ?? '[UNK]', 'model.unk_token', CODE)
  const prefix = checkString(
    object.continuing_subword_prefix ?? '##',
    'model.continuing_subword_prefix',
    CODE,
  )
  const maxCharacters = checkInteger(
    object.max_input_chars_per_word ?? 100,
    'model.max_input_chars_per_word',
    0,
    undefined,
    CODE,
  )
  const unknownId = vocab.get(unknown)
  let longest = 0
  for (const token of vocab.keys()) longest = Math.max(longest, token.length)

  /** False where nothing fits. */
  function append(piece: string, ids: number[], forbidden: (id: number) => boolean): boolean {
    for (let start = 0; start < piece.length; ) {
      let end = Math.min(piece.length, start + longest)
      let id: number | undefined
      for (; end > start; end--) {
        const part = piece.slice(start, end)
        id = vocab.get(start > 0 ? prefix + part : part)
        if (id !== undefined && !forbidden(id)) break
        id = undefined
      }
      if (id === undefined) return false
      ids.push(id)
      start = end
    }
    return true
  }

  return {
    vocab,
    unknownId,
    tokenize(piece, ids, forbidden = () => false) {
      const before = ids.length
      const fits = piece.length <= maxCharacters || Array.from(piece).length <= maxCharacters
      if (fits && append(piece, ids, forbidden)) return
      ids.length = before
      ids.push(needUnknown(unknownId, piece))
    },
  }
}
