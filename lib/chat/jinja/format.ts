// Python's printf-style formatting (the % operator and the filter format) and str.format.

import { TemplateError, Text } from './text'
import {
  Dict,
  isNumber,
  type NamedValues,
  repr,
  Tuple,
  toNumber,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values'

const CONVERSION =
  /%(?:\(([^)]*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?[hlL]?([diouxXeEfFgGcrsa%])?/g
/** Widths and precisions above it are refused. */
const MAX_WIDTH = 10_000

/** template % values. */
export function formatPercent(template: Text, values: Value): Text {
  const list = values instanceof Tuple ? values.items : [values]
  const parts: Text[] = []
  let used = 0
  let byName = false
  let end = 0
  for (const match of template.text.matchAll(CONVERSION)) {
    const [all, name, flags, width, precision, kind] = match
    parts.push(template.slice(end, match.index))
    end = match.index + all.length
    if (kind === undefined || width === '*' || precision === '*') {
      throw new TemplateError(`the format '${all}' is not supported`)
    }
    if (kind === '%') {
      parts.push(new Text('%', template.suppliedAt(match.index)))
      continue
    }
    let value: Value | undefined
    if (name === undefined) {
      value = list[used++]
    } else {
      byName = true
      if (!(values instanceof Dict)) throw new TemplateError('a format by name needs a dict')
      value = values.get(new Text(name))
    }
    if (value === undefined) throw new TemplateError(`no value for the format '${all}'`)
    parts.push(
      pad(convert(value, kind, flags ?? '', precision), flags ?? '', Number(width ?? 0), kind),
    )
  }
  parts.push(template.slice(end))
  // What has items by key counts as a mapping, of which any number may be used.
  const isMapping = !(
    values instanceof Tuple ||
    values instanceof Text ||
    values === null ||
    isNumber(values)
  )
  if (!byName && used < list.length && !isMapping) {
    throw new TemplateError('more values than formats')
  }
  return Text.join(parts)
}

function convert(value: Value, kind: string, flags: string, precision: string | undefined): Text {
  const digits = precision === undefined ? undefined : Number(precision)
  if (digits !== undefined && digits > 100)
    throw new TemplateError(`precision ${digits} is not supported`)
  if (kind === 's' || kind === 'r') {
    const text = kind === 's' ? toText(value) : repr(value)
    return digits === undefined ? text : Text.join(text.characters().slice(0, digits))
  }
  if (value instanceof Undefined) return value.fail()
  if (!isNumber(value)) throw new TemplateError(`%${kind} needs a number, not '${typeName(value)}'`)
  const number = toNumber(value)
  if (kind === 'd' || kind === 'i' || kind === 'u') {
    const whole = typeof number === 'bigint' ? number : BigInt(Math.trunc(finite(number)))
    return signed(String(whole < 0n ? -whole : whole).padStart(digits ?? 0, '0'), whole < 0n, flags)
  }
  if (kind === 'f' || kind === 'F') {
    const float = finite(Number(number))
    const isNegative = float < 0 || Object.is(float, -0)
    return signed(fixed(Math.abs(float), digits ?? 6), isNegative, flags)
  }
  if (
    (kind === 'x' || kind === 'X' || kind === 'o') &&
    typeof number === 'bigint' &&
    !flags.includes('#')
  ) {
    const text = (number < 0n ? -number : number).toString(kind === 'o' ? 8 : 16)
    return signed(kind === 'X' ? text.toUpperCase() : text, number < 0n, flags)
  }
  throw new TemplateError(`the format %${kind} is not supported`)
}

function finite(value: number): number {
  if (!Number.isFinite(value)) throw new TemplateError('cannot format a number that is not finite')
  return value
}

/** Rounded to nearest, ties to even, as the exact value of the number decides. */
export function fixed(value: number, digits: number): string {
  const rounded = value.toFixed(digits)
  if (digits >= 60) return rounded
  const exact = value.toFixed(Math.min(100, digits + 40))
  if (!/^50*$/.test(exact.slice(exact.indexOf('.') + 1 + digits))) return rounded
  const down = exact.slice(0, exact.indexOf('.') + 1 + digits).replace(/\.$/, '')
  return /[02468]$/.test(down) ? down : rounded
}

function signed(digits: string, isNegative: boolean, flags: string): Text {
  const positive = flags.includes('+') ? '+' : flags.includes(' ') ? ' ' : ''
  return new Text(`${isNegative ? '-' : positive}${digits}`)
}

function pad(text: Text, flags: string, width: number, kind: string): Text {
  if (width > MAX_WIDTH) throw new TemplateError(`width ${width} is not supported`)
  const missing = width - text.length
  if (missing <= 0) return text
  if (flags.includes('-')) return text.concat(new Text(' '.repeat(missing)))
  if (!flags.includes('0') || kind === 's' || kind === 'r')
    return new Text(' '.repeat(missing)).concat(text)
  const sign = /^[-+ ]/.exec(text.text)?.[0] ?? ''
  return Text.join([new Text(sign), new Text('0'.repeat(missing)), text.slice(sign.length)])
}

const FIELD = /\{\{|\}\}|\{(\w*)(?:!([rs]))?(?::(0?)(\d*)(?:\.(\d+))?([dfs]?))?\}|[{}]/g

/** template.format(...): fields by position or name, with a width and a precision. */
export function formatBraces(
  template: Text,
  positional: readonly Value[],
  named: NamedValues,
): Text {
  const parts: Text[] = []
  let next = 0
  let end = 0
  for (const match of template.text.matchAll(FIELD)) {
    const [all, name, conversion, zero, width, precision, kind] = match
    parts.push(template.slice(end, match.index))
    end = match.index + all.length
    if (all === '{{' || all === '}}') {
      parts.push(template.slice(match.index, match.index + 1))
      continue
    }
    if (name === undefined) throw new TemplateError('this format string is not supported')
    const value = /^\d*$/.test(name)
      ? positional[name === '' ? next++ : Number(name)]
      : named.get(name)
    if (value === undefined) throw new TemplateError(`no value for the field {${name}}`)
    parts.push(formatField(value, { conversion, zero, width, precision, kind }))
  }
  parts.push(template.slice(end))
  return Text.join(parts)
}

interface FieldFormat {
  conversion: string | undefined
  zero: string | undefined
  width: string | undefined
  precision: string | undefined
  kind: string | undefined
}

function formatField(value: Value, format: FieldFormat): Text {
  const { conversion, zero = '', width = '', precision, kind = '' } = format
  const shown = conversion === 'r' ? repr(value) : conversion === 's' ? toText(value) : value
  const isPlain = zero === '' && width === '' && precision === undefined && kind === ''
  if (isPlain) return toText(shown)
  if (shown instanceof Text && kind !== 'd' && kind !== 'f' && zero === '') {
    return pad(convert(shown, 's', '', precision), '-', Number(width), 's')
  }
  if (typeof shown === 'bigint' && kind !== 's' && kind !== 'f' && precision === undefined) {
    return pad(convert(shown, 'd', '', undefined), zero, Number(width), 'd')
  }
  if ((typeof shown === 'bigint' || typeof shown === 'number') && kind === 'f') {
    return pad(convert(shown, 'f', '', precision), zero, Number(width), 'f')
  }
  throw new TemplateError(`this format of a '${typeName(shown)}' is not supported`)
}
