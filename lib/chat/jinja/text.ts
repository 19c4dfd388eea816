// Strings of a template that remember which characters the caller supplied, and Python's view of strings:
// counted in code points, with Python's idea of white space.

/** Longest string that a template may build, in UTF-16 units. */
const MAX_LENGTH = 1 << 26

/** Python's str.isspace, as the inside of a character class. JavaScript's \s has U+FEFF and lacks U+001C to U+001F, U+0085. */
export const SPACE =
  '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000'

const LEADING_SPACE = new RegExp(`^[${SPACE}]+`)
const SPACE_RUN = new RegExp(`[${SPACE}]+`, 'g')
const IS_SPACE = new RegExp(`[${SPACE}]`)
/** Where Python's splitlines splits. */
const LINE_BREAKS = '\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029'
const LINE_END = new RegExp(`\\r\\n|[${LINE_BREAKS}]`, 'g')
const SURROGATE = /[\ud800-\udfff]/

/** What a template reports as Python would raise: an operation that its values do not allow. */
export class TemplateError extends Error {
  override readonly name = 'TemplateError'
}

/**
 * A string. `origin` tells for each UTF-16 unit whether the caller supplied it: true or false for all of them,
 * else a string of '0' and '1' as long as the text.
 */
export class Text {
  readonly text: string
  readonly origin: boolean | string

  constructor(text: string, origin: boolean | string = false) {
    if (text.length > MAX_LENGTH)
      throw new TemplateError(`a text of more than ${MAX_LENGTH} characters`)
    this.text = text
    this.origin = origin
  }

  static join(parts: readonly Text[], separator: Text = EMPTY): Text {
    const all =
      separator.text === ''
        ? parts.filter((part) => part.text !== '')
        : parts.flatMap((part, i) => (i === 0 ? [part] : [separator, part]))
    const [first] = all
    if (first === undefined) return EMPTY
    const total = all.reduce((length, part) => length + part.text.length, 0)
    if (total > MAX_LENGTH) throw new TemplateError(`a text of more than ${MAX_LENGTH} characters`)
    const text = all.map((part) => part.text).join('')
    const { origin } = first
    const uniform = typeof origin === 'boolean' && all.every((part) => part.origin === origin)
    return new Text(text, uniform ? origin : all.map((part) => part.mask()).join(''))
  }

  concat(...others: readonly Text[]): Text {
    return Text.join([this, ...others])
  }

  repeat(count: number): Text {
    if (count <= 0 || this.text === '') return EMPTY
    if (this.text.length * count > MAX_LENGTH) {
      throw new TemplateError(`a text of more than ${MAX_LENGTH} characters`)
    }
    const { origin } = this
    return new Text(
      this.text.repeat(count),
      typeof origin === 'string' ? origin.repeat(count) : origin,
    )
  }

  /** By UTF-16 units, as String.slice. */
  slice(start: number, end?: number): Text {
    const { origin } = this
    return new Text(
      this.text.slice(start, end),
      typeof origin === 'string' ? origin.slice(start, end) : origin,
    )
  }

  /** `pattern` is global. What replaces a match has the origin of the match's first character. */
  replace(pattern: RegExp, by: (match: string) => string): Text {
    const parts: Text[] = []
    let end = 0
    for (const match of this.text.matchAll(pattern)) {
      const supplied = this.suppliedAt(match.index)
      parts.push(this.slice(end, match.index), new Text(by(match[0]), supplied))
      end = match.index + match[0].length
    }
    return end === 0 ? this : Text.join([...parts, this.slice(end)])
  }

  /** A change of case, which may change a character's length. */
  mapCase(change: (text: string) => string): Text {
    const text = change(this.text)
    if (typeof this.origin === 'boolean' || text.length === this.text.length) {
      return new Text(text, this.origin)
    }
    return Text.join(this.characters().map((one) => new Text(change(one.text), one.suppliedAt(0))))
  }

  /** One Text for each code point. */
  characters(): Text[] {
    const result: Text[] = []
    let start = 0
    for (const { length } of this.text) {
      result.push(this.slice(start, start + length))
      start += length
    }
    return result
  }

  /** In code points. */
  get length(): number {
    return SURROGATE.test(this.text) ? Array.from(this.text).length : this.text.length
  }

  /** The character at a code point's index; undefined outside. */
  at(index: number): Text | undefined {
    if (!SURROGATE.test(this.text)) {
      const at = index < 0 ? this.text.length + index : index
      return at >= 0 && at < this.text.length ? this.slice(at, at + 1) : undefined
    }
    return this.characters().at(index)
  }

  /** Without the code points of `chars` (default: white space) at the chosen ends. */
  strip(side: 'left' | 'right' | 'both', chars?: string): Text {
    const isStripped =
      chars === undefined ? (char: string) => IS_SPACE.test(char) : (char: string) => set.has(char)
    const set = new Set(chars)
    let start = 0
    let end = this.text.length
    if (side !== 'right') {
      while (start < end) {
        const char = String.fromCodePoint(this.text.codePointAt(start) as number)
        if (!isStripped(char)) break
        start += char.length
      }
    }
    if (side !== 'left') {
      while (end > start) {
        const pair = this.text.slice(Math.max(start, end - 2), end)
        const char = /^[\ud800-\udbff][\udc00-\udfff]$/.test(pair) ? pair : pair.slice(-1)
        if (!isStripped(char)) break
        end -= char.length
      }
    }
    return this.slice(start, end)
  }

  /** Python's split() without a separator. */
  splitSpaces(limit: number): Text[] {
    const parts: Text[] = []
    let start = LEADING_SPACE.exec(this.text)?.[0].length ?? 0
    for (const match of this.text.matchAll(SPACE_RUN)) {
      if (match.index < start) continue
      if (parts.length === limit) break
      parts.push(this.slice(start, match.index))
      start = match.index + match[0].length
    }
    if (start < this.text.length) parts.push(this.slice(start))
    return parts
  }

  /** Python's rsplit() without a separator. */
  splitSpacesFromEnd(limit: number): Text[] {
    const parts: Text[] = []
    let rest = this.strip('right')
    while (rest.text !== '' && parts.length !== limit) {
      let start = rest.text.length
      while (start > 0 && !IS_SPACE.test(rest.text[start - 1] as string)) start--
      parts.unshift(rest.slice(start))
      rest = rest.slice(0, start).strip('right')
    }
    if (rest.text !== '') parts.unshift(rest)
    return parts
  }

  /** At most `limit` splits; negative: all. */
  split(separator: string, limit: number): Text[] {
    const parts: Text[] = []
    let start = 0
    while (parts.length !== limit) {
      const found = this.text.indexOf(separator, start)
      if (found < 0) break
      parts.push(this.slice(start, found))
      start = found + separator.length
    }
    parts.push(this.slice(start))
    return parts
  }

  /** The last `limit` splits; negative: all. */
  splitFromEnd(separator: string, limit: number): Text[] {
    const parts: Text[] = []
    let end = this.text.length
    while (parts.length !== limit && end >= separator.length) {
      const found = this.text.lastIndexOf(separator, end - separator.length)
      if (found < 0) break
      parts.unshift(this.slice(found + separator.length, end))
      end = found
    }
    parts.unshift(this.slice(0, end))
    return parts
  }

  splitLines(keepEnds: boolean): Text[] {
    const lines: Text[] = []
    let start = 0
    for (const match of this.text.matchAll(LINE_END)) {
      const end = match.index + match[0].length
      lines.push(this.slice(start, keepEnds ? end : match.index))
      start = end
    }
    if (start < this.text.length) lines.push(this.slice(start))
    return lines
  }

  /** Neighbouring units of one origin, in order. */
  runs(): { text: string; content: boolean }[] {
    if (typeof this.origin === 'boolean') {
      return this.text === '' ? [] : [{ text: this.text, content: this.origin }]
    }
    const runs: { text: string; content: boolean }[] = []
    for (const { 0: run, index } of this.origin.matchAll(/0+|1+/g)) {
      runs.push({ text: this.text.slice(index, index + run.length), content: run[0] === '1' })
    }
    return runs
  }

  suppliedAt(unit: number): boolean {
    return typeof this.origin === 'string' ? this.origin[unit] === '1' : this.origin
  }

  private mask(): string {
    if (typeof this.origin === 'string') return this.origin
    return (this.origin ? '1' : '0').repeat(this.text.length)
  }
}

export const EMPTY = new Text('')

/** -1, 0 or 1 by code points, as Python compares strings. */
export function compareText(a: string, b: string): number {
  if (a === b) return 0
  if (!SURROGATE.test(a) && !SURROGATE.test(b)) return a < b ? -1 : 1
  const left = Array.from(a, (char) => char.codePointAt(0) as number)
  const right = Array.from(b, (char) => char.codePointAt(0) as number)
  const at = left.findIndex((code, i) => code !== right[i])
  if (at < 0) return -1
  const other = right[at]
  return other === undefined || (left[at] as number) > other ? 1 : -1
}
