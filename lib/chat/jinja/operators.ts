// Python's arithmetic on the values of a template.

import type { Operator } from './ast'
import { formatPercent } from './format'
import { TemplateError, Text } from './text'
import {
  isNumber,
  Markup,
  Tuple,
  toIndex,
  toNumber,
  typeName,
  Undefined,
  type Value,
} from './values'

/** Longest list that a template may build. */
const MAX_ITEMS = 1 << 20
/** Largest int, in bits. */
const MAX_BITS = 1 << 16

export function binary(operator: Operator, left: Value, right: Value): Value {
  if (left instanceof Undefined) return left.fail()
  // Only a format takes an undefined value on its right.
  if (right instanceof Undefined && !(operator === '%' && left instanceof Text)) return right.fail()
  if (left instanceof Markup || right instanceof Markup) {
    throw new TemplateError(`'${operator}' on markup is not supported`)
  }
  if (isNumber(left) && isNumber(right))
    return arithmetic(operator, toNumber(left), toNumber(right))
  if (operator === '+') {
    if (left instanceof Text && right instanceof Text) return left.concat(right)
    if (Array.isArray(left) && Array.isArray(right)) return limited([...left, ...right])
    if (left instanceof Tuple && right instanceof Tuple)
      return new Tuple(limited([...left.items, ...right.items]))
  }
  if (operator === '%' && left instanceof Text) return formatPercent(left, right)
  if (operator === '*') {
    const product = isInteger(right)
      ? repeated(left, right)
      : isInteger(left)
        ? repeated(right, left)
        : undefined
    if (product !== undefined) return product
  }
  throw new TemplateError(
    `'${operator}' does not take '${typeName(left)}' and '${typeName(right)}'`,
  )
}

export function modulo(left: Value, right: Value): Value {
  return binary('%', left, right)
}

export function negate(operator: '+' | '-', value: Value): Value {
  if (value instanceof Undefined) return value.fail()
  if (!isNumber(value)) throw new TemplateError(`'${operator}' does not take '${typeName(value)}'`)
  const number = toNumber(value)
  return operator === '-' ? -number : number
}

function isInteger(value: Value): value is bigint | boolean {
  return typeof value === 'bigint' || typeof value === 'boolean'
}

function repeated(value: Value, times: bigint | boolean): Value | undefined {
  const count = Math.max(0, toIndex(times, 'count'))
  if (value instanceof Text) return value.repeat(count)
  if (!(Array.isArray(value) || value instanceof Tuple)) return undefined
  const list = Array.isArray(value) ? value : value.items
  if (list.length * count > MAX_ITEMS)
    throw new TemplateError(`a list of more than ${MAX_ITEMS} items`)
  const result = Array.from(
    { length: list.length * count },
    (_, i) => list[i % list.length] as Value,
  )
  return Array.isArray(value) ? result : new Tuple(result)
}

function limited(list: Value[]): Value[] {
  if (list.length > MAX_ITEMS) throw new TemplateError(`a list of more than ${MAX_ITEMS} items`)
  return list
}

function arithmetic(
  operator: Operator,
  left: bigint | number,
  right: bigint | number,
): bigint | number {
  if (typeof left === 'bigint' && typeof right === 'bigint') return ofInts(operator, left, right)
  return ofFloats(operator, Number(left), Number(right))
}

function ofInts(operator: Operator, left: bigint, right: bigint): bigint | number {
  if (right === 0n && ['/', '//', '%'].includes(operator))
    throw new TemplateError('division by zero')
  switch (operator) {
    case '+':
      return left + right
    case '-':
      return left - right
    case '*':
      return checked(left, right, bits(left) + bits(right), (a, b) => a * b)
    case '/':
      return Number(left) / Number(right)
    case '//':
      return floorDivide(left, right)
    case '%':
      return left - right * floorDivide(left, right)
    case '**':
      if (right < 0n) return ofFloats('**', Number(left), Number(right))
      return checked(left, right, bits(left) * Number(right), (a, b) => a ** b)
  }
}

function checked(
  left: bigint,
  right: bigint,
  size: number,
  compute: (left: bigint, right: bigint) => bigint,
): bigint {
  if (size > MAX_BITS) throw new TemplateError(`an int of more than ${MAX_BITS} bits`)
  return compute(left, right)
}

function bits(value: bigint): number {
  return value >= -1n && value <= 1n ? 0 : value.toString(16).length * 4
}

// Rounded down, where BigInt's division rounds to zero.
function floorDivide(left: bigint, right: bigint): bigint {
  const quotient = left / right
  return left % right !== 0n && left < 0n !== right < 0n ? quotient - 1n : quotient
}

function ofFloats(operator: Operator, left: number, right: number): number {
  if (right === 0 && ['/', '//', '%'].includes(operator))
    throw new TemplateError('division by zero')
  switch (operator) {
    case '+':
      return left + right
    case '-':
      return left - right
    case '*':
      return left * right
    case '/':
      return left / right
    case '//':
      return Math.floor((left - floatModulo(left, right)) / right + 0.5)
    case '%':
      return floatModulo(left, right)
    case '**': {
      const result = left ** right
      if (Number.isNaN(result) && !Number.isNaN(left) && !Number.isNaN(right)) {
        throw new TemplateError('complex numbers are not supported')
      }
      const overflows = !Number.isFinite(result) && Number.isFinite(left) && Number.isFinite(right)
      if (overflows) throw new TemplateError('the power is too large or divides by zero')
      return result
    }
  }
}

// Of the sign of the divisor.
function floatModulo(left: number, right: number): number {
  const rest = left % right
  if (rest === 0) return right < 0 ? -0 : 0
  return rest < 0 !== right < 0 ? rest + right : rest
}
