// The values of a template with Python's semantics: what is true, equal, smaller, a member, and how it prints.
// An int is a bigint, a float a number, a str a Text, a list an array, None is null.

import { compareText, EMPTY, TemplateError, Text } from './text'

export type Value =
  | null
  | boolean
  | bigint
  | number
  | Text
  | Value[]
  | Tuple
  | Dict
  | Range
  | DictView
  | Iter
  | Namespace
  | Undefined
  | Callable
  | Markup
  | Opaque

/** A name, attribute or item that is not there: prints as nothing, is false, empty, and of no other use. */
export class Undefined {
  readonly #what: string

  constructor(what: string) {
    this.#what = what
  }

  fail(): never {
    throw new TemplateError(`${this.#what} is undefined`)
  }
}

export class Tuple {
  readonly items: readonly Value[]
  /** The names of a named tuple's items. */
  readonly names: readonly string[]

  constructor(items: readonly Value[], names: readonly string[] = []) {
    this.items = items
    this.names = names
  }
}

/** Keys as Python compares them: 1, 1.0 and True are one key. */
export class Dict {
  readonly #entries = new Map<string, [Value, Value]>()

  static from(entries: Iterable<readonly [Value, Value]>): Dict {
    const dict = new Dict()
    for (const [key, value] of entries) dict.set(key, value)
    return dict
  }

  get size(): number {
    return this.#entries.size
  }

  get(key: Value): Value | undefined {
    return this.#entries.get(hash(key))?.[1]
  }

  has(key: Value): boolean {
    return this.#entries.has(hash(key))
  }

  set(key: Value, value: Value): void {
    const id = hash(key)
    const entry = this.#entries.get(id)
    if (entry === undefined) this.#entries.set(id, [key, value])
    else entry[1] = value
  }

  entries(): (readonly [Value, Value])[] {
    return [...this.#entries.values()]
  }

  keys(): Value[] {
    return this.entries().map(([key]) => key)
  }

  values(): Value[] {
    return this.entries().map(([, value]) => value)
  }
}

/** What keys(), values() and items() of a dict give. */
export class DictView {
  readonly dict: Dict
  readonly kind: 'keys' | 'values' | 'items'

  constructor(dict: Dict, kind: 'keys' | 'values' | 'items') {
    this.dict = dict
    this.kind = kind
  }

  items(): Value[] {
    if (this.kind === 'keys') return this.dict.keys()
    if (this.kind === 'values') return this.dict.values()
    return this.dict.entries().map((entry) => new Tuple(entry))
  }
}

export class Range {
  readonly start: number
  readonly stop: number
  readonly step: number

  constructor(start: number, stop: number, step: number) {
    this.start = start
    this.stop = stop
    this.step = step
  }

  get length(): number {
    return Math.max(0, Math.ceil((this.stop - this.start) / this.step))
  }

  items(): bigint[] {
    return Array.from({ length: this.length }, (_, i) => BigInt(this.start + i * this.step))
  }
}

/** A generator or iterator: it can be gone through once and has no length. */
export class Iter {
  readonly iterator: Iterator<Value>

  constructor(items: Iterable<Value>) {
    this.iterator = items[Symbol.iterator]()
  }
}

/** The only value that a template can change. */
export class Namespace {
  readonly attributes: Map<string, Value>

  constructor(attributes: Map<string, Value>) {
    this.attributes = attributes
  }
}

export type NamedValues = ReadonlyMap<string, Value>

/** A function, method or macro. */
export class Callable {
  readonly call: (positional: readonly Value[], named: NamedValues) => Value
  readonly attributes: ReadonlyMap<string, Value>

  constructor(
    call: (positional: readonly Value[], named: NamedValues) => Value,
    attributes: ReadonlyMap<string, Value> = new Map(),
  ) {
    this.call = call
    this.attributes = attributes
  }
}

/** What the filters safe and escape give: it can be printed; text operations on it are not supported. */
export class Markup {
  readonly text: Text

  constructor(text: Text) {
    this.text = text
  }
}

/** A value of the runtime with attributes of its own: the loop, a cycler. */
export abstract class Opaque {
  abstract attribute(name: string): Value | undefined

  abstract print(): string

  /** Of a value that can be called. */
  call(_positional: readonly Value[], _named: NamedValues): Value {
    throw new TemplateError(`${this.print()} cannot be called`)
  }
}

/** Python's name of a value's type. */
export function typeName(value: Value): string {
  if (value === null) return 'NoneType'
  if (typeof value === 'boolean') return 'bool'
  if (typeof value === 'bigint') return 'int'
  if (typeof value === 'number') return 'float'
  if (value instanceof Text) return 'str'
  if (Array.isArray(value)) return 'list'
  if (value instanceof Tuple) return 'tuple'
  if (value instanceof Dict) return 'dict'
  if (value instanceof Range) return 'range'
  if (value instanceof DictView) return `dict_${value.kind}`
  if (value instanceof Iter) return 'generator'
  if (value instanceof Namespace) return 'Namespace'
  if (value instanceof Undefined) return 'Undefined'
  if (value instanceof Markup) return 'Markup'
  return 'object'
}

export function isTrue(value: Value): boolean {
  if (value === null || value instanceof Undefined) return false
  if (typeof value !== 'object') return Boolean(value)
  if (value instanceof Text) return value.text !== ''
  if (value instanceof Markup) return value.text.text !== ''
  const length = lengthOf(value)
  return length === undefined || length > 0
}

/** len(value), or undefined for what has none. */
export function lengthOf(value: Value): number | undefined {
  if (value instanceof Text) return value.length
  if (Array.isArray(value)) return value.length
  if (value instanceof Tuple) return value.items.length
  if (value instanceof Dict) return value.size
  if (value instanceof DictView) return value.dict.size
  if (value instanceof Range) return value.length
  if (value instanceof Undefined) return 0
  if (value instanceof Markup) return value.text.length
  return undefined
}

/** iter(value), or undefined for what has none. */
export function iterate(value: Value): Iterable<Value> | undefined {
  if (value instanceof Text) return value.characters()
  if (Array.isArray(value)) return value
  if (value instanceof Tuple) return value.items
  if (value instanceof Dict) return value.keys()
  if (value instanceof DictView || value instanceof Range) return value.items()
  if (value instanceof Iter) return { [Symbol.iterator]: () => keepOpen(value.iterator) }
  if (value instanceof Undefined) return []
  if (value instanceof Markup) return value.text.characters()
  return undefined
}

// A loop that is left early does not close the iterator: whoever goes on finds the rest.
function keepOpen(iterator: Iterator<Value>): Iterator<Value> {
  return { next: () => iterator.next() }
}

export function items(value: Value): Iterable<Value> {
  const result = iterate(value)
  if (result === undefined) throw new TemplateError(`'${typeName(value)}' object is not iterable`)
  return result
}

export function isNumber(value: Value): value is boolean | bigint | number {
  return typeof value === 'boolean' || typeof value === 'bigint' || typeof value === 'number'
}

/** A bool counts as an int. */
export function toNumber(value: boolean | bigint | number): bigint | number {
  return typeof value === 'boolean' ? BigInt(value) : value
}

/** An int as a JavaScript number: an index, a count. */
export function toIndex(value: Value, what: string): number {
  if (typeof value === 'boolean') return Number(value)
  if (typeof value === 'bigint') return Number(value)
  if (value instanceof Undefined) return value.fail()
  throw new TemplateError(
    `${what}: '${typeName(value)}' object cannot be interpreted as an integer`,
  )
}

export function equals(a: Value, b: Value): boolean {
  // biome-ignore lint/suspicious/noDoubleEquals: 1n == 1 as in Python
  if (isNumber(a) && isNumber(b)) return toNumber(a) == toNumber(b)
  if (a instanceof Markup) return equals(a.text, b)
  if (b instanceof Markup) return equals(a, b.text)
  if (a instanceof Text && b instanceof Text) return a.text === b.text
  if (Array.isArray(a) && Array.isArray(b)) return sameItems(a, b)
  if (a instanceof Tuple && b instanceof Tuple) return sameItems(a.items, b.items)
  if (a instanceof Dict && b instanceof Dict) {
    return (
      a.size === b.size &&
      a.entries().every(([key, value]) => {
        const other = b.get(key)
        return other !== undefined && equals(value, other)
      })
    )
  }
  if (a instanceof Range && b instanceof Range) return sameItems(a.items(), b.items())
  if (a instanceof Undefined && b instanceof Undefined) return true
  return a === b
}

function sameItems(a: readonly Value[], b: readonly Value[]): boolean {
  return a.length === b.length && a.every((item, i) => equals(item, b[i] as Value))
}

/** Negative, 0 or positive; NaN where neither is smaller. Refuses values that Python does not order. */
export function compare(a: Value, b: Value): number {
  if (a instanceof Undefined) return a.fail()
  if (b instanceof Undefined) return b.fail()
  if (isNumber(a) && isNumber(b)) {
    const [x, y] = [toNumber(a), toNumber(b)]
    if (x < y) return -1
    if (x > y) return 1
    // biome-ignore lint/suspicious/noDoubleEquals: 1n == 1 as in Python
    return x == y ? 0 : Number.NaN
  }
  if (a instanceof Text && b instanceof Text) return compareText(a.text, b.text)
  if (Array.isArray(a) && Array.isArray(b)) return compareItems(a, b)
  if (a instanceof Tuple && b instanceof Tuple) return compareItems(a.items, b.items)
  throw new TemplateError(`'${typeName(a)}' and '${typeName(b)}' have no order`)
}

function compareItems(a: readonly Value[], b: readonly Value[]): number {
  const at = a.findIndex((item, i) => i >= b.length || !equals(item, b[i] as Value))
  if (at < 0) return a.length - b.length
  return at >= b.length ? 1 : compare(a[at] as Value, b[at] as Value)
}

/** `item in container`. */
export function contains(container: Value, item: Value): boolean {
  if (container instanceof Text) {
    if (item instanceof Undefined) return item.fail()
    if (!(item instanceof Text)) {
      throw new TemplateError(`'in' needs a string on its left, not '${typeName(item)}'`)
    }
    return container.text.includes(item.text)
  }
  if (container instanceof Dict) return container.has(item)
  if (container instanceof DictView && container.kind === 'keys') return container.dict.has(item)
  if (container instanceof Markup) return contains(container.text, item)
  const all = iterate(container)
  if (all === undefined) {
    throw new TemplateError(`'in' needs a container on its right, not '${typeName(container)}'`)
  }
  for (const one of all) if (equals(one, item)) return true
  return false
}

/** A string that is equal for equal keys. Refuses what Python cannot hash. */
export function hash(key: Value): string {
  if (key === null) return 'none'
  if (isNumber(key)) return `number ${toNumber(key)}`
  if (key instanceof Text) return `text ${key.text}`
  if (key instanceof Tuple) return `tuple ${JSON.stringify(key.items.map(hash))}`
  if (key instanceof Undefined) return 'undefined'
  throw new TemplateError(`unhashable type: '${typeName(key)}'`)
}

/** str(value). */
export function toText(value: Value): Text {
  if (value instanceof Text) return value
  if (value instanceof Markup) return value.text
  if (value instanceof Undefined) return EMPTY
  return repr(value)
}

/** repr(value). */
export function repr(value: Value): Text {
  if (value === null) return new Text('None')
  if (typeof value === 'boolean') return new Text(value ? 'True' : 'False')
  if (typeof value === 'bigint') return new Text(String(value))
  if (typeof value === 'number') return new Text(floatRepr(value))
  if (value instanceof Text) return textRepr(value)
  if (Array.isArray(value)) return enclose('[', value.map(repr), ']')
  if (value instanceof Tuple) {
    return enclose('(', value.items.map(repr), value.items.length === 1 ? ',)' : ')')
  }
  if (value instanceof Dict) return enclose('{', value.entries().map(entryRepr), '}')
  if (value instanceof DictView)
    return enclose(`dict_${value.kind}([`, value.items().map(repr), '])')
  if (value instanceof Range) {
    const { start, stop, step } = value
    return new Text(`range(${step === 1 ? `${start}, ${stop}` : `${start}, ${stop}, ${step}`})`)
  }
  if (value instanceof Undefined) return new Text('Undefined')
  if (value instanceof Namespace) {
    const attributes = Dict.from([...value.attributes].map(([name, one]) => [new Text(name), one]))
    return enclose('<Namespace ', [repr(attributes)], '>')
  }
  if (value instanceof Opaque) return new Text(value.print())
  throw new TemplateError(`a ${typeName(value)} has no text that is the same in every run`)
}

function entryRepr([key, value]: readonly [Value, Value]): Text {
  return repr(key).concat(new Text(': '), repr(value))
}

function enclose(start: string, parts: readonly Text[], end: string): Text {
  return Text.join([new Text(start), Text.join(parts, new Text(', ')), new Text(end)])
}

/** The shortest digits that give the number back, as Python sets them. */
export function floatRepr(value: number): string {
  if (Number.isNaN(value)) return 'nan'
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf'
  if (Object.is(value, -0)) return '-0.0'
  const [digits, power] = value.toExponential().split('e') as [string, string]
  const exponent = Number(power)
  if (exponent < -4 || exponent >= 16) {
    const sign = exponent < 0 ? '-' : '+'
    return `${digits}e${sign}${String(Math.abs(exponent)).padStart(2, '0')}`
  }
  const text = String(value)
  return text.includes('.') ? text : `${text}.0`
}

/** Escaped by Python's repr: what does not print, but for the blank. */
const UNPRINTABLE = /[\p{C}\p{Z}]/u

function textRepr(value: Text): Text {
  const quote = value.text.includes("'") && !value.text.includes('"') ? '"' : "'"
  const escaped = value.replace(/['\\]|[^\x21-\x7e]/gu, (char) => {
    if (char === '\\') return '\\\\'
    if (char === "'") return quote === "'" ? "\\'" : char
    if (char === '\n') return '\\n'
    if (char === '\r') return '\\r'
    if (char === '\t') return '\\t'
    if (char === ' ' || !UNPRINTABLE.test(char)) return char
    const code = char.codePointAt(0) as number
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, '0')}`
    if (code < 0x10000) return `\\u${code.toString(16).padStart(4, '0')}`
    return `\\U${code.toString(16).padStart(8, '0')}`
  })
  return Text.join([new Text(quote), escaped, new Text(quote)])
}
