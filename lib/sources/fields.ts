// Fields of a JSON object that comes from a model folder. Each is read, judged or passed over by name; what is
// none of it is unknown. Messages name file and field.

import { HogwildError, type HogwildErrorCode } from '../errors'
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkNumber,
  checkObject,
  checkString,
  describe,
} from '../validate'

const INVALID: HogwildErrorCode = 'HOGWILD_INVALID_MODEL'

/** How many unknown fields a message names. */
const MAX_NAMED = 10

export function unsupported(what: string, supported: string): HogwildError {
  return new HogwildError(
    `${what} is not supported; supported: ${supported}`,
    'HOGWILD_UNSUPPORTED',
  )
}

/** Null, false, 0, {} or []: says that something is not used. */
export function isOff(value: unknown): boolean {
  return !value || (typeof value === 'object' && Object.keys(value).length === 0)
}

export class Fields {
  readonly #json: Record<string, unknown>
  readonly #path: string
  readonly #ignored: ReadonlySet<string>
  readonly #known = new Set<string>()

  /**
   * `where` is for messages. `ignored`: fields that the user wants passed over; those of an object within are
   * written "object.field", and `path` is what comes before the field's own name.
   */
  constructor(
    json: unknown,
    readonly where: string,
    ignored: ReadonlySet<string> = new Set(),
    path = '',
  ) {
    this.#json = checkObject(json, where, INVALID)
    this.#ignored = ignored
    this.#path = path
  }

  /** The field in messages. */
  name(field: string): string {
    return `${describe(field)} of ${this.where}`
  }

  /** Whether the field is written down, be it as null. */
  has(field: string): boolean {
    return Object.hasOwn(this.#json, field)
  }

  /** Of the fields that are written down. */
  names(): string[] {
    return Object.keys(this.#json)
  }

  get isEmpty(): boolean {
    return this.names().length === 0
  }

  /** A field that the model is computed from; null counts as absent. Throws where the user wants it ignored. */
  get(field: string): unknown {
    this.#known.add(field)
    if (!this.has(field)) return undefined
    if (this.isIgnored(field)) {
      throw new HogwildError(
        `options.ignoreFields names ${this.name(field)}, which the model is computed from`,
        'HOGWILD_INVALID_ARGUMENT',
      )
    }
    return this.#json[field] ?? undefined
  }

  /** Whether the field is written down and not to be ignored. */
  isGiven(field: string): boolean {
    return this.has(field) && !this.isIgnored(field)
  }

  isIgnored(field: string): boolean {
    return this.#ignored.has(this.#path + field)
  }

  /** Fields that change nothing, whatever they say. */
  passOver(fields: Iterable<string>): void {
    for (const field of fields) this.#known.add(field)
  }

  /** A field that hogwild does not compute with: absent, ignored, or `accept` takes its value as it stands. */
  judge(field: string, accept: (value: unknown) => boolean, supported: string): void {
    this.#known.add(field)
    if (!this.isGiven(field)) return
    const value = this.#json[field]
    if (!accept(value)) throw this.refused(field, `= ${describe(value)}`, supported)
  }

  /** The error for a field that the user may decide to ignore. */
  refused(field: string, what: string, supported: string): HogwildError {
    return unsupported(`${this.name(field)} ${what}`, `${supported}; ${this.#wayOut([field])}`)
  }

  /** Throws HOGWILD_UNSUPPORTED for fields that have not been looked at. `what` is what they are unknown to. */
  refuseUnknown(what: string): void {
    const unknown = this.names().filter(
      (field) => !this.#known.has(field) && !this.isIgnored(field),
    )
    if (unknown.length === 0) return
    const named = unknown.slice(0, MAX_NAMED)
    const more = unknown.length > named.length ? ` and ${unknown.length - named.length} more` : ''
    throw new HogwildError(
      `${named.map((field) => describe(field)).join(', ')}${more} of ${this.where} ${unknown.length > 1 ? 'are' : 'is'} not known for ${what} and may change what the model computes; ${this.#wayOut(named)}`,
      'HOGWILD_UNSUPPORTED',
    )
  }

  #wayOut(fields: readonly string[]): string {
    const list = fields.map((field) => describe(this.#path + field)).join(', ')
    const field = fields.length > 1 ? 'fields' : 'field'
    return `to load the model without the ${field}: ignoreFields: [${list}], on the command line --ignore-field`
  }

  count(field: string, fallback?: number, max = 2 ** 31 - 1): number {
    return checkInteger(this.get(field) ?? fallback, this.name(field), 1, max, INVALID)
  }

  optionalCount(field: string): number | undefined {
    return this.get(field) === undefined ? undefined : this.count(field)
  }

  /** A number in [min, max], or in (min, max] with `open`. */
  number(
    field: string,
    range: { min: number; max: number; open?: boolean },
    fallback?: number,
  ): number {
    const { min, max, open = false } = range
    return checkNumber(
      this.get(field) ?? fallback,
      this.name(field),
      `a number ${open ? '>' : '>='} ${min} and <= ${max}`,
      (x) => (open ? x > min : x >= min) && x <= max,
      INVALID,
    )
  }

  optionalNumber(
    field: string,
    range: { min: number; max: number; open?: boolean },
  ): number | undefined {
    return this.get(field) === undefined ? undefined : this.number(field, range)
  }

  boolean(field: string, fallback: boolean): boolean {
    return checkBoolean(this.get(field) ?? fallback, this.name(field), INVALID)
  }

  string(field: string, fallback?: string): string {
    return checkString(this.get(field) ?? fallback, this.name(field), INVALID)
  }

  /** An object within; absent: an empty one. */
  child(field: string): Fields {
    const path = `${this.#path}${field}.`
    return new Fields(this.get(field) ?? {}, this.name(field), this.#ignored, path)
  }

  /** A list within; absent: an empty one. */
  list(field: string): unknown[] {
    return checkArray(this.get(field) ?? [], this.name(field), INVALID)
  }
}
