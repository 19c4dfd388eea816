// Regular expressions of tokenizer.json. They are written for Oniguruma; this file translates them into
// JavaScript's with the flag v, which knows nested and intersected classes. Differences that matter:
// Oniguruma's \d, \s and \w are Unicode's, ^ and $ stand at lines, `++` is possessive, (?i: ) is local.

import { HogwildError } from '../errors'
import { LATER_CHARACTERS } from './unicode'

/** Oniguruma's \w inside of a character class. */
const WORD = assigned('\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}')
// Outside of a class it takes a table for U+0000 to U+00FF, which counts these superscripts and fractions.
const WORD_OUTSIDE = `[${WORD}\\u{b2}\\u{b3}\\u{b9}\\u{bc}-\\u{be}]`
const NOT_WORD_OUTSIDE = `[^${WORD}\\u{b2}\\u{b3}\\u{b9}\\u{bc}-\\u{be}]`
const BOUNDARY = `(?:(?<!${WORD_OUTSIDE})(?=${WORD_OUTSIDE})|(?<=${WORD_OUTSIDE})(?!${WORD_OUTSIDE}))`
const NO_BOUNDARY = `(?:(?<!${WORD_OUTSIDE})(?!${WORD_OUTSIDE})|(?<=${WORD_OUTSIDE})(?=${WORD_OUTSIDE}))`

/** POSIX brackets, as content of a class. Properties have the same names. */
const NAMED_CLASSES: Readonly<Record<string, string>> = {
  alnum: assigned('\\p{Alphabetic}\\p{Nd}'),
  alpha: assigned('\\p{Alphabetic}'),
  any: '\\p{Any}',
  ascii: '\\p{ASCII}',
  blank: assigned('\\t\\p{Zs}'),
  cntrl: '\\p{Cc}',
  digit: '\\p{Nd}',
  graph: assigned('[^\\p{White_Space}\\p{Cc}\\p{Cs}\\p{Cn}]'),
  lower: assigned('\\p{Lowercase}'),
  print: assigned('[[^\\p{White_Space}\\p{Cc}\\p{Cs}\\p{Cn}]\\p{Zs}]'),
  punct: assigned('\\p{P}\\p{S}'),
  space: '\\p{White_Space}',
  upper: assigned('\\p{Uppercase}'),
  word: WORD,
  xdigit: '0-9A-Fa-f',
}

/** \p{Punct} is narrower than [:punct:]. */
const PROPERTIES: Readonly<Record<string, string>> = { ...NAMED_CLASSES, punct: assigned('\\p{P}') }

/** Escapes that stand for a set, as content of a class; the capital letter is the complement. */
const SET_ESCAPES: Readonly<Record<string, string>> = {
  d: assigned('\\p{Nd}'),
  h: '0-9A-Fa-f',
  s: '\\p{White_Space}',
  w: WORD,
}

const CHARACTER_ESCAPES: Readonly<Record<string, number>> = {
  a: 7,
  e: 27,
  f: 12,
  n: 10,
  r: 13,
  t: 9,
  v: 11,
}

/** Characters that have another case, for classes within (?i: ). */
const CASED = '\\p{Changes_When_Casefolded}\\p{Changes_When_Casemapped}'

/** Content of a class without what is not assigned in Oniguruma's tables. */
function assigned(content: string): string {
  return `[[${content}]--[${LATER_CHARACTERS}]]`
}

const MAX_DEPTH = 100

interface Flags {
  ignoreCase: boolean
  dotAll: boolean
  extended: boolean
}

/**
 * A RegExp with the flags g and v that finds what Oniguruma finds. Throws HOGWILD_INVALID_MODEL for a pattern
 * that is none, or one that JavaScript cannot express (backreferences, conditions, calls).
 */
export function compilePattern(source: string): RegExp {
  try {
    return new RegExp(new Translator(source).translate(), 'gv')
  } catch (cause) {
    const shown = source.length > 100 ? `${source.slice(0, 100)}…` : source
    const message = `the pattern ${JSON.stringify(shown)}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_INVALID_MODEL', { cause })
  }
}

/** A RegExp that finds exactly this text. */
export function literalPattern(text: string): RegExp {
  return new RegExp(Array.from(text, literal).join(''), 'gv')
}

/**
 * Calls `found` with [start, end) of each match. As in the Rust library, an empty match right after another
 * one does not count.
 */
export function eachMatch(
  pattern: RegExp,
  text: string,
  found: (start: number, end: number) => void,
): void {
  pattern.lastIndex = 0
  let previousEnd = -1
  for (let match = pattern.exec(text); match !== null; match = pattern.exec(text)) {
    const start = match.index
    const end = pattern.lastIndex
    if (isWithinPair(text, start)) {
      // V8 looks for patterns that begin with a lookahead there too.
      pattern.lastIndex = start + 1
      continue
    }
    if (end === start) {
      // A search goes on after the next code point.
      pattern.lastIndex = end + ((text.codePointAt(end) ?? 0) > 0xffff ? 2 : 1)
      if (start === previousEnd) continue
    }
    previousEnd = end
    found(start, end)
  }
}

function isWithinPair(text: string, at: number): boolean {
  return (text.charCodeAt(at) & 0xfc00) === 0xdc00 && (text.charCodeAt(at - 1) & 0xfc00) === 0xd800
}

function literal(character: string): string {
  return /^[A-Za-z0-9]$/.test(character)
    ? character
    : `\\u{${(character.codePointAt(0) as number).toString(16)}}`
}

class Translator {
  readonly #source: string
  #at = 0
  #atomics = 0
  #depth = 0
  #lookbehinds = 0

  constructor(source: string) {
    this.#source = source
  }

  translate(): string {
    const flags = { ignoreCase: false, dotAll: false, extended: false }
    const translated = this.#alternatives(flags)
    if (this.#at < this.#source.length) throw new SyntaxError('unmatched )')
    return translated
  }

  /** Up to the end of the group. */
  #alternatives(outer: Flags): string {
    if (++this.#depth > MAX_DEPTH) throw new SyntaxError(`groups nested more than ${MAX_DEPTH} deep`)
    let flags = outer
    let translated = ''
    while (this.#at < this.#source.length && this.#source[this.#at] !== ')') {
      const options = this.#take(/\(\?([imx]*)(?:-([imx]+))?\)/y)
      if (options !== undefined) {
        // They hold up to the end of the group, alternatives included.
        flags = changed(flags, options)
        translated += `(?:${this.#alternatives(flags)})`
        break
      }
      if (this.#take(/\(\?#[^)]*\)/y) !== undefined) continue
      if (flags.extended && this.#take(/[\t\n\v\f\r ]+|#[^\n]*/y) !== undefined) continue
      if (this.#take(/\|/y) !== undefined) translated += '|'
      else translated += this.#quantified(this.#atom(flags))
    }
    this.#depth--
    return translated
  }

  #quantified(atom: string): string {
    let translated = atom
    for (;;) {
      const simple = this.#take(/([*+?])([+?]?)/y)
      const interval = simple === undefined ? this.#take(/\{(\d*)(,?)(\d*)\}(\??)/y) : undefined
      if (simple !== undefined) {
        const [, quantifier, mode] = simple
        translated = mode === '+' ? this.#atomic(translated + quantifier) : translated + simple[0]
      } else if (interval !== undefined && (interval[1] !== '' || interval[3] !== '')) {
        const [, min, comma, max, lazy] = interval
        // {n}? is an optional {n}, not a lazy one.
        if (comma === '' && lazy !== '') translated = `(?:${translated}{${min}})?`
        else translated += `{${min || '0'}${comma}${max}}${lazy}`
      } else {
        if (interval !== undefined) this.#at -= interval[0].length
        return translated
      }
      if (!/^[*+?{]$/.test(this.#source[this.#at] ?? '')) return translated
      translated = `(?:${translated})`
    }
  }

  #atom(flags: Flags): string {
    const source = this.#source
    const character = String.fromCodePoint(source.codePointAt(this.#at) as number)
    if (character === '(') return this.#group(flags)
    if (character === '[') return this.#folded(this.#class(), flags)
    if (character === '\\') return this.#escape(flags)
    this.#at += character.length
    if (character === '.') return flags.dotAll ? '[^]' : '[^\\n]'
    // Not after a newline that ends the text.
    if (character === '^') return '(?:(?<![^])|(?<=\\n)(?=[^]))'
    if (character === '$') return '(?![^\\n])'
    if (character === '*' || character === '+' || character === '?') {
      throw new SyntaxError(`nothing to repeat before ${character}`)
    }
    return this.#character(character, flags)
  }

  #group(flags: Flags): string {
    const open = this.#take(
      /\((?:\?(?:(?<kind>:|=|!|>|<=|<!)|<[\p{L}_][\p{L}\p{N}_]*>|(?<options>[imx]*(?:-[imx]+)?):))?/uy,
    )
    if (open === undefined || this.#source[this.#at] === '?') throw new SyntaxError('unknown group')
    const { kind, options } = open.groups ?? {}
    const inner =
      options === undefined ? flags : changed(flags, ['', ...options.split('-')] as string[])
    const lookbehind = kind?.startsWith('<') ? 1 : 0
    this.#lookbehinds += lookbehind
    const translated = this.#alternatives(inner)
    this.#lookbehinds -= lookbehind
    if (this.#take(/\)/y) === undefined) throw new SyntaxError('unmatched (')
    if (kind === '>') return this.#atomic(translated)
    return kind === undefined || kind === ':' ? `(?:${translated})` : `(?${kind}${translated})`
  }

  /** A lookahead is never entered again once it has matched, so a reference to its match is atomic. */
  #atomic(translated: string): string {
    if (this.#lookbehinds > 0) throw new SyntaxError('an atomic group within a lookbehind')
    const name = `atomic${this.#atomics++}`
    return `(?:(?=(?<${name}>${translated}))\\k<${name}>)`
  }

  #escape(flags: Flags): string {
    const word = this.#take(/\\([wW])/y)?.[1]
    if (word !== undefined) return word === 'w' ? WORD_OUTSIDE : NOT_WORD_OUTSIDE
    const set = this.#setEscape()
    if (set !== undefined) {
      // Case does not matter to them, not even to \p{Lu}.
      return set
    }
    const anchor = this.#take(/\\([AzZbBGRK])/y)?.[1]
    switch (anchor) {
      case undefined:
        break
      case 'A':
        return '(?<![^])'
      case 'z':
        return '(?![^])'
      case 'Z':
        return '(?=\\n?(?![^]))'
      case 'b':
        return BOUNDARY
      case 'B':
        return NO_BOUNDARY
      case 'R':
        return this.#atomic('\\r\\n|[\\n-\\r\\u{85}\\u{2028}\\u{2029}]')
      default:
        throw new SyntaxError(`\\${anchor} is not supported`)
    }
    if (/^\\[1-9kg]/.test(this.#source.slice(this.#at, this.#at + 2))) {
      throw new SyntaxError('references to groups are not supported')
    }
    return this.#character(this.#characterEscape(), flags)
  }

  /** \d, \p{Han} and the like, as a class. */
  #setEscape(): string | undefined {
    const short = this.#take(/\\([dhswDHSW])/y)?.[1]
    if (short !== undefined) {
      const lower = short.toLowerCase()
      return `[${short === lower ? '' : '^'}${SET_ESCAPES[lower]}]`
    }
    const property = this.#take(/\\([pP])\{(\^?)([^}]*)\}/y)
    if (property === undefined) return undefined
    const [, letter, caret, name = ''] = property
    return `[${(letter === 'P') === (caret === '^') ? '' : '^'}${propertyClass(name)}]`
  }

  /** The character that an escape stands for. */
  #characterEscape(): string {
    const hex = this.#take(/\\(?:x\{([0-9A-Fa-f]{1,8})\}|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{4}))/y)
    if (hex !== undefined) {
      const code = Number.parseInt(hex[1] ?? hex[2] ?? hex[3] ?? '', 16)
      if (code > 0x10ffff) throw new SyntaxError(`no code point: ${hex[0]}`)
      return String.fromCodePoint(code)
    }
    const octal = this.#take(/\\(0[0-7]{0,2})/y)?.[1]
    if (octal !== undefined) return String.fromCodePoint(Number.parseInt(octal, 8))
    const control = this.#take(/\\(?:c|C-)([A-Za-z@[\]^_?])/y)?.[1]
    if (control !== undefined) return String.fromCodePoint((control.codePointAt(0) as number) & 31)
    const [, plain] = this.#take(/\\([^])/uy) ?? []
    if (plain === undefined) throw new SyntaxError('it ends with a backslash')
    const code = CHARACTER_ESCAPES[plain]
    return code === undefined ? plain : String.fromCodePoint(code)
  }

  #character(character: string, flags: Flags): string {
    const translated = literal(character)
    return flags.ignoreCase ? this.#folded(`[${translated}]`, flags) : translated
  }

  /** A class with all cases of its characters where case is ignored. */
  #folded(translated: string, flags: Flags): string {
    if (!flags.ignoreCase) return translated
    const pattern = new RegExp(`^${translated}$`, 'iv')
    const members = casedCharacters().filter((character) => pattern.test(character))
    return `[[${translated}--[${CASED}]]${members.map(literal).join('')}]`
  }

  #class(): string {
    if (++this.#depth > MAX_DEPTH) throw new SyntaxError(`classes nested more than ${MAX_DEPTH} deep`)
    const negated = this.#take(/\[(\^?)/y)?.[1] === '^'
    const operands: string[] = []
    let items = ''
    let first = true
    for (;;) {
      if (this.#at >= this.#source.length) throw new SyntaxError('unmatched [')
      if (!first && this.#take(/\]/y) !== undefined) break
      if (this.#take(/&&/y) !== undefined) {
        operands.push(`[${items}]`)
        items = ''
      } else {
        items += this.#classItem()
      }
      first = false
    }
    operands.push(`[${items}]`)
    this.#depth--
    const union = operands.length === 1 ? items : operands.join('&&')
    return `[${negated ? '^' : ''}${union}]`
  }

  #classItem(): string {
    const posix = this.#take(/\[:(\^?)(\w+):\]/y)
    if (posix !== undefined) {
      const content = NAMED_CLASSES[(posix[2] as string).toLowerCase()]
      if (content === undefined) throw new SyntaxError(`unknown class ${posix[0]}`)
      return `[${posix[1]}${content}]`
    }
    if (this.#source[this.#at] === '[') return this.#class()
    const set = this.#setEscape()
    if (set !== undefined) return set
    const from = this.#classCharacter()
    // A hyphen at the end, or before a set, is one.
    const range = this.#take(/-(?!\]|&&|\[|\\[dhswDHSWpP])/y)
    if (range === undefined) return literal(from)
    return `${literal(from)}-${literal(this.#classCharacter())}`
  }

  #classCharacter(): string {
    if (this.#source[this.#at] === '\\') {
      return this.#take(/\\b/y) === undefined ? this.#characterEscape() : '\b'
    }
    const character = String.fromCodePoint(this.#source.codePointAt(this.#at) as number)
    this.#at += character.length
    return character
  }

  /** What stands here, if it is of this (sticky) form. */
  #take(form: RegExp): RegExpExecArray | undefined {
    form.lastIndex = this.#at
    const match = form.exec(this.#source)
    if (match === null) return undefined
    this.#at = form.lastIndex
    return match
  }
}

function changed(flags: Flags, [, on = '', off = '']: readonly (string | undefined)[]): Flags {
  const flag = (letter: string, before: boolean) =>
    on.includes(letter) || (before && !off.includes(letter))
  return {
    ignoreCase: flag('i', flags.ignoreCase),
    dotAll: flag('m', flags.dotAll),
    extended: flag('x', flags.extended),
  }
}

/** Oniguruma compares names of properties without case, spaces, hyphens and underscores. */
function propertyClass(name: string): string {
  const named = PROPERTIES[name.toLowerCase().replace(/[\s_-]/g, '')]
  if (named !== undefined) return named
  const words = name
    .trim()
    .split(/[\s_-]+/)
    .map((word) => word.slice(0, 1).toUpperCase() + word.slice(1).toLowerCase())
    .join('_')
  if (words === 'Cn' || words === 'Unassigned') return `\\p{Cn}${LATER_CHARACTERS}`
  for (const candidate of [name, words, `Script=${words}`]) {
    try {
      new RegExp(`\\p{${candidate}}`, 'v')
      return assigned(`\\p{${candidate}}`)
    } catch {
      // Not that one.
    }
  }
  throw new SyntaxError(`unknown property ${name}`)
}

let cased: readonly string[] | undefined

function casedCharacters(): readonly string[] {
  if (cased === undefined) {
    const pattern = new RegExp(`[${CASED}]`, 'v')
    const found: string[] = []
    // No character beyond this has another case.
    for (let code = 0; code < 0x20000; code++) {
      if (code >= 0xd800 && code < 0xe000) continue
      const character = String.fromCodePoint(code)
      if (pattern.test(character)) found.push(character)
    }
    cased = found
  }
  return cased
}
