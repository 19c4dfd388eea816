// Python's json.dumps, as transformers' filter tojson calls it.

import { bind } from './arguments'
import { compareText, TemplateError, Text } from './text'
import {
  Dict,
  floatRepr,
  isTrue,
  items,
  type NamedValues,
  Tuple,
  toIndex,
  typeName,
  type Value,
} from './values'

/** Deepest nesting of what is written. */
const MAX_DEPTH = 500

interface Style {
  ascii: boolean
  /** What one level is indented by; undefined: all in one line. */
  indent: string | undefined
  itemSeparator: Text
  keySeparator: Text
  sortKeys: boolean
}

/** The filter tojson: ensure_ascii, indent, separators and sort_keys, by position or name. */
export function toJson(value: Value, positional: readonly Value[], named: NamedValues): Text {
  const args = bind(
    'tojson',
    ['ensure_ascii?', 'indent?', 'separators?', 'sort_keys?'],
    positional,
    named,
  )
  const indent = indentOf(args.value('indent') ?? null)
  const separators = args.value('separators') ?? null
  const [item, key] =
    separators === null
      ? [new Text(indent === undefined ? ', ' : ','), new Text(': ')]
      : Array.from(items(separators))
  if (!(item instanceof Text && key instanceof Text)) {
    throw new TemplateError('tojson(): separators must be two strings')
  }
  return write(
    value,
    {
      ascii: isTrue(args.value('ensure_ascii') ?? false),
      indent,
      itemSeparator: item,
      keySeparator: key,
      sortKeys: isTrue(args.value('sort_keys') ?? false),
    },
    0,
  )
}

function indentOf(indent: Value): string | undefined {
  if (indent === null) return undefined
  return indent instanceof Text ? indent.text : ' '.repeat(Math.max(0, toIndex(indent, 'indent')))
}

function write(value: Value, style: Style, depth: number): Text {
  if (depth > MAX_DEPTH) throw new TemplateError(`tojson(): nested deeper than ${MAX_DEPTH}`)
  if (value === null) return new Text('null')
  if (typeof value === 'boolean') return new Text(value ? 'true' : 'false')
  if (typeof value === 'bigint') return new Text(String(value))
  if (typeof value === 'number') return new Text(jsonFloat(value))
  if (value instanceof Text) return quote(value, style.ascii)
  if (Array.isArray(value) || value instanceof Tuple) {
    const list = Array.isArray(value) ? value : value.items
    return enclose(
      '[',
      list.map((one) => write(one, style, depth + 1)),
      ']',
      style,
      depth,
    )
  }
  if (value instanceof Dict) {
    const entries = value.entries().map(([key, one]) => [keyText(key), one] as const)
    if (style.sortKeys) entries.sort(([a], [b]) => compareText(a.text, b.text))
    const parts = entries.map(([key, one]) =>
      Text.join([quote(key, style.ascii), style.keySeparator, write(one, style, depth + 1)]),
    )
    return enclose('{', parts, '}', style, depth)
  }
  throw new TemplateError(`a value of type '${typeName(value)}' cannot be written as JSON`)
}

function enclose(
  start: string,
  parts: readonly Text[],
  end: string,
  style: Style,
  depth: number,
): Text {
  if (parts.length === 0) return new Text(start + end)
  const { indent, itemSeparator } = style
  if (indent === undefined) {
    return Text.join([new Text(start), Text.join(parts, itemSeparator), new Text(end)])
  }
  const outer = `\n${indent.repeat(depth)}`
  const inner = new Text(outer + indent)
  const separator = itemSeparator.concat(inner)
  return Text.join([new Text(start), inner, Text.join(parts, separator), new Text(outer + end)])
}

function keyText(key: Value): Text {
  if (key instanceof Text) return key
  if (key === null || typeof key !== 'object') return write(key, ONE_LINE, 0)
  throw new TemplateError(`a key of type '${typeName(key)}' cannot be written as JSON`)
}

function jsonFloat(value: number): string {
  if (Number.isNaN(value)) return 'NaN'
  if (!Number.isFinite(value)) return value > 0 ? 'Infinity' : '-Infinity'
  return floatRepr(value)
}

const SHORT: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
}

function quote(text: Text, ascii: boolean): Text {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what JSON escapes
  const pattern = ascii ? /["\\]|[^ -~]/g : /["\\\x00-\x1f]/g
  const escaped = text.replace(
    pattern,
    (unit) => SHORT[unit] ?? `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
  return Text.join([new Text('"'), escaped, new Text('"')])
}

const ONE_LINE: Style = {
  ascii: false,
  indent: undefined,
  itemSeparator: new Text(', '),
  keySeparator: new Text(': '),
  sortKeys: false,
}
