// Parsers for the values of options; what they throw is a usage error.

import { InvalidArgumentError } from 'commander'
import { type DeviceName, parseDevice } from '../device-name'
import { type CacheDtype, KV_DTYPES, type KvDtype } from '../formats'
import { escapeUnsafe } from '../printable'

/** Decimal digits only: no sign, fraction, exponent or other base. A multiple of `step`. */
export function integer(
  least: number,
  most = Number.MAX_SAFE_INTEGER,
  step = 1,
): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
    if (!Number.isSafeInteger(value) || value < least || value > most || value % step !== 0) {
      const kind = step === 1 ? 'an integer' : `a multiple of ${step}`
      throw new InvalidArgumentError(`Expected ${kind} ${range(least, most)}.`)
    }
    return value
  }
}

export function number(least: number, most = Number.MAX_VALUE): (text: string) => number {
  return (text) => {
    const value = /^\d*\.?\d+(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN
    if (Number.isNaN(value) || value < least || value > most) {
      throw new InvalidArgumentError(`Expected a number ${range(least, most)}.`)
    }
    return value
  }
}

/** Above 0. */
export function probability(text: string): number {
  const value = number(0, 1)(text)
  if (value === 0) throw new InvalidArgumentError('Expected a number above 0, at most 1.')
  return value
}

/** Integers between commas, each once. */
export function integers(least: number, most?: number): (text: string) => number[] {
  return (text) => {
    const values = text.split(',').map(integer(least, most))
    if (new Set(values).size < values.length) {
      throw new InvalidArgumentError('Expected each number once.')
    }
    return values
  }
}

/** The same, in ascending order. */
export function budgets(text: string): number[] {
  return integers(1)(text).sort((a, b) => a - b)
}

/** A part of several: i/n, with i from 1 to n. */
export function shard(text: string): { index: number; count: number } {
  const [index, count] = /^(\d{1,6})\/(\d{1,6})$/.exec(text)?.slice(1).map(Number) ?? []
  if (index === undefined || count === undefined || index < 1 || index > count) {
    throw new InvalidArgumentError('Expected i/n with i from 1 to n, as 2/5.')
  }
  return { index, count }
}

/** Names between commas, each once, at most `most` of them. They are printed, so that nothing in them may be unsafe. */
export function names(most: number): (text: string) => string[] {
  return (text) => {
    const list = text.split(',').map((name) => name.trim())
    const isUnsafe = list.some((name) => name === '' || escapeUnsafe(name) !== name)
    if (isUnsafe || list.length > most || new Set(list).size < list.length) {
      throw new InvalidArgumentError(`Expected up to ${most} different names between commas.`)
    }
    return list
  }
}

export function text(value: string): string {
  if (value === '') throw new InvalidArgumentError('Expected a text that is not empty.')
  return value
}

/** For an option that may be given several times. */
export function texts(value: string, previous: readonly string[] = []): string[] {
  return [...previous, text(value)]
}

export function deviceName(text: string): DeviceName {
  try {
    parseDevice(text)
  } catch {
    throw new InvalidArgumentError('Expected auto, cpu, cuda or cuda:N.')
  }
  return text as DeviceName
}

/** One for keys and values, or `keys,values`. */
export function cacheDtypes(text: string): CacheDtype {
  const [keys, values = keys, ...more] = text.split(',')
  const isKnown = (name?: string) => (KV_DTYPES as readonly (string | undefined)[]).includes(name)
  if (!isKnown(keys) || !isKnown(values) || more.length > 0) {
    throw new InvalidArgumentError(`Expected ${KV_DTYPES.join(', ')}, or two of them: keys,values.`)
  }
  return keys === values ? (keys as KvDtype) : { keys: keys as KvDtype, values: values as KvDtype }
}

function range(least: number, most: number): string {
  const unbounded = most === Number.MAX_SAFE_INTEGER || most === Number.MAX_VALUE
  return unbounded ? `of at least ${least}` : `from ${least} to ${most}`
}
