// Post-processors of tokenizer.json: the tokens that they put around a text.

import { checkArray, checkInteger, checkObject, checkOneOf, checkString, invalid } from '../validate'
import { checkPair, MAX_TOKEN_ID } from './models/model'

const CODE = 'HOGWILD_INVALID_MODEL'

/** Tokens before and behind a text. */
export interface Surroundings {
  before: readonly number[]
  behind: readonly number[]
}

const TYPES = [
  'BertProcessing',
  'ByteLevel',
  'RobertaProcessing',
  'Sequence',
  'TemplateProcessing',
] as const

/** `value` is the field `name` of tokenizer.json; null is none. Throws HOGWILD_INVALID_MODEL. */
export function parsePostProcessor(value: unknown, name: string): Surroundings {
  if (value === undefined || value === null) return { before: [], behind: [] }
  const object = checkObject(value, name, CODE)
  const type = checkOneOf(object.type, `${name}.type`, TYPES, CODE)
  switch (type) {
    case 'ByteLevel':
      return { before: [], behind: [] }
    case 'BertProcessing':
    case 'RobertaProcessing': {
      const id = (key: string) => checkId(checkPair(object[key], `${name}.${key}`)[1], `${name}.${key}[1]`)
      return { before: [id('cls')], behind: [id('sep')] }
    }
    case 'TemplateProcessing':
      return parseTemplate(object, name)
    case 'Sequence':
      return checkArray(object.processors, `${name}.processors`, CODE)
        .map((one, i) => parsePostProcessor(one, `${name}.processors[${i}]`))
        .reduce((inner, outer) => ({
          before: [...outer.before, ...inner.before],
          behind: [...inner.behind, ...outer.behind],
        }), { before: [], behind: [] })
  }
}

function checkId(value: unknown, name: string): number {
  return checkInteger(value, name, 0, MAX_TOKEN_ID, CODE)
}

function parseTemplate(object: Record<string, unknown>, name: string): Surroundings {
  const specials = checkObject(object.special_tokens ?? {}, `${name}.special_tokens`, CODE)
  const before: number[] = []
  const behind: number[] = []
  let texts = 0
  checkArray(object.single, `${name}.single`, CODE).forEach((value, i) => {
    const place = `${name}.single[${i}]`
    const piece = checkObject(value, place, CODE)
    if (piece.Sequence !== undefined) {
      checkOneOf(checkObject(piece.Sequence, place, CODE).id, `${place}.Sequence.id`, ['A'], CODE)
      texts++
      return
    }
    const key = checkString(checkObject(piece.SpecialToken, place, CODE).id, `${place}.SpecialToken.id`, CODE)
    const entry = `${name}.special_tokens[${JSON.stringify(key)}]`
    const special = checkObject(Object.hasOwn(specials, key) ? specials[key] : undefined, entry, CODE)
    const ids = checkArray(special.ids, `${entry}.ids`, CODE).map((id) => checkId(id, `${entry}.ids`))
    ;(texts === 0 ? before : behind).push(...ids)
  })
  if (texts !== 1) throw invalid(`${name}.single`, 'a template with the text once', object.single, CODE)
  return { before, behind }
}
