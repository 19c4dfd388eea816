// Jinja2's tests: `value is name(arguments)`.

import { bind } from './arguments'
import { isLowerCase, isSequence, isUpperCase } from './attributes'
import { modulo } from './operators'
import { TemplateError, Text } from './text'
import {
  Callable,
  compare,
  contains,
  Dict,
  equals,
  isNumber,
  iterate,
  Markup,
  type NamedValues,
  Opaque,
  toText,
  Undefined,
  type Value,
} from './values'

type Test = (value: Value, other: Value) => boolean

const WITHOUT_ARGUMENT: ReadonlyMap<string, (value: Value) => boolean> = new Map([
  ['boolean', (value: Value) => typeof value === 'boolean'],
  [
    'callable',
    (value) => value instanceof Callable || value instanceof Undefined || value instanceof Opaque,
  ],
  ['defined', (value) => !(value instanceof Undefined)],
  ['escaped', (value) => value instanceof Markup],
  ['even', (value) => equals(modulo(value, 2n), 0n)],
  ['false', (value) => value === false],
  ['float', (value) => typeof value === 'number'],
  ['integer', (value) => typeof value === 'bigint'],
  ['iterable', (value) => iterate(value) !== undefined],
  ['lower', (value) => isLowerCase(toText(value).text)],
  ['mapping', (value) => value instanceof Dict],
  ['none', (value) => value === null],
  ['number', isNumber],
  ['odd', (value) => equals(modulo(value, 2n), 1n)],
  ['sequence', isSequence],
  ['string', (value) => value instanceof Text || value instanceof Markup],
  ['true', (value) => value === true],
  ['undefined', (value) => value instanceof Undefined],
  ['upper', (value) => isUpperCase(toText(value).text)],
])

const WITH_ARGUMENT: ReadonlyMap<string, Test> = new Map<string, Test>([
  ['divisibleby', (value, other) => equals(modulo(value, other), 0n)],
  ['in', (value, other) => contains(other, value)],
  ['sameas', isSame],
  ...alike(['eq', '==', 'equalto'], equals),
  ...alike(['ne', '!='], (value, other) => !equals(value, other)),
  ...alike(['lt', '<', 'lessthan'], (value, other) => compare(value, other) < 0),
  ...alike(['le', '<='], (value, other) => compare(value, other) <= 0),
  ...alike(['gt', '>', 'greaterthan'], (value, other) => compare(value, other) > 0),
  ...alike(['ge', '>='], (value, other) => compare(value, other) >= 0),
])

function alike(names: readonly string[], test: Test): [string, Test][] {
  return names.map((name) => [name, test])
}

// Python's identity. It is certain for constants and containers; of equal strings and numbers it depends on
// the interpreter.
function isSame(value: Value, other: Value): boolean {
  const isCertain = (one: Value) => one === null || typeof one === 'boolean'
  if (isCertain(value) || isCertain(other)) return value === other
  const differ =
    typeof value !== typeof other || (typeof value === 'object' && !equals(value, other))
  if (value === other || differ) return value === other
  throw new TemplateError("the test 'sameas' of equal values is not supported")
}

/** The names of all tests. `filter` and `test`, which ask for names, are left to the caller. */
export function hasTest(name: string): boolean {
  return WITHOUT_ARGUMENT.has(name) || WITH_ARGUMENT.has(name)
}

export function applyTest(
  name: string,
  value: Value,
  positional: readonly Value[],
  named: NamedValues,
): boolean {
  const simple = WITHOUT_ARGUMENT.get(name)
  if (simple !== undefined) {
    bind(name, [], positional, named)
    return simple(value)
  }
  const test = WITH_ARGUMENT.get(name)
  if (test === undefined) throw new TemplateError(`no test is named '${name}'`)
  return test(value, bind(name, ['other'], positional, named).value('other') as Value)
}
