// A template's source to tokens, as Jinja2 reads it with trim_blocks and lstrip_blocks.

import { SPACE, TemplateError } from './text'

export type TokenType =
  | 'data'
  | 'output begin'
  | 'output end'
  | 'block begin'
  | 'block end'
  | 'name'
  | 'string'
  | 'integer'
  | 'float'
  | 'operator'
  | 'end'

export interface Token {
  type: TokenType
  /** Of a string: its value, without quotes and escapes. */
  value: string
  line: number
}

const S = `[${SPACE}]*`
const OPENING = /\{([{%#])([-+]?)/g
const RAW = new RegExp(`\\{%([-+]?)${S}raw${S}(?:-%\\}${S}|%\\})`, 'y')
const END_RAW = new RegExp(`\\{%([-+]?)${S}endraw${S}(?:\\+%\\}|-%\\}${S}|%\\}\\n?)`, 'g')
const END_COMMENT = new RegExp(`\\+#\\}|-#\\}${S}|#\\}\\n?`, 'g')
const END_BLOCK = new RegExp(`\\+%\\}|-%\\}${S}|%\\}\\n?`, 'y')
const END_OUTPUT = new RegExp(`-\\}\\}${S}|\\}\\}`, 'y')
const WHITESPACE = new RegExp(`[${SPACE}]+`, 'y')
const ONLY_SPACE = new RegExp(`^[${SPACE}]*$`)
const FLOAT = /(?<!\.)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?e[+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)/iy
const INTEGER = /0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|[1-9](?:_?\d)*|0(?:_?0)*/iy
const NAME = /[\p{ID_Start}_][\p{ID_Continue}]*/uy
const STRING = /'(?:[^'\\]|\\[\s\S])*'|"(?:[^"\\]|\\[\s\S])*"/y
const OPERATOR = /\/\/|\*\*|==|!=|>=|<=|[-+*/%~[\](){}><=.:|,;]/y
const CLOSING: Readonly<Record<string, string>> = { '(': ')', '[': ']', '{': '}' }

export function tokenize(template: string): Token[] {
  return new Lexer(template).tokens
}

class Lexer {
  readonly tokens: Token[] = []
  readonly #source: string
  #position = 0
  // Whether what was read last ended a line: then white space before a tag begins a line.
  #lineStarts = true
  // For line numbers: how far they are counted, and how many.
  #counted = 0
  #line = 1

  constructor(template: string) {
    this.#source = template.replace(/\r\n?/g, '\n').replace(/\n$/, '')
    while (this.#position < this.#source.length) this.#readData()
    this.#push('end', '')
  }

  #push(type: TokenType, value: string): void {
    for (; this.#counted < this.#position; this.#counted++) {
      if (this.#source[this.#counted] === '\n') this.#line++
    }
    this.tokens.push({ type, value, line: this.#line })
  }

  #fail(message: string): never {
    const line = this.#source.slice(0, this.#position).split('\n').length
    throw new TemplateError(`line ${line}: ${message}`)
  }

  #match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.#position
    return pattern.exec(this.#source)
  }

  #advance(to: number): void {
    if (to > this.#position) this.#lineStarts = this.#source[to - 1] === '\n'
    this.#position = to
  }

  // Text as far as the next tag, and the tag.
  #readData(): void {
    const opening = this.#match(OPENING)
    if (opening === null) {
      const data = this.#source.slice(this.#position)
      this.#push('data', data)
      this.#position = this.#source.length
      return
    }
    const data = this.#source.slice(this.#position, opening.index)
    RAW.lastIndex = opening.index
    const raw = RAW.exec(this.#source)
    const [tag, kind, sign] = raw === null ? opening : [raw[0], '%', raw[1]]
    this.#pushData(data, kind as string, sign as string)
    this.#advance(opening.index + (tag as string).length)
    if (raw !== null) this.#readRaw()
    else if (kind === '#') this.#readComment()
    else this.#readTag(kind === '%' ? 'block' : 'output')
  }

  // lstrip_blocks: white space from a line's beginning to a tag goes, unless the tag is an output or says '+'.
  #pushData(data: string, kind: string, sign: string): void {
    let kept = data
    if (sign === '-') {
      let end = data.length
      while (end > 0 && ONLY_SPACE.test(data[end - 1] as string)) end--
      kept = data.slice(0, end)
    } else if (sign !== '+' && kind !== '{') {
      const lineStart = data.lastIndexOf('\n') + 1
      if ((lineStart > 0 || this.#lineStarts) && ONLY_SPACE.test(data.slice(lineStart))) {
        kept = data.slice(0, lineStart)
      }
    }
    if (kept !== '') this.#push('data', kept)
  }

  #readRaw(): void {
    const end = this.#match(END_RAW)
    if (end === null) this.#fail('a raw block without its end')
    this.#pushData(this.#source.slice(this.#position, end.index), '%', end[1] as string)
    this.#advance(end.index + end[0].length)
  }

  #readComment(): void {
    const end = this.#match(END_COMMENT)
    if (end === null) this.#fail('a comment without its end')
    this.#advance(end.index + end[0].length)
  }

  #readTag(kind: 'block' | 'output'): void {
    this.#push(`${kind} begin`, '')
    const open: string[] = []
    const endPattern = kind === 'block' ? END_BLOCK : END_OUTPUT
    for (;;) {
      if (this.#position >= this.#source.length) this.#fail('a tag without its end')
      const end = open.length === 0 ? this.#match(endPattern) : null
      if (end !== null) {
        this.#push(`${kind} end`, '')
        this.#advance(this.#position + end[0].length)
        return
      }
      this.#readToken(open)
    }
  }

  #readToken(open: string[]): void {
    const space = this.#match(WHITESPACE)
    if (space !== null) {
      this.#advance(this.#position + space[0].length)
      return
    }
    for (const [type, pattern] of TOKENS) {
      const value = this.#match(pattern)?.[0]
      if (value === undefined) continue
      if (type === 'operator') this.#balance(value, open)
      this.#push(type, type === 'string' ? this.#unescape(value.slice(1, -1)) : value)
      this.#advance(this.#position + value.length)
      return
    }
    this.#fail(`unexpected ${JSON.stringify(this.#source[this.#position])}`)
  }

  #balance(operator: string, open: string[]): void {
    const closing = CLOSING[operator]
    if (closing !== undefined) open.push(closing)
    else if (/^[)\]}]$/.test(operator) && open.pop() !== operator)
      this.#fail(`unexpected '${operator}'`)
  }

  // Python's escapes. Unknown ones stay as they are.
  #unescape(literal: string): string {
    const pattern =
      /\\(?:\n|x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([0-7]{1,3})|([\\'"abfnrtv])|([xuUN]))/g
    return literal.replace(pattern, (_all, x, u, U, octal, simple, broken) => {
      if (broken !== undefined) this.#fail(`the escape \\${broken} in a string`)
      if (simple !== undefined) return ESCAPES[simple] ?? simple
      const code = x ?? u ?? U
      if (code !== undefined) {
        const point = Number.parseInt(code, 16)
        if (point > 0x10ffff) this.#fail(`the escape \\U${code} in a string`)
        return String.fromCodePoint(point)
      }
      return octal === undefined ? '' : String.fromCharCode(Number.parseInt(octal, 8))
    })
  }
}

const TOKENS: readonly (readonly [TokenType, RegExp])[] = [
  ['float', FLOAT],
  ['integer', INTEGER],
  ['name', NAME],
  ['string', STRING],
  ['operator', OPERATOR],
]

const ESCAPES: Readonly<Record<string, string>> = {
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
}
