// A Jinja template as transformers compiles and renders it: trim_blocks, lstrip_blocks, the sandbox that lets no
// template change its values, the loop controls and the generation tag.

import { globals } from './globals'
import { render } from './interpreter'
import { parseTemplate, type Template } from './parser'
import { TemplateError, Text } from './text'
import { Dict, type Value } from './values'

/** Deepest nesting of what a template is given. */
const MAX_DEPTH = 100

/**
 * A JavaScript value, as JSON would hold it, as a template sees it. Whole numbers are ints. Properties that are
 * undefined are left out. `isContent` says whether its strings are the caller's.
 *
 * Throws TemplateError for what JSON does not hold.
 */
export function toValue(value: unknown, isContent: boolean, name: string, depth = 0): Value {
  if (depth > MAX_DEPTH) throw new TemplateError(`${name} is nested deeper than ${MAX_DEPTH}`)
  if (value === null || typeof value === 'boolean' || typeof value === 'bigint') return value
  if (typeof value === 'number') return Number.isInteger(value) ? BigInt(value) : value
  if (typeof value === 'string') return new Text(value, isContent)
  if (Array.isArray(value)) {
    return Array.from(value, (one, i) => toValue(one, isContent, `${name}[${i}]`, depth + 1))
  }
  // Of any realm; no Map, Date, buffer or the like.
  if (Object.prototype.toString.call(value) === '[object Object]') {
    return Dict.from(
      Object.entries(value as object)
        .filter(([, one]) => one !== undefined)
        .map(([key, one]) => [
          new Text(key, isContent),
          toValue(one, isContent, `${name}.${key}`, depth + 1),
        ]),
    )
  }
  const what = Object.prototype.toString.call(value).slice('[object '.length, -1)
  throw new TemplateError(`${name} is no JSON value but ${what}`)
}

/** A compiled template. */
export class JinjaTemplate {
  readonly #template: Template

  /** Throws TemplateError, with the line. */
  constructor(source: string) {
    this.#template = withoutOverflow(() => parseTemplate(source))
  }

  /** Throws TemplateError where Python would raise. */
  render(variables: Iterable<readonly [string, Value]>, now: () => Date): Text {
    return withoutOverflow(() => render(this.#template, new Map([...globals(now), ...variables])))
  }
}

// What nests too deep or grows too long for JavaScript is an error of the template.
function withoutOverflow<T>(run: () => T): T {
  try {
    return run()
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause
    throw new TemplateError('it nests too deep or builds too much', { cause })
  }
}
