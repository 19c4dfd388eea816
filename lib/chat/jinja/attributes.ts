// What a template reads of a value: attributes, items, slices and the methods of Python's types. Methods that
// would change a value are undefined, as in the sandbox that transformers renders in.

import { bind } from './arguments'
import { formatBraces } from './format'
import { SPACE, TemplateError, Text } from './text'
import {
  Callable,
  Dict,
  DictView,
  equals,
  items,
  lengthOf,
  Markup,
  type NamedValues,
  Namespace,
  Opaque,
  Range,
  Tuple,
  toIndex,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values'

type Method<T> = (self: T, positional: readonly Value[], named: NamedValues) => Value

/** value.name */
export function attribute(value: Value, name: string): Value {
  if (value instanceof Undefined) return value.fail()
  const own = ownAttribute(value, name)
  if (own !== undefined) return own
  const found = ownItem(value, new Text(name))
  return found === undefined ? missing(value, name) : found
}

/** value[key] */
export function item(value: Value, key: Value): Value {
  if (value instanceof Undefined) return value.fail()
  const found = ownItem(value, key)
  if (found !== undefined) return found
  const own = key instanceof Text ? ownAttribute(value, key.text) : undefined
  return own === undefined ? missing(value, toText(key).text) : own
}

function missing(value: Value, name: string): Undefined {
  return new Undefined(`'${typeName(value)}' object has no '${name}', which`)
}

function ownItem(value: Value, key: Value): Value | undefined {
  if (value instanceof Dict) {
    const isHashable = !(key instanceof Dict || Array.isArray(key))
    return isHashable ? value.get(key) : undefined
  }
  if (typeof key !== 'bigint' && typeof key !== 'boolean') return undefined
  const index = Number(key)
  if (value instanceof Text) return value.at(index)
  const list = sequence(value)
  return list?.at(index < 0 && -index > list.length ? list.length : index)
}

function sequence(value: Value): readonly Value[] | undefined {
  if (Array.isArray(value)) return value
  if (value instanceof Tuple) return value.items
  if (value instanceof Range) return value.items()
  return undefined
}

/** value[start:stop:step] */
export function slice(value: Value, start: Value, stop: Value, step: Value): Value {
  if (value instanceof Undefined) return value.fail()
  if (value instanceof Text) {
    const { length } = value
    const isPlain = step === null || step === 1n
    if (isPlain && length === value.text.length) {
      const [from, to] = sliceBounds(length, start, stop, 1)
      return value.slice(from, Math.max(from, to))
    }
    const characters = value.characters()
    return Text.join(sliceIndices(length, start, stop, step).map((i) => characters[i] as Text))
  }
  const list = sequence(value)
  if (list === undefined || value instanceof Range) {
    throw new TemplateError(`a '${typeName(value)}' cannot be sliced`)
  }
  const picked = sliceIndices(list.length, start, stop, step).map((i) => list[i] as Value)
  return value instanceof Tuple ? new Tuple(picked) : picked
}

function sliceIndices(length: number, start: Value, stop: Value, step: Value): number[] {
  const by = step === null ? 1 : toIndex(step, 'slice step')
  if (by === 0) throw new TemplateError('slice step cannot be zero')
  const [from, to] = sliceBounds(length, start, stop, by)
  const indices: number[] = []
  for (let i = from; by > 0 ? i < to : i > to; i += by) indices.push(i)
  return indices
}

function sliceBounds(length: number, start: Value, stop: Value, step: number): [number, number] {
  const [low, high] = step > 0 ? [0, length] : [-1, length - 1]
  const bound = (value: Value, otherwise: number) => {
    if (value === null) return otherwise
    const index = toIndex(value, 'slice index')
    return Math.min(Math.max(index < 0 ? index + length : index, low), high)
  }
  return step > 0 ? [bound(start, low), bound(stop, high)] : [bound(start, high), bound(stop, low)]
}

function ownAttribute(value: Value, name: string): Value | undefined {
  if (name.startsWith('_')) return undefined
  if (value instanceof Text) return method(value, TEXT_METHODS, TEXT_UNSUPPORTED, name)
  if (value instanceof Dict)
    return method(value, DICT_METHODS, DICT_UNSUPPORTED, name, DICT_CHANGING)
  if (Array.isArray(value))
    return method<readonly Value[]>(value, LIST_METHODS, NONE, name, LIST_CHANGING)
  if (value instanceof Tuple) {
    const at = value.names.indexOf(name)
    return at >= 0 ? value.items[at] : method(value.items, TUPLE_METHODS, NONE, name)
  }
  if (value instanceof Namespace) return value.attributes.get(name)
  if (value instanceof Callable) return value.attributes.get(name)
  if (value instanceof Opaque) return value.attribute(name)
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') {
    return method(value, NO_METHODS, NUMBER_UNSUPPORTED, name)
  }
  if (value instanceof Range) return method(value, NO_METHODS, RANGE_UNSUPPORTED, name)
  if (value instanceof Markup || value instanceof DictView) {
    throw new TemplateError(`the attribute '${name}' of a ${typeName(value)} is not supported`)
  }
  return undefined
}

function method<T extends Value | readonly Value[]>(
  self: T,
  methods: ReadonlyMap<string, Method<T>>,
  unsupported: ReadonlySet<string>,
  name: string,
  changing: ReadonlySet<string> = NONE,
): Value | undefined {
  if (changing.has(name)) return new Undefined(`the method '${name}' would change its value and so`)
  const call = methods.get(name)
  if (call !== undefined) return new Callable((positional, named) => call(self, positional, named))
  if (unsupported.has(name)) throw new TemplateError(`the method '${name}' is not supported`)
  return undefined
}

const NONE: ReadonlySet<string> = new Set()
const NO_METHODS: ReadonlyMap<string, Method<Value>> = new Map()
// What Python has and templates have no use for: refused by name.
const TEXT_UNSUPPORTED = new Set([
  'casefold',
  'encode',
  'expandtabs',
  'format_map',
  'isidentifier',
  'maketrans',
  'translate',
])
const DICT_UNSUPPORTED = new Set(['fromkeys'])
const DICT_CHANGING = new Set(['clear', 'pop', 'popitem', 'setdefault', 'update'])
const LIST_CHANGING = new Set([
  'append',
  'clear',
  'extend',
  'insert',
  'pop',
  'remove',
  'reverse',
  'sort',
])
const NUMBER_UNSUPPORTED = new Set(
  'as_integer_ratio bit_count bit_length conjugate denominator from_bytes fromhex hex imag is_integer numerator real to_bytes'.split(
    ' ',
  ),
)
const RANGE_UNSUPPORTED = new Set(['count', 'index', 'start', 'step', 'stop'])

function sequenceMethods(): [string, Method<readonly Value[]>][] {
  return [
    [
      'count',
      (self, positional, named) => {
        const value = bind('count', ['value'], positional, named, POSITIONAL).value(
          'value',
        ) as Value
        return BigInt(self.filter((one) => equals(one, value)).length)
      },
    ],
    [
      'index',
      (self, positional, named) => {
        const args = bind('index', ['value', 'start?', 'stop?'], positional, named, POSITIONAL)
        const [start, stop] = sliceBounds(
          self.length,
          args.value('start') ?? null,
          args.value('stop') ?? null,
          1,
        )
        const value = args.value('value') as Value
        const at = self.findIndex((one, i) => i >= start && i < stop && equals(one, value))
        if (at < 0) throw new TemplateError(`index(): the value is not in the list`)
        return BigInt(at)
      },
    ],
  ]
}

const POSITIONAL = { positionalOnly: true }
const TUPLE_METHODS = new Map(sequenceMethods())
const LIST_METHODS = new Map<string, Method<readonly Value[]>>([
  ...sequenceMethods(),
  [
    'copy',
    (self, positional, named) => {
      bind('copy', [], positional, named)
      return [...self]
    },
  ],
])

const DICT_METHODS = new Map<string, Method<Dict>>([
  [
    'get',
    (self, positional, named) => {
      const args = bind('get', ['key', 'default?'], positional, named, POSITIONAL)
      const found = self.get(args.value('key') as Value)
      return found === undefined ? (args.value('default') ?? null) : found
    },
  ],
  ...(['keys', 'values', 'items'] as const).map((kind): [string, Method<Dict>] => [
    kind,
    (self, positional, named) => {
      bind(kind, [], positional, named)
      return new DictView(self, kind)
    },
  ]),
  [
    'copy',
    (self, positional, named) => {
      bind('copy', [], positional, named)
      return Dict.from(self.entries())
    },
  ],
])

// str

function withoutArguments(name: string, call: (self: Text) => Value): [string, Method<Text>] {
  return [
    name,
    (self, positional, named) => {
      bind(name, [], positional, named)
      return call(self)
    },
  ]
}

function stripMethod(name: string, side: 'left' | 'right' | 'both'): [string, Method<Text>] {
  return [
    name,
    (self, positional, named) =>
      self.strip(
        side,
        bind(name, ['chars?'], positional, named, POSITIONAL).optionalText('chars')?.text,
      ),
  ]
}

function splitMethod(name: 'split' | 'rsplit'): [string, Method<Text>] {
  return [
    name,
    (self, positional, named) => {
      const args = bind(name, ['sep?', 'maxsplit?'], positional, named)
      const separator = args.optionalText('sep')?.text
      const limit = args.index('maxsplit', -1)
      if (separator === '') throw new TemplateError(`${name}(): empty separator`)
      if (name === 'split') {
        return separator === undefined ? self.splitSpaces(limit) : self.split(separator, limit)
      }
      return separator === undefined
        ? self.splitSpacesFromEnd(limit)
        : self.splitFromEnd(separator, limit)
    },
  ]
}

function partitionMethod(name: 'partition' | 'rpartition'): [string, Method<Text>] {
  return [
    name,
    (self, positional, named) => {
      const separator = bind(name, ['sep'], positional, named, POSITIONAL).text('sep').text
      if (separator === '') throw new TemplateError(`${name}(): empty separator`)
      const at =
        name === 'partition' ? self.text.indexOf(separator) : self.text.lastIndexOf(separator)
      const empty = new Text('')
      if (at < 0)
        return new Tuple(name === 'partition' ? [self, empty, empty] : [empty, empty, self])
      const end = at + separator.length
      return new Tuple([self.slice(0, at), self.slice(at, end), self.slice(end)])
    },
  ]
}

// The part of a text that start and stop, in code points, bound; undefined where start lies behind its end.
function within(self: Text, start: Value | undefined, stop: Value | undefined): Text | undefined {
  const { length } = self
  if (start !== undefined && start !== null && toIndex(start, 'start') > length) return undefined
  const [from, to] = sliceBounds(length, start ?? null, stop ?? null, 1)
  if (from > to) return undefined
  return slice(self, BigInt(from), BigInt(to), null) as Text
}

function affixMethod(
  name: string,
  test: (text: string, affix: string) => boolean,
): [string, Method<Text>] {
  return [
    name,
    (self, positional, named) => {
      const args = bind(name, ['affix', 'start?', 'end?'], positional, named, POSITIONAL)
      const affix = args.value('affix') as Value
      const affixes = affix instanceof Tuple ? affix.items : [args.text('affix')]
      const part = within(self, args.value('start'), args.value('end'))
      return affixes.some((one) => {
        if (!(one instanceof Text))
          throw new TemplateError(`${name}(): '${typeName(one)}' is no string`)
        return part !== undefined && test(part.text, one.text)
      })
    },
  ]
}

function findMethod(name: string, fromEnd: boolean, mustFind: boolean): [string, Method<Text>] {
  return [
    name,
    (self, positional, named) => {
      const args = bind(name, ['sub', 'start?', 'end?'], positional, named, POSITIONAL)
      const part = within(self, args.value('start'), args.value('end'))
      const sought = args.text('sub').text
      const at =
        part === undefined
          ? -1
          : fromEnd
            ? part.text.lastIndexOf(sought)
            : part.text.indexOf(sought)
      if (at >= 0) {
        const [start] = sliceBounds(self.length, args.value('start') ?? null, null, 1)
        return BigInt(start + (part as Text).slice(0, at).length)
      }
      if (mustFind) throw new TemplateError(`${name}(): substring not found`)
      return -1n
    },
  ]
}

function justifyMethod(
  name: string,
  left: (missing: number, width: number) => number,
): [string, Method<Text>] {
  return [
    name,
    (self, positional, named) => {
      const args = bind(name, ['width', 'fill?'], positional, named, POSITIONAL)
      const fill = args.has('fill') ? args.text('fill') : new Text(' ')
      if (fill.length !== 1) throw new TemplateError(`${name}(): the fill must be one character`)
      const width = args.index('width', 0)
      const gap = width - self.length
      if (gap <= 0) return self
      const before = left(gap, width)
      return Text.join([fill.repeat(before), self, fill.repeat(gap - before)])
    },
  ]
}

/** As str.replace; a negative count replaces all. */
export function replaceText(self: Text, old: Text, by: Text, count: number): Text {
  if (old.text !== '') return Text.join(self.split(old.text, count), by)
  const characters = self.characters()
  const gaps = count < 0 ? characters.length + 1 : Math.min(count, characters.length + 1)
  const parts = characters.flatMap((one, i) => (i < gaps ? [by, one] : [one]))
  return Text.join(gaps > characters.length ? [...parts, by] : parts)
}

/** The first letter in title case: of the digraphs and ligatures only their first part. */
export function titleCase(char: string): string {
  const upper = char.toUpperCase()
  if (/^[\u01c4-\u01cc\u01f1-\u01f3]$/u.test(char)) {
    return TITLE_DIGRAPHS.find((group) => group.includes(char))?.[1] as string
  }
  const [first = '', ...rest] = upper
  return rest.length === 0 ? upper : first + rest.join('').toLowerCase()
}

const TITLE_DIGRAPHS = [
  '\u01c4\u01c5\u01c6',
  '\u01c7\u01c8\u01c9',
  '\u01ca\u01cb\u01cc',
  '\u01f1\u01f2\u01f3',
]
const CASED = /[\p{Uppercase}\p{Lowercase}\p{Lt}]/u
const EVERY = {
  isalnum: /^[\p{L}\p{N}]+$/u,
  isalpha: /^\p{L}+$/u,
  isascii: /^[\0-\x7f]*$/,
  isdecimal: /^\p{Nd}+$/u,
  isdigit: /^[\p{Nd}\u00b2\u00b3\u00b9\u2070\u2074-\u2079\u2080-\u2089]+$/u,
  isnumeric: /^\p{N}+$/u,
  isprintable: /^(?:[^\p{C}\p{Z}]| )*$/u,
  isspace: new RegExp(`^[${SPACE}]+$`),
}

export function isLowerCase(text: string): boolean {
  return /\p{Lowercase}/u.test(text) && !/[\p{Uppercase}\p{Lt}]/u.test(text)
}

export function isUpperCase(text: string): boolean {
  return /\p{Uppercase}/u.test(text) && !/[\p{Lowercase}\p{Lt}]/u.test(text)
}

export function capitalize(self: Text): Text {
  const [first] = self.characters()
  if (first === undefined) return self
  const rest = self.mapCase((text) => text.toLowerCase()).slice(first.text.toLowerCase().length)
  return first.mapCase(titleCase).concat(rest)
}

// Cased letters that follow a cased one are lower, the others in title case.
function title(self: Text): Text {
  let isInWord = false
  let end = 0
  const parts = self.characters().map((one) => {
    end += one.text.length
    const after = self.text.slice(end, end + SIGMA_CONTEXT)
    const changed = one.mapCase(isInWord ? (text) => lowerInWord(text, after) : titleCase)
    isInWord = CASED.test(one.text)
    return changed
  })
  return Text.join(parts)
}

/** How far behind a capital sigma a letter is looked for, past marks that have no case. */
const SIGMA_CONTEXT = 32

// A sigma at a word's end is lowered to another letter.
function lowerInWord(char: string, after: string): string {
  return char === '\u03a3' ? (`A${char}${after}`.toLowerCase()[1] as string) : char.toLowerCase()
}

function isTitle(text: string): boolean {
  let isInWord = false
  let hasCased = false
  for (const char of text) {
    const isUpper = /[\p{Uppercase}\p{Lt}]/u.test(char)
    const isLower = /\p{Lowercase}/u.test(char)
    if ((isUpper && isInWord) || (isLower && !isInWord)) return false
    isInWord = isUpper || isLower
    hasCased ||= isInWord
  }
  return hasCased
}

function swapCase(self: Text): Text {
  const swap = (char: string) =>
    /\p{Uppercase}/u.test(char) ? char.toLowerCase() : char.toUpperCase()
  return Text.join(self.characters().map((one) => one.mapCase(swap)))
}

const TEXT_METHODS = new Map<string, Method<Text>>([
  stripMethod('strip', 'both'),
  stripMethod('lstrip', 'left'),
  stripMethod('rstrip', 'right'),
  splitMethod('split'),
  splitMethod('rsplit'),
  partitionMethod('partition'),
  partitionMethod('rpartition'),
  affixMethod('startswith', (text, affix) => text.startsWith(affix)),
  affixMethod('endswith', (text, affix) => text.endsWith(affix)),
  findMethod('find', false, false),
  findMethod('rfind', true, false),
  findMethod('index', false, true),
  findMethod('rindex', true, true),
  justifyMethod('ljust', () => 0),
  justifyMethod('rjust', (missing) => missing),
  justifyMethod('center', centerLeft),
  withoutArguments('upper', (self) => self.mapCase((text) => text.toUpperCase())),
  withoutArguments('lower', (self) => self.mapCase((text) => text.toLowerCase())),
  withoutArguments('capitalize', capitalize),
  withoutArguments('title', title),
  withoutArguments('swapcase', swapCase),
  withoutArguments('islower', (self) => isLowerCase(self.text)),
  withoutArguments('isupper', (self) => isUpperCase(self.text)),
  withoutArguments('istitle', (self) => isTitle(self.text)),
  ...Object.entries(EVERY).map(([name, pattern]) =>
    withoutArguments(name, (self) => pattern.test(self.text)),
  ),
  [
    'splitlines',
    (self, positional, named) => {
      const keep = bind('splitlines', ['keepends?'], positional, named).value('keepends') ?? false
      return self.splitLines(keep === true || (typeof keep === 'bigint' && keep !== 0n))
    },
  ],
  [
    'replace',
    (self, positional, named) => {
      const args = bind('replace', ['old', 'new', 'count?'], positional, named, POSITIONAL)
      return replaceText(self, args.text('old'), args.text('new'), args.index('count', -1))
    },
  ],
  [
    'removeprefix',
    (self, positional, named) => {
      const { text } = bind('removeprefix', ['prefix'], positional, named, POSITIONAL).text(
        'prefix',
      )
      return self.text.startsWith(text) ? self.slice(text.length) : self
    },
  ],
  [
    'removesuffix',
    (self, positional, named) => {
      const { text } = bind('removesuffix', ['suffix'], positional, named, POSITIONAL).text(
        'suffix',
      )
      const isThere = text !== '' && self.text.endsWith(text)
      return isThere ? self.slice(0, self.text.length - text.length) : self
    },
  ],
  [
    'join',
    (self, positional, named) => {
      const list = bind('join', ['items'], positional, named, POSITIONAL).value('items') as Value
      const parts = Array.from(items(list), (one) => {
        if (one instanceof Text) return one
        throw new TemplateError(`join(): '${typeName(one)}' is no string`)
      })
      return Text.join(parts, self)
    },
  ],
  [
    'count',
    (self, positional, named) => {
      const args = bind('count', ['sub', 'start?', 'end?'], positional, named, POSITIONAL)
      const part = within(self, args.value('start'), args.value('end'))
      if (part === undefined) return 0n
      const { text } = args.text('sub')
      return BigInt(text === '' ? part.length + 1 : part.split(text, -1).length - 1)
    },
  ],
  [
    'zfill',
    (self, positional, named) => {
      const width = bind('zfill', ['width'], positional, named, POSITIONAL).index('width', 0)
      const sign = /^[-+]/.exec(self.text)?.[0].length ?? 0
      const zeros = new Text('0').repeat(width - self.length)
      return Text.join([self.slice(0, sign), zeros, self.slice(sign)])
    },
  ],
  ['format', (self, positional, named) => formatBraces(self, positional, named)],
])

/** How much of a gap str.center puts on the left. */
export function centerLeft(missing: number, width: number): number {
  return Math.floor(missing / 2) + (missing & width & 1)
}

/** For tests that ask whether a value can be gone through by index. */
export function isSequence(value: Value): boolean {
  const isIndexed =
    value instanceof Text ||
    value instanceof Dict ||
    value instanceof Undefined ||
    value instanceof Markup
  return isIndexed || (sequence(value) !== undefined && lengthOf(value) !== undefined)
}
