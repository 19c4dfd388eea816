// The functions that every template can call: Jinja2's and those that transformers adds.

import { bind } from './arguments'
import { strftime } from './strftime'
import { TemplateError, Text } from './text'
import {
  Callable,
  Dict,
  items,
  type NamedValues,
  Namespace,
  Opaque,
  Range,
  toIndex,
  toText,
  type Value,
} from './values'

/** Longest range: that of the sandbox. */
const MAX_RANGE = 100_000

/** `now` is what strftime_now tells. */
export function globals(now: () => Date): [string, Value][] {
  return [
    ['range', new Callable(range)],
    ['dict', new Callable((positional, named) => dictOf(positional, named))],
    ['namespace', new Callable(namespace)],
    ['cycler', new Callable((values) => new Cycler(values))],
    ['joiner', new Callable(joiner)],
    [
      'lipsum',
      new Callable(() => {
        throw new TemplateError("the function 'lipsum' is not supported")
      }),
    ],
    [
      'raise_exception',
      new Callable((positional, named) => {
        const message = bind('raise_exception', ['message'], positional, named).value('message')
        throw new TemplateError(toText(message as Value).text)
      }),
    ],
    [
      'strftime_now',
      new Callable((positional, named) => {
        const format = bind('strftime_now', ['format'], positional, named).text('format')
        return new Text(strftime(now(), format.text))
      }),
    ],
  ]
}

function range(positional: readonly Value[], named: NamedValues): Value {
  if (named.size > 0) throw new TemplateError('range() takes no arguments by name')
  const numbers = positional.map((one) => toIndex(one, 'range()'))
  if (numbers.length < 1 || numbers.length > 3)
    throw new TemplateError('range() takes 1 to 3 arguments')
  const [start, stop, step = 1] = numbers.length === 1 ? [0, numbers[0] as number] : numbers
  if (step === 0) throw new TemplateError('range(): the step is zero')
  const result = new Range(start as number, stop as number, step)
  if (result.length > MAX_RANGE)
    throw new TemplateError(`a range of more than ${MAX_RANGE} numbers`)
  return result
}

function dictOf(positional: readonly Value[], named: NamedValues): Dict {
  const value = bind('dict', ['items?'], positional, new Map()).value('items')
  const dict = new Dict()
  if (value instanceof Dict) for (const [key, one] of value.entries()) dict.set(key, one)
  else if (value !== undefined) {
    for (const pair of items(value)) {
      const [key, one, ...rest] = items(pair)
      if (key === undefined || one === undefined || rest.length > 0) {
        throw new TemplateError('dict() takes pairs of a key and a value')
      }
      dict.set(key, one)
    }
  }
  for (const [name, one] of named) dict.set(new Text(name), one)
  return dict
}

function namespace(positional: readonly Value[], named: NamedValues): Value {
  const attributes = new Map<string, Value>()
  for (const [key, value] of dictOf(positional, named).entries()) {
    if (key instanceof Text) attributes.set(key.text, value)
  }
  return new Namespace(attributes)
}

function joiner(positional: readonly Value[], named: NamedValues): Value {
  const separator = bind('joiner', ['sep?'], positional, named).valueOr('sep', new Text(', '))
  let isUsed = false
  return new Callable(() => {
    const result = isUsed ? separator : new Text('')
    isUsed = true
    return result
  })
}

class Cycler extends Opaque {
  readonly #values: readonly Value[]
  #at = 0

  constructor(values: readonly Value[]) {
    super()
    if (values.length === 0) throw new TemplateError('cycler() needs values')
    this.#values = values
  }

  attribute(name: string): Value | undefined {
    switch (name) {
      case 'current':
        return this.#values[this.#at]
      case 'next':
        return new Callable(() => {
          const value = this.#values[this.#at] as Value
          this.#at = (this.#at + 1) % this.#values.length
          return value
        })
      case 'reset':
        return new Callable(() => {
          this.#at = 0
          return null
        })
      default:
        return undefined
    }
  }

  print(): string {
    throw new TemplateError('a cycler has no text')
  }
}
