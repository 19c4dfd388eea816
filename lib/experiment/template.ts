// Prompts from data: {{name}} stands for a field of the item.

import { HogwildError } from '../errors'

const FIELD = /\{\{\s*([^{}]*?)\s*\}\}/g

/**
 * `template` with each {{name}} replaced. Values that are no text stand as JSON. `what` is for messages.
 *
 * Throws HOGWILD_INVALID_ARGUMENT for a name that `fields` does not have.
 */
export function fillTemplate(
  template: string,
  fields: Readonly<Record<string, unknown>>,
  what: string,
): string {
  return template.replace(FIELD, (_, name: string) => {
    const value = Object.hasOwn(fields, name) ? fields[name] : undefined
    if (value === undefined) {
      const known = Object.keys(fields).join(', ')
      const message = `${what} has no "${name}", which the template asks for; it has ${known}`
      throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
    }
    return typeof value === 'string' ? value : JSON.stringify(value)
  })
}
