// Parsers for the values of options; what they throw is a usage error.

import { InvalidArgumentError } from 'commander'

export function integer(least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() === '' || !Number.isSafeInteger(value) || value < least || value > most) {
      const range =
        most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`
      throw new InvalidArgumentError(`Expected an integer ${range}.`)
    }
    return value
  }
}

export function number(least: number, most = Number.POSITIVE_INFINITY): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() === '' || !Number.isFinite(value) || value < least || value > most) {
      const range =
        most === Number.POSITIVE_INFINITY ? `of at least ${least}` : `from ${least} to ${most}`
      throw new InvalidArgumentError(`Expected a number ${range}.`)
    }
    return value
  }
}

export function integers(least: number): (text: string) => number[] {
  return (text) => text.split(',').map(integer(least))
}
