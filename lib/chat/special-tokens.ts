// The special tokens that tokenizer_config.json and special_tokens_map.json declare, as transformers reads them.

import { checkBoolean, checkObject, checkString, invalid } from '../validate'

/** A token that files beside tokenizer.json declare; tokenizer.json may have it too. */
export interface DeclaredToken {
  content: string
  /** Only added_tokens_decoder tells it. */
  id: number | undefined
  special: boolean
  lstrip: boolean
  rstrip: boolean
  singleWord: boolean
  normalized: boolean
}

export interface SpecialTokens {
  /** By name, bos_token and the like: what templates can use. */
  named: Record<string, string>
  /** All of them, those of added_tokens_decoder first. The first of equal contents counts. */
  declared: DeclaredToken[]
}

const STANDARD = [
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
]
const CODE = 'HOGWILD_INVALID_MODEL'

/**
 * `config` is the content of tokenizer_config.json and `map` that of special_tokens_map.json, which counts only
 * for a config without added_tokens_decoder and then before it. `origin` is for messages.
 *
 * Throws HOGWILD_INVALID_MODEL.
 */
export function readSpecialTokens(
  config: Readonly<Record<string, unknown>>,
  map: Readonly<Record<string, unknown>> | undefined,
  origin: string,
): SpecialTokens {
  const named: Record<string, string> = {}
  const declared = readDecoder(config.added_tokens_decoder, origin)
  const fields: Record<string, unknown> = { ...config }
  if (config.added_tokens_decoder === undefined) Object.assign(fields, map)

  const add = (name: string, value: unknown) => {
    const token = readToken(value, `${name} of ${origin}`, true)
    named[name] = token.content
    declared.push(token)
  }
  for (const [name, value] of Object.entries(fields)) {
    if (value === null) continue
    const isOwn = name.endsWith('_token') && isToken(value, fields[name] !== config[name])
    if (STANDARD.includes(name) || isOwn) add(name, value)
  }
  const extra = fields.extra_special_tokens ?? fields.additional_special_tokens ?? []
  if (Array.isArray(extra)) {
    extra.forEach((token, i) => {
      declared.push(readToken(token, `extra_special_tokens[${i}] of ${origin}`, true))
    })
  }
  for (const [field, tokens] of [
    ['extra_special_tokens', Array.isArray(extra) ? {} : extra],
    ['model_specific_special_tokens', fields.model_specific_special_tokens ?? {}],
  ] as const) {
    const byName = checkObject(tokens, `${field} of ${origin}`, CODE)
    for (const [name, value] of Object.entries(byName)) add(name, value)
  }
  return { named, declared }
}

function readDecoder(decoder: unknown, origin: string): DeclaredToken[] {
  if (decoder === undefined) return []
  const name = `added_tokens_decoder of ${origin}`
  return Object.entries(checkObject(decoder, name, CODE)).map(([id, token]) => {
    if (!/^\d+$/.test(id)) throw invalid(`a key of ${name}`, 'a token id', id, CODE)
    return { ...readToken(token, `added_tokens_decoder.${id} of ${origin}`, false), id: Number(id) }
  })
}

// Of the fields whose names are not standard only those with a token count: add_bos_token is a switch.
// tokenizer_config.json marks objects that are tokens, the map does not.
function isToken(value: unknown, isFromMap: boolean): boolean {
  if (typeof value !== 'object' || value === null) return typeof value === 'string'
  return isFromMap || (value as { __type?: unknown }).__type === 'AddedToken'
}

// A string, or an object that says more. `special` is the default of what is named a special token.
function readToken(value: unknown, name: string, special: boolean): DeclaredToken {
  if (typeof value === 'string') {
    return {
      content: value,
      id: undefined,
      special,
      lstrip: false,
      rstrip: false,
      singleWord: false,
      normalized: false,
    }
  }
  const token = checkObject(value, name, CODE)
  const flag = (key: string, otherwise: boolean) =>
    checkBoolean(token[key] ?? otherwise, `${key} of ${name}`, CODE)
  const isSpecial = flag('special', special) || special
  return {
    content: checkString(token.content, `content of ${name}`, CODE),
    id: undefined,
    special: isSpecial,
    lstrip: flag('lstrip', false),
    rstrip: flag('rstrip', false),
    singleWord: flag('single_word', false),
    normalized: flag('normalized', !isSpecial),
  }
}
