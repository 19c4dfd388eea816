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
  const decoder = config.added_tokens_decoder
  const fields: Record<string, unknown> = {
    ...config,
    ...(decoder === undefined ? map : undefined),
  }
  const named: Record<string, string> = {}
  const declared: DeclaredToken[] = []

  for (const [id, token] of Object.entries(
    decoder === undefined ? {} : checkObject(decoder, `added_tokens_decoder of ${origin}`, CODE),
  )) {
    if (!/^\d+$/.test(id))
      throw invalid(`a key of added_tokens_decoder of ${origin}`, 'a token id', id, CODE)
    declared.push({
      ...readToken(token, `added_tokens_decoder.${id} of ${origin}`, false),
      id: Number(id),
    })
  }
  const add = (name: string, value: unknown) => {
    const token = readToken(value, `${name} of ${origin}`, true)
    named[name] = token.content
    declared.push(token)
  }
  for (const [name, value] of Object.entries(fields)) {
    if (value === null) continue
    // Of the names that are not standard only tokens count: add_bos_token is a switch.
    if (STANDARD.includes(name) || (name.endsWith('_token') && isToken(value))) add(name, value)
  }
  const extra = fields.extra_special_tokens ?? fields.additional_special_tokens ?? []
  if (Array.isArray(extra)) {
    extra.forEach((token, i) => {
      declared.push(readToken(token, `extra_special_tokens[${i}] of ${origin}`, true))
    })
  } else {
    for (const [name, value] of Object.entries(
      checkObject(extra, `extra_special_tokens of ${origin}`, CODE),
    )) {
      add(name, value)
    }
  }
  return { named, declared }
}

function isToken(value: unknown): boolean {
  const content = typeof value === 'object' ? (value as { content?: unknown }).content : value
  return typeof content === 'string'
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
