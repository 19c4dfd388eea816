// Arguments of functions, methods and filters to their parameters, as Python binds them.

import { TemplateError, Text } from './text'
import { type NamedValues, toIndex, typeName, Undefined, type Value } from './values'

/** The arguments of one call, by parameter. Each getter checks the type that Python would. */
export class Bound {
  readonly #function: string
  readonly #values: ReadonlyMap<string, Value>

  constructor(name: string, values: ReadonlyMap<string, Value>) {
    this.#function = name
    this.#values = values
  }

  has(parameter: string): boolean {
    return this.#values.has(parameter)
  }

  value(parameter: string): Value | undefined {
    return this.#values.get(parameter)
  }

  /** The value, which may be None, or `otherwise` where it was left out. */
  valueOr(parameter: string, otherwise: Value): Value {
    const value = this.#values.get(parameter)
    return value === undefined ? otherwise : value
  }

  /** Text, or undefined where it was left out or None. */
  optionalText(parameter: string): Text | undefined {
    const value = this.#values.get(parameter)
    if (value === undefined || value === null) return undefined
    if (value instanceof Text) return value
    return this.#refuse(parameter, 'str', value)
  }

  text(parameter: string): Text {
    const value = this.#values.get(parameter)
    if (value instanceof Text) return value
    return this.#refuse(parameter, 'str', value)
  }

  /** An int; `otherwise` where it was left out. */
  index(parameter: string, otherwise: number): number {
    const value = this.#values.get(parameter)
    if (value === undefined) return otherwise
    return toIndex(value, `${this.#function}(): ${parameter}`)
  }

  #refuse(parameter: string, expected: string, value: Value | undefined): never {
    if (value instanceof Undefined) return value.fail()
    const found = value === undefined ? 'nothing' : typeName(value)
    throw new TemplateError(`${this.#function}(): ${parameter} must be ${expected}, not ${found}`)
  }
}

/**
 * `parameters` in order; a name that ends with '?' may be left out.
 */
export function bind(
  name: string,
  parameters: readonly string[],
  positional: readonly Value[],
  named: NamedValues,
  { positionalOnly = false }: { positionalOnly?: boolean } = {},
): Bound {
  if (positional.length > parameters.length) {
    throw new TemplateError(`${name}() takes at most ${parameters.length} arguments`)
  }
  const values = new Map<string, Value>()
  for (const [i, value] of positional.entries()) {
    values.set((parameters[i] as string).replace('?', ''), value)
  }
  for (const [key, value] of named) {
    const isKnown = parameters.includes(key) || parameters.includes(`${key}?`)
    if (positionalOnly || !isKnown) {
      throw new TemplateError(`${name}() takes no argument '${key}' by name`)
    }
    if (values.has(key)) throw new TemplateError(`${name}() got two values for '${key}'`)
    values.set(key, value)
  }
  for (const parameter of parameters) {
    if (!parameter.endsWith('?') && !values.has(parameter)) {
      throw new TemplateError(`${name}() needs an argument '${parameter}'`)
    }
  }
  return new Bound(name, values)
}
