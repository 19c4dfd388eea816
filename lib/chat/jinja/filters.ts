// Jinja2's filters: `value | name(arguments)`.

import { type Bound, bind } from './arguments'
import { capitalize, centerLeft, item, replaceText } from './attributes'
import { fixed, formatPercent } from './format'
import { toJson } from './json'
import { binary } from './operators'
import { applyTest } from './tests'
import { SPACE, TemplateError, Text } from './text'
import {
  compare,
  Dict,
  DictView,
  equals,
  hash,
  Iter,
  isNumber,
  isTrue,
  items,
  lengthOf,
  Markup,
  type NamedValues,
  Range,
  Tuple,
  toIndex,
  toNumber,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values'

type Filter = (value: Value, positional: readonly Value[], named: NamedValues) => Value

export function applyFilter(
  name: string,
  value: Value,
  positional: readonly Value[],
  named: NamedValues,
): Value {
  const filter = FILTERS.get(name)
  if (filter !== undefined) return filter(value, positional, named)
  const why = UNSUPPORTED.has(name) ? 'is not supported' : 'does not exist'
  throw new TemplateError(`the filter '${name}' ${why}`)
}

/** Whether Jinja2 has such a filter, supported here or not. */
export function hasFilter(name: string): boolean {
  return FILTERS.has(name) || UNSUPPORTED.has(name)
}

// Filters for web pages, and one that draws lots.
const UNSUPPORTED = new Set(
  'attr filesizeformat pprint random striptags urlencode urlize wordwrap xmlattr'.split(' '),
)

// A filter with named parameters.
function filter(
  name: string,
  parameters: readonly string[],
  apply: (value: Value, args: Bound) => Value,
): [string, Filter] {
  return [
    name,
    (value, positional, named) => apply(value, bind(name, parameters, positional, named)),
  ]
}

function onText(name: string, change: (text: Text) => Text): [string, Filter] {
  return filter(name, [], (value) => change(toText(value)))
}

// Attributes: 'a.0.b', each part an item of what the parts before give.
function getter(attribute: Value, otherwise: Value = null): (value: Value) => Value {
  const parts = attributeParts(attribute)
  return (value) => {
    let result = value
    for (const part of parts) {
      result = item(result, part)
      if (otherwise !== null && result instanceof Undefined) result = otherwise
    }
    return result
  }
}

function attributeParts(attribute: Value): Value[] {
  if (attribute === null) return []
  if (!(attribute instanceof Text)) return [attribute]
  return attribute
    .split('.', -1)
    .map((part) => (/^\p{Nd}+$/u.test(part.text) ? (parseInteger(part.text, 10) ?? part) : part))
}

function foldCase(value: Value): Value {
  return value instanceof Text ? value.mapCase((text) => text.toLowerCase()) : value
}

// The key that sort, unique, min and max go by.
function keyOf(args: Bound): (value: Value) => Value {
  const get = getter(args.value('attribute') ?? null)
  return isTrue(args.value('case_sensitive') ?? false) ? get : (value) => foldCase(get(value))
}

function sortKey(args: Bound): (value: Value) => Value {
  const attribute = args.value('attribute') ?? null
  const attributes = attribute instanceof Text ? attribute.split(',', -1) : [attribute]
  const getters = attributes.map((one) => getter(one))
  const isCaseSensitive = isTrue(args.value('case_sensitive') ?? false)
  return (value) => getters.map((get) => (isCaseSensitive ? get(value) : foldCase(get(value))))
}

function sorted(
  values: Iterable<Value>,
  key: (value: Value) => Value,
  isReversed: boolean,
): Value[] {
  const keyed = Array.from(values, (value) => ({ value, key: key(value) }))
  keyed.sort((a, b) => (isReversed ? compare(b.key, a.key) : compare(a.key, b.key)))
  return keyed.map(({ value }) => value)
}

function extreme(name: 'min' | 'max', sign: number): [string, Filter] {
  return filter(name, ['case_sensitive?', 'attribute?'], (value, args) => {
    const key = keyOf(args)
    let best: { value: Value; key: Value } | undefined
    for (const one of items(value)) {
      const its = key(one)
      if (best === undefined || sign * compare(its, best.key) > 0) best = { value: one, key: its }
    }
    return best === undefined ? new Undefined('the result of an empty sequence') : best.value
  })
}

// select, reject, selectattr and rejectattr: by a test, or by truth.
function selection(name: string, withAttribute: boolean, keeps: boolean): [string, Filter] {
  function* select(value: Value, positional: readonly Value[], named: NamedValues) {
    if (!isTrue(value)) return
    const rest = [...positional]
    if (withAttribute && rest.length === 0) throw new TemplateError(`${name} needs an attribute`)
    const get = withAttribute ? getter(rest.shift() as Value) : (one: Value) => one
    const test = rest.shift()
    if (test !== undefined && !(test instanceof Text)) {
      throw new TemplateError(`${name} needs the name of a test`)
    }
    for (const one of items(value)) {
      const its = get(one)
      if ((test === undefined ? isTrue(its) : testByName(test.text, its, rest, named)) === keeps)
        yield one
    }
  }
  return [name, (value, positional, named) => new Iter(select(value, positional, named))]
}

/** Tests, with those that ask whether a name is a filter's or a test's. */
export function testByName(
  name: string,
  value: Value,
  positional: readonly Value[],
  named: NamedValues,
): boolean {
  if (name === 'filter') {
    bind(name, [], positional, named)
    return value instanceof Text && hasFilter(value.text)
  }
  return applyTest(name, value, positional, named)
}

function* mapped(value: Value, positional: readonly Value[], named: NamedValues): Generator<Value> {
  if (!isTrue(value)) return
  const apply = mapping(positional, named)
  for (const one of items(value)) yield apply(one)
}

function mapping(positional: readonly Value[], named: NamedValues): (value: Value) => Value {
  if (positional.length === 0 && named.has('attribute')) {
    const args = bind('map', ['attribute', 'default?'], [], named)
    return getter(args.value('attribute') as Value, args.value('default') ?? null)
  }
  const [name, ...rest] = positional
  if (!(name instanceof Text)) throw new TemplateError('map needs the name of a filter')
  return (value) => applyFilter(name.text, value, rest, named)
}

function* unique(value: Value, key: (value: Value) => Value): Generator<Value> {
  const seen = new Set<string>()
  for (const one of items(value)) {
    const id = hash(key(one))
    if (!seen.has(id)) yield one
    seen.add(id)
  }
}

function* batches(value: Value, size: number, fill: Value): Generator<Value> {
  let batch: Value[] = []
  for (const one of items(value)) {
    if (batch.length === size) {
      yield batch
      batch = []
    }
    batch.push(one)
  }
  if (batch.length === 0) return
  while (fill !== null && batch.length < size) batch.push(fill)
  yield batch
}

function* slices(value: Value, count: number, fill: Value): Generator<Value> {
  const list = [...items(value)]
  if (count <= 0) throw new TemplateError('slice needs a positive count')
  const size = Math.floor(list.length / count)
  const larger = list.length % count
  let start = 0
  for (let i = 0; i < count; i++) {
    const end = start + size + (i < larger ? 1 : 0)
    const part = list.slice(start, end)
    if (fill !== null && i >= larger) part.push(fill)
    yield part
    start = end
  }
}

function groupBy(value: Value, args: Bound): Value {
  const get = getter(args.value('attribute') as Value, args.value('default') ?? null)
  const isCaseSensitive = isTrue(args.value('case_sensitive') ?? false)
  const key = isCaseSensitive ? get : (one: Value) => foldCase(get(one))
  const groups: { key: Value; list: Value[] }[] = []
  for (const one of sorted(items(value), key, false)) {
    const its = key(one)
    const last = groups.at(-1)
    if (last !== undefined && equals(last.key, its)) last.list.push(one)
    else groups.push({ key: its, list: [one] })
  }
  return groups.map(({ list }) => new Tuple([get(list[0] as Value), list], ['grouper', 'list']))
}

function* dictItems(value: Value): Generator<Value> {
  if (value instanceof Undefined) return
  if (!(value instanceof Dict)) throw new TemplateError(`items of a '${typeName(value)}'`)
  for (const entry of value.entries()) yield new Tuple(entry)
}

function dictSort(value: Value, args: Bound): Value {
  const by = args.has('by') ? args.text('by').text : 'key'
  if (by !== 'key' && by !== 'value') throw new TemplateError("dictsort sorts by 'key' or 'value'")
  if (!(value instanceof Dict)) throw new TemplateError(`dictsort of a '${typeName(value)}'`)
  const isCaseSensitive = isTrue(args.value('case_sensitive') ?? false)
  const key = (pair: Value) => {
    const one = (pair as Tuple).items[by === 'key' ? 0 : 1] as Value
    return isCaseSensitive ? one : foldCase(one)
  }
  const pairs = value.entries().map((entry) => new Tuple(entry))
  return sorted(pairs, key, isTrue(args.value('reverse') ?? false))
}

// Backwards, where a value has a backwards.
function reversed(value: Value): Value[] | undefined {
  const isReversible =
    value instanceof Text ||
    Array.isArray(value) ||
    value instanceof Tuple ||
    value instanceof Dict ||
    value instanceof DictView ||
    value instanceof Range ||
    value instanceof Undefined
  return isReversible ? [...items(value)].reverse() : undefined
}

function parseInteger(text: string, base: number): bigint | undefined {
  const digits = toAsciiDigits(text.replace(new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, 'g'), ''))
  const match = /^([-+]?)(0[box])?([0-9a-z]+(?:_[0-9a-z]+)*)$/i.exec(digits)
  if (match === null) return undefined
  const prefix = (match[2] ?? '').toLowerCase()
  const radix = { '0b': 2, '0o': 8, '0x': 16 }[prefix]
  let body = (match[3] as string).replaceAll('_', '').toLowerCase()
  let used = base
  if (base === 0) {
    if (radix === undefined && /^0+[1-9]/.test(body)) return undefined
    used = radix ?? 10
  } else if (radix !== undefined && radix !== base) {
    body = prefix + body
  }
  if ([...body].some((digit) => Number.parseInt(digit, 36) >= used)) return undefined
  const value = [...body].reduce(
    (sum, digit) => sum * BigInt(used) + BigInt(Number.parseInt(digit, 36)),
    0n,
  )
  return match[1] === '-' ? -value : value
}

// Python reads the decimal digits of every script.
function toAsciiDigits(text: string): string {
  return text.replace(/\p{Nd}/gu, (digit) => {
    let zero = digit.codePointAt(0) as number
    while (
      /\p{Nd}/u.test(String.fromCodePoint(zero - 1)) &&
      (digit.codePointAt(0) as number) - zero < 9
    )
      zero--
    return digit <= '9' ? digit : String((digit.codePointAt(0) as number) - zero)
  })
}

const FLOAT =
  /^[-+]?(?:(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:e[-+]?\d+(?:_\d+)*)?|inf(?:inity)?|nan)$/i

function parseFloatText(text: string): number | undefined {
  const digits = toAsciiDigits(text.replace(new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, 'g'), ''))
  if (!FLOAT.test(digits)) return undefined
  if (/inf/i.test(digits)) return digits.startsWith('-') ? -Infinity : Infinity
  if (/nan/i.test(digits)) return Number.NaN
  return Number(digits.replaceAll('_', ''))
}

function toInt(value: Value, args: Bound): Value {
  const otherwise = args.valueOr('default', 0n)
  if (value instanceof Undefined) return value.fail()
  if (value instanceof Text) {
    const base = args.index('base', 10)
    if (base !== 0 && (base < 2 || base > 36)) return otherwise
    const whole = parseInteger(value.text, base)
    if (whole !== undefined) return whole
    const float = parseFloatText(value.text)
    return float !== undefined && Number.isFinite(float) ? BigInt(Math.trunc(float)) : otherwise
  }
  if (!isNumber(value)) return otherwise
  const number = toNumber(value)
  if (typeof number === 'bigint') return number
  if (Number.isNaN(number)) return otherwise
  if (!Number.isFinite(number)) throw new TemplateError('int of an infinite number')
  return BigInt(Math.trunc(number))
}

function toFloat(value: Value, args: Bound): Value {
  const otherwise = args.valueOr('default', 0)
  if (value instanceof Undefined) return value.fail()
  if (value instanceof Text) return parseFloatText(value.text) ?? otherwise
  return isNumber(value) ? Number(toNumber(value)) : otherwise
}

function round(value: Value, args: Bound): Value {
  const precision = args.index('precision', 0)
  const method = args.has('method') ? args.text('method').text : 'common'
  if (!isNumber(value)) throw new TemplateError(`round of a '${typeName(value)}'`)
  if (precision < 0 || precision > 50)
    throw new TemplateError(`the precision ${precision} is not supported`)
  const number = toNumber(value)
  if (method === 'common') {
    if (typeof number === 'bigint') return number
    if (!Number.isFinite(number)) return number
    return Math.sign(number) * Number(fixed(Math.abs(number), precision))
  }
  if (method !== 'ceil' && method !== 'floor') {
    throw new TemplateError("round takes the methods 'common', 'ceil' and 'floor'")
  }
  return Math[method](Number(number) * 10 ** precision) / 10 ** precision
}

function indent(value: Value, args: Bound): Value {
  if (!(value instanceof Text)) throw new TemplateError(`indent of a '${typeName(value)}'`)
  const width = args.valueOr('width', 4n)
  const margin = width instanceof Text ? width : new Text(' ').repeat(toIndex(width, 'indent'))
  const newline = new Text('\n')
  const lines = value.concat(newline).splitLines(false)
  const isBlankToo = isTrue(args.value('blank') ?? false)
  const indented = lines.map((line, i) =>
    i === 0 || (line.text === '' && !isBlankToo) ? line : margin.concat(line),
  )
  const result = Text.join(indented, newline)
  return isTrue(args.value('first') ?? false) ? margin.concat(result) : result
}

function truncate(value: Value, args: Bound): Value {
  if (!(value instanceof Text)) throw new TemplateError(`truncate of a '${typeName(value)}'`)
  const length = args.index('length', 255)
  const end = args.has('end') ? args.text('end') : new Text('...')
  const leeway = (args.value('leeway') ?? null) === null ? 5 : args.index('leeway', 5)
  if (length < end.length || leeway < 0)
    throw new TemplateError('truncate: the length is too small')
  if (value.length <= length + leeway) return value
  const kept = Text.join(value.characters().slice(0, length - end.length))
  const whole = isTrue(args.value('killwords') ?? false)
    ? kept
    : (kept.splitFromEnd(' ', 1)[0] as Text)
  return whole.concat(end)
}

function center(value: Value, args: Bound): Value {
  const text = toText(value)
  const width = args.index('width', 80)
  const gap = Math.max(0, width - text.length)
  const left = gap === 0 ? 0 : centerLeft(gap, width)
  const blank = new Text(' ')
  return Text.join([blank.repeat(left), text, blank.repeat(gap - left)])
}

function sum(value: Value, args: Bound): Value {
  const get = getter(args.value('attribute') ?? null)
  let total = args.valueOr('start', 0n)
  if (total instanceof Text) throw new TemplateError('sum does not add strings')
  for (const one of items(value)) total = binary('+', total, get(one))
  return total
}

// A title as the filter makes it, which splits words at fewer characters than the method.
function title(text: Text): Text {
  const pattern = new RegExp(`[-${SPACE}({\\[<]+`, 'g')
  const words: Text[] = []
  let start = 0
  for (const { 0: gap, index } of text.text.matchAll(pattern)) {
    words.push(text.slice(start, index), text.slice(index, index + gap.length))
    start = index + gap.length
  }
  words.push(text.slice(start))
  return Text.join(
    words.map((word) => {
      const [first = word] = word.characters()
      const rest = word.slice(first.text.length)
      return first
        .mapCase((one) => one.toUpperCase())
        .concat(rest.mapCase((one) => one.toLowerCase()))
    }),
  )
}

const HTML: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&#39;',
  '"': '&#34;',
}

function escapeHtml(text: Text): Markup {
  return new Markup(text.replace(/[&<>'"]/g, (char) => HTML[char] as string))
}

function length(value: Value): Value {
  const result = lengthOf(value)
  if (result === undefined) throw new TemplateError(`a '${typeName(value)}' has no length`)
  return BigInt(result)
}

function orDefault(value: Value, args: Bound): Value {
  const isMissing =
    value instanceof Undefined || (isTrue(args.value('boolean') ?? false) && !isTrue(value))
  return isMissing ? args.valueOr('default_value', new Text('')) : value
}

const FILTERS: ReadonlyMap<string, Filter> = new Map<string, Filter>([
  ['tojson', toJson],
  ['map', (value, positional, named) => new Iter(mapped(value, positional, named))],
  selection('select', false, true),
  selection('reject', false, false),
  selection('selectattr', true, true),
  selection('rejectattr', true, false),
  onText('upper', (text) => text.mapCase((one) => one.toUpperCase())),
  onText('lower', (text) => text.mapCase((one) => one.toLowerCase())),
  onText('capitalize', capitalize),
  onText('title', title),
  filter('string', [], (value) => (value instanceof Markup ? value : toText(value))),
  filter('trim', ['chars?'], (value, args) =>
    toText(value).strip('both', args.optionalText('chars')?.text),
  ),
  filter('replace', ['old', 'new', 'count?'], (value, args) =>
    replaceText(
      toText(value),
      toText(args.value('old') as Value),
      toText(args.value('new') as Value),
      (args.value('count') ?? null) === null ? -1 : args.index('count', -1),
    ),
  ),
  filter('join', ['d?', 'attribute?'], (value, args) => {
    const get = getter(args.value('attribute') ?? null)
    const separator = toText(args.valueOr('d', new Text('')))
    return Text.join(
      Array.from(items(value), (one) => toText(get(one))),
      separator,
    )
  }),
  filter('indent', ['width?', 'first?', 'blank?'], indent),
  filter('truncate', ['length?', 'killwords?', 'end?', 'leeway?'], truncate),
  filter('center', ['width?'], center),
  filter('wordcount', [], (value) =>
    BigInt(toText(value).text.match(/[\p{L}\p{N}_]+/gu)?.length ?? 0),
  ),
  [
    'format',
    (value, positional, named) => {
      if (positional.length > 0 && named.size > 0) {
        throw new TemplateError('format takes arguments by position or by name, not both')
      }
      const byName = Dict.from([...named].map(([name, one]) => [new Text(name), one]))
      return formatPercent(toText(value), named.size > 0 ? byName : new Tuple(positional))
    },
  ],
  filter('e', [], (value) => (value instanceof Markup ? value : escapeHtml(toText(value)))),
  filter('escape', [], (value) => (value instanceof Markup ? value : escapeHtml(toText(value)))),
  filter('forceescape', [], (value) => escapeHtml(toText(value))),
  filter('safe', [], (value) => new Markup(toText(value))),
  filter('length', [], length),
  filter('count', [], length),
  filter('list', [], (value) => [...items(value)]),
  filter('first', [], (value) => {
    const { done, value: first } = items(value)[Symbol.iterator]().next()
    return done ? new Undefined('the first item of an empty sequence') : first
  }),
  filter('last', [], (value) => {
    const backwards = reversed(value)
    if (backwards === undefined) throw new TemplateError(`a '${typeName(value)}' has no last item`)
    const [last = new Undefined('the last item of an empty sequence')] = backwards
    return last
  }),
  filter('reverse', [], (value) => {
    if (value instanceof Text) return Text.join(value.characters().reverse())
    const backwards = reversed(value)
    return backwards === undefined ? [...items(value)].reverse() : new Iter(backwards)
  }),
  filter('items', [], (value) => new Iter(dictItems(value))),
  filter('dictsort', ['case_sensitive?', 'by?', 'reverse?'], dictSort),
  filter('sort', ['reverse?', 'case_sensitive?', 'attribute?'], (value, args) =>
    sorted(items(value), sortKey(args), isTrue(args.value('reverse') ?? false)),
  ),
  filter(
    'unique',
    ['case_sensitive?', 'attribute?'],
    (value, args) => new Iter(unique(value, keyOf(args))),
  ),
  extreme('min', -1),
  extreme('max', 1),
  filter('sum', ['attribute?', 'start?'], sum),
  filter(
    'batch',
    ['linecount', 'fill_with?'],
    (value, args) =>
      new Iter(batches(value, args.index('linecount', 0), args.value('fill_with') ?? null)),
  ),
  filter(
    'slice',
    ['slices', 'fill_with?'],
    (value, args) =>
      new Iter(slices(value, args.index('slices', 0), args.value('fill_with') ?? null)),
  ),
  filter('groupby', ['attribute', 'default?', 'case_sensitive?'], groupBy),
  filter('abs', [], (value) => {
    if (!isNumber(value)) throw new TemplateError(`abs of a '${typeName(value)}'`)
    const number = toNumber(value)
    return number < 0 || Object.is(number, -0) ? -number : number
  }),
  filter('int', ['default?', 'base?'], toInt),
  filter('float', ['default?'], toFloat),
  filter('round', ['precision?', 'method?'], round),
  filter('default', ['default_value?', 'boolean?'], orDefault),
  filter('d', ['default_value?', 'boolean?'], orDefault),
])
