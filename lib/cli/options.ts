// Parsers for the values of options; what they throw is a usage error.

import { InvalidArgumentError } from 'commander'
import { type DeviceName, parseDevice } from '../device'

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

export function deviceName(text: string): DeviceName {
  try {
    parseDevice(text)
  } catch {
    throw new InvalidArgumentError('Expected auto, cpu, cuda or cuda:N.')
  }
  return text as DeviceName
}
