// Normalizers of tokenizer.json, as the Rust library `tokenizers` runs them.

import {
  checkArray,
  checkBoolean,
  checkObject,
  checkOneOf,
  checkString,
} from '../validate'
import { byteCharacters } from './bytes'
import { compilePattern, eachMatch, literalPattern } from './pattern'
import { parsePrecompiled } from './precompiled'
import { LATER_DECOMPOSITIONS, LATER_MARKS, LATER_NONSPACING_MARKS } from './unicode'

const CODE = 'HOGWILD_INVALID_MODEL'

export type Normalizer = (text: string) => string

const TYPES = [
  'BertNormalizer',
  'ByteLevel',
  'Lowercase',
  'NFC',
  'NFD',
  'NFKC',
  'NFKD',
  'Nmt',
  'Precompiled',
  'Prepend',
  'Replace',
  'Sequence',
  'Strip',
  'StripAccents',
] as const

/** `value` is the field `name` of tokenizer.json; null is no normalizer. Throws HOGWILD_INVALID_MODEL. */
export function parseNormalizer(value: unknown, name: string): Normalizer {
  if (value === undefined || value === null) return (text) => text
  const object = checkObject(value, name, CODE)
  const flag = (key: string) => checkBoolean(object[key] ?? true, `${name}.${key}`, CODE)
  const type = checkOneOf(object.type, `${name}.type`, TYPES, CODE)
  switch (type) {
    case 'NFC':
    case 'NFD':
    case 'NFKC':
    case 'NFKD':
      return (text) => normalize(text, type)
    case 'Lowercase':
      return lowercase
    case 'StripAccents':
      return (text) => text.replace(MARKS, '')
    case 'ByteLevel':
      return byteCharacters
    case 'Nmt':
      return nmt
    case 'Precompiled':
      return parsePrecompiled(object.precompiled_charsmap, `${name}.precompiled_charsmap`)
    case 'Prepend': {
      const prefix = checkString(object.prepend, `${name}.prepend`, CODE)
      return (text) => (text === '' ? '' : prefix + text)
    }
    case 'Replace':
      return parseReplace(object, name)
    case 'Strip':
      return strip(flag('strip_left'), flag('strip_right'))
    case 'BertNormalizer': {
      const lower = flag('lowercase')
      const accents = object.strip_accents ?? lower
      return sequence([
        ...(flag('clean_text') ? [cleanText] : []),
        ...(flag('handle_chinese_chars') ? [separateChinese] : []),
        ...(checkBoolean(accents, `${name}.strip_accents`, CODE) ? [stripAccentsOfBert] : []),
        ...(lower ? [lowercase] : []),
      ])
    }
    case 'Sequence':
      return sequence(
        checkArray(object.normalizers, `${name}.normalizers`, CODE).map((one, i) =>
          parseNormalizer(one, `${name}.normalizers[${i}]`),
        ),
      )
  }
}

/** A replacement of a string or of what a pattern finds; decoders have the same. */
export function parseReplace(object: Record<string, unknown>, name: string): Normalizer {
  const pattern = parsePattern(object.pattern, `${name}.pattern`)
  const content = checkString(object.content, `${name}.content`, CODE)
  return (text) => {
    let replaced = ''
    let done = 0
    eachMatch(pattern, text, (start, end) => {
      replaced += text.slice(done, start) + content
      done = end
    })
    return done === 0 && replaced === '' ? text : replaced + text.slice(done)
  }
}

/** { String: 'literal' } or { Regex: 'pattern' }. */
export function parsePattern(value: unknown, name: string): RegExp {
  const object = checkObject(value, name, CODE)
  return object.Regex === undefined
    ? literalPattern(checkString(object.String, `${name}.String`, CODE))
    : compilePattern(checkString(object.Regex, `${name}.Regex`, CODE))
}

function sequence(normalizers: readonly Normalizer[]): Normalizer {
  return (text) => normalizers.reduce((result, normalize) => normalize(result), text)
}

/** Each character on its own: a final sigma is like any other. */
function lowercase(text: string): string {
  const lower = text.toLowerCase()
  return text.includes('Σ') ? text.replace(/[^Σ]+|Σ/g, (part) => (part === 'Σ' ? 'σ' : part.toLowerCase())) : lower
}

const UNKNOWN = new RegExp(`[${LATER_DECOMPOSITIONS}]`, 'v')
const KNOWN_RUNS = new RegExp(`[^${LATER_DECOMPOSITIONS}]+`, 'gv')
const MARKS = new RegExp(`[[\\p{M}--[${LATER_MARKS}]]\\u{1cf2}\\u{1cf3}]`, 'gv')
const NONSPACING_MARKS = new RegExp(
  `[[\\p{Mn}--[${LATER_NONSPACING_MARKS}]]\\u{1734}\\u{1171e}]`,
  'gv',
)

function normalize(text: string, form: 'NFC' | 'NFD' | 'NFKC' | 'NFKD'): string {
  if (!UNKNOWN.test(text)) return text.normalize(form)
  return text.replace(KNOWN_RUNS, (run) => run.normalize(form))
}

function strip(left: boolean, right: boolean): Normalizer {
  return (text) => {
    let [start, end] = [0, text.length]
    const isSpace = (at: number) => /\p{White_Space}/u.test(text.charAt(at))
    while (left && start < end && isSpace(start)) start++
    while (right && end > start && isSpace(end - 1)) end--
    return text.slice(start, end)
  }
}

function nmt(text: string): string {
  return text
    .replace(/[\x01-\x08\v\x0e-\x1f\x7f\x8f\x9f]/g, '')
    .replace(/[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/g, ' ')
}

// BERT's own

function cleanText(text: string): string {
  return text
    .replace(/[\0\ufffd[[\p{Cc}\p{Cf}\p{Co}]--[\t\n\r\u{890}\u{891}\u{8e2}\u{110cd}\u{13430}-\u{1343f}]]]/gv, '')
    .replace(/\p{White_Space}/gu, ' ')
}

const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu

function separateChinese(text: string): string {
  return text.replace(CHINESE, ' $& ')
}

function stripAccentsOfBert(text: string): string {
  return normalize(text, 'NFD').replace(NONSPACING_MARKS, '')
}
