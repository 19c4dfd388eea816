// Checks of values that come from outside: options, token ids, fields of model files. One message
// form for all: "expected NAME to be WHAT, received VALUE".
//
// Whatever a caller passes (proxies, getters that throw, lengths that lie), a check throws HogwildError or
// returns what it has checked. Objects and lists are copied while they are checked, each field read
// once, so that nothing changes between the check and the use.

import { types } from 'node:util'
import { HogwildError, type HogwildErrorCode } from './errors'

/** Longest piece of a received value that a message repeats, in characters. */
const MAX_SHOWN = 60

/** Longest list that is read, in elements. */
const MAX_LENGTH = 2 ** 24

/** What `read` returns, or `otherwise` where it throws: messages about a value must not fail on it. */
function attempt<T>(read: () => T, otherwise: T): T {
  try {
    return read()
  } catch {
    return otherwise
  }
}

function shorten(text: string): string {
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text
}

/** A value in words, for messages. Never throws, and never reads more of a value than it shows. */
export function describe(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return shorten(JSON.stringify(value.slice(0, MAX_SHOWN + 1)))
    case 'bigint':
      return shorten(`${value}n`)
    case 'function':
      return 'a function'
    case 'object':
      if (value === null) return 'null'
      return attempt(() => {
        if (Array.isArray(value)) return describeArray(value)
        return types.isTypedArray(value) ? describeTypedArray(value) : describeObject(value)
      }, 'an object')
    default:
      return String(value)
  }
}

function describeArray(value: readonly unknown[]): string {
  const shown: string[] = []
  for (let i = 0; i < Math.min(value.length, MAX_SHOWN / 2); i++) {
    const element = value[i]
    shown.push(typeof element === 'object' && element !== null ? '…' : describe(element))
  }
  return shorten(`[${shown.join(',')}${value.length > shown.length ? ',…' : ''}]`)
}

const typedArray = Object.getPrototypeOf(Uint8Array.prototype)
const own = (name: string | symbol) => Object.getOwnPropertyDescriptor(typedArray, name)?.get
const [tagOf, lengthOf] = [own(Symbol.toStringTag), own('length')]

/** By what it is, whatever properties it was given. */
function describeTypedArray(value: object): string {
  const length: number = lengthOf?.call(value)
  return `a ${tagOf?.call(value)} of ${length} element${length === 1 ? '' : 's'}`
}

function describeObject(value: object): string {
  const { name } = value.constructor ?? { name: 'no prototype' }
  return typeof name === 'string' ? `an object (${shorten(name)})` : 'an object'
}

/** The error for a value that is not what it should be. */
export function invalid(
  name: string,
  expected: string,
  received: unknown,
  code: HogwildErrorCode = 'HOGWILD_INVALID_ARGUMENT',
): HogwildError {
  return new HogwildError(
    `expected ${name} to be ${expected}, received ${describe(received)}`,
    code,
  )
}

/** What `read` returns; where it throws (a getter, a proxy), HOGWILD_INVALID_ARGUMENT with that as `cause`. */
export function readable<T>(name: string, code: HogwildErrorCode | undefined, read: () => T): T {
  try {
    return read()
  } catch (cause) {
    throw unreadable(name, code, cause)
  }
}

function unreadable(name: string, code: HogwildErrorCode | undefined, cause: unknown): unknown {
  if (cause instanceof HogwildError) return cause
  return new HogwildError(`${name} cannot be read`, code ?? 'HOGWILD_INVALID_ARGUMENT', { cause })
}

/** An integer in [min, max]; max defaults to the largest safe integer. */
export function checkInteger(
  value: unknown,
  name: string,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
  code?: HogwildErrorCode,
): number {
  if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
    const range = max === Number.MAX_SAFE_INTEGER ? `>= ${min}` : `in [${min}, ${max}]`
    throw invalid(name, `an integer ${range}`, value, code)
  }
  return value as number
}

/** A finite number that `accept` takes; `expected` says in words what that is. */
export function checkNumber(
  value: unknown,
  name: string,
  expected: string,
  accept: (value: number) => boolean,
  code?: HogwildErrorCode,
): number {
  if (typeof value !== 'number' || !Number.isFinite(value) || !accept(value)) {
    throw invalid(name, expected, value, code)
  }
  return value
}

export function checkBoolean(value: unknown, name: string, code?: HogwildErrorCode): boolean {
  if (typeof value !== 'boolean') throw invalid(name, 'true or false', value, code)
  return value
}

export function checkString(value: unknown, name: string, code?: HogwildErrorCode): string {
  if (typeof value !== 'string') throw invalid(name, 'a string', value, code)
  return value
}

export function checkOneOf<const T extends string>(
  value: unknown,
  name: string,
  choices: readonly T[],
  code?: HogwildErrorCode,
): T {
  if (!(choices as readonly unknown[]).includes(value)) {
    const list = choices.map((choice) => `'${choice}'`).join(', ')
    throw invalid(name, choices.length === 1 ? list : `one of ${list}`, value, code)
  }
  return value as T
}

/** Duck-typed, since realms have classes of their own. Use it through `onAbort` and `throwIfAborted`. */
export function checkSignal(value: unknown, name: string): AbortSignal | undefined {
  if (value === undefined) return undefined
  const isSignal = readable(name, undefined, () => {
    const signal = value as Partial<AbortSignal> | null
    return (
      typeof signal?.aborted === 'boolean' &&
      typeof signal.addEventListener === 'function' &&
      typeof signal.removeEventListener === 'function'
    )
  })
  if (!isSignal) throw invalid(name, 'an AbortSignal', value)
  return value as AbortSignal
}

/**
 * What a function of the caller's returned that must have done its work by then: no promise. One that is rejected later
 * is nobody's.
 */
export function checkSynchronous(returned: unknown, name: string): void {
  const then = readable(
    name,
    undefined,
    () => (returned as PromiseLike<unknown> | null | undefined)?.then,
  )
  if (typeof then !== 'function') return
  Promise.resolve(returned).catch(() => {})
  throw invalid(name, 'a function that is done when it returns', 'one that returns a promise')
}

export function checkOptionalFunction<T>(value: T, name: string): T {
  if (value !== undefined && typeof value !== 'function') throw invalid(name, 'a function', value)
  return value
}

/** A plain object: not null, not an array. */
export function checkObject(
  value: unknown,
  name: string,
  code?: HogwildErrorCode,
): Record<string, unknown> {
  const isArray = readable(name, code, () => Array.isArray(value))
  if (typeof value !== 'object' || value === null || isArray) {
    throw invalid(name, 'an object', value, code)
  }
  return value as Record<string, unknown>
}

/**
 * A copy of an object of options, each of which is one of `keys`: a misspelt option is refused by its name
 * instead of being ignored. A list of keys that leaves one of T's out does not type-check: write it as
 * `optionKeys<T>()({ a: true, b: true })`.
 */
export function checkOptions<T extends object>(
  value: T,
  name: string,
  keys: readonly (keyof T & string)[],
): T {
  const options = checkObject(value, name)
  const known: readonly string[] = keys
  const unknown = readable(name, undefined, () =>
    Object.keys(options).find((key) => !known.includes(key)),
  )
  if (unknown !== undefined) {
    throw new HogwildError(
      `${name} has no "${shorten(unknown)}"; it knows ${keys.join(', ')}`,
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
  const copy: Record<string, unknown> = {}
  let reading = ''
  try {
    for (const key of keys) {
      reading = key
      const option = options[key]
      if (option !== undefined) copy[key] = option
    }
  } catch (cause) {
    throw unreadable(`${name}.${reading}`, undefined, cause)
  }
  return copy as T
}

/** The keys of T, complete by its type. */
export function optionKeys<T extends object>(): (
  keys: Record<keyof T & string, true>,
) => readonly (keyof T & string)[] {
  return (keys) => Object.keys(keys) as (keyof T & string)[]
}

/**
 * An object of one of this package's classes. `is` is the class's own test of a private field, which a
 * proxy or an object with a borrowed prototype does not pass.
 */
export function checkInstance<T>(
  value: unknown,
  name: string,
  type: { readonly name: string; is(value: unknown): value is T },
): T {
  if (!type.is(value)) throw invalid(name, `a ${type.name}`, value)
  return value
}

/** A copy of an array. */
export function checkArray(value: unknown, name: string, code?: HogwildErrorCode): unknown[] {
  return readable(name, code, () => {
    if (!Array.isArray(value)) throw invalid(name, 'an array', value, code)
    const copy: unknown[] = []
    const length = checkLength(value, name, code)
    for (let i = 0; i < length; i++) copy.push(value[i])
    return copy
  })
}

/** Deepest nesting of JSON that is taken. */
const MAX_DEPTH = 64

/** A copy of what JSON can hold: null, booleans, strings, finite numbers, arrays and plain objects of such. */
export function checkJson(value: unknown, name: string, depth = 0): unknown {
  if (value === null || typeof value === 'boolean' || typeof value === 'string') return value
  if (typeof value === 'number' && Number.isFinite(value)) return value
  const tag = readable(name, undefined, () => Object.prototype.toString.call(value))
  if (typeof value !== 'object' || depth > MAX_DEPTH || !/^\[object (Array|Object)\]$/.test(tag)) {
    throw invalid(name, `what JSON can hold, at most ${MAX_DEPTH} levels deep`, value)
  }
  if (tag === '[object Array]') {
    return checkArray(value, name).map((item, i) => checkJson(item, `${name}[${i}]`, depth + 1))
  }
  const entries = readable(name, undefined, () => Object.entries(value))
  return Object.fromEntries(
    entries
      .filter(([, item]) => item !== undefined)
      .map(([key, item]) => [key, checkJson(item, `${name}.${shorten(key)}`, depth + 1)]),
  )
}

/** The length of anything that has elements. */
function checkLength(list: ArrayLike<unknown>, name: string, code?: HogwildErrorCode): number {
  return checkInteger(list.length, `${name}.length`, 0, MAX_LENGTH, code)
}

/** Copies token ids, each in [0, vocabSize). An array or a typed array of integers, at most 2^24 of them. */
export function checkTokens(
  value: unknown,
  name: string,
  vocabSize: number,
  minLength = 0,
): Int32Array {
  return readable(name, undefined, () => {
    const list = value as ArrayLike<unknown>
    if (typeof value !== 'object' || value === null || !Number.isSafeInteger(list.length)) {
      throw invalid(name, 'an array of token ids', value)
    }
    const tokens = new Int32Array(checkLength(list, name))
    if (tokens.length < minLength) {
      throw invalid(name, `at least ${minLength} token${minLength === 1 ? '' : 's'}`, value)
    }
    for (let i = 0; i < tokens.length; i++) {
      const token = list[i]
      const known =
        Number.isInteger(token) && (token as number) >= 0 && (token as number) < vocabSize
      tokens[i] = known ? (token as number) : checkInteger(token, `${name}[${i}]`, 0, vocabSize - 1)
    }
    return tokens
  })
}

/**
 * Copies numbers by token id, each in [0, vocabSize): a Map, or an object whose keys are the ids. `accept` takes the
 * numbers; `expected` says in words what they are.
 */
export function checkNumbersByToken(
  value: unknown,
  name: string,
  vocabSize: number,
  expected: string,
  accept: (value: number) => boolean,
): { ids: Int32Array; values: Float32Array } {
  return readable(name, undefined, () => {
    const entries: [unknown, unknown][] = []
    if (ArrayBuffer.isView(value)) throw invalid(name, 'a Map or an object', value)
    if (types.isMap(value)) {
      Map.prototype.forEach.call(value, (number, id) => entries.push([id, number]))
    } else {
      for (const [key, number] of Object.entries(checkObject(value, name))) {
        entries.push([/^(0|[1-9]\d*)$/.test(key) ? Number(key) : key, number])
      }
    }
    const ids = new Int32Array(entries.length)
    const values = new Float32Array(entries.length)
    for (const [i, [id, number]] of entries.entries()) {
      ids[i] = checkInteger(id, `a token id of ${name}`, 0, vocabSize - 1)
      if (typeof number !== 'number' || !accept(number)) {
        throw invalid(`${name}[${id}]`, expected, number)
      }
      values[i] = number
    }
    return { ids, values }
  })
}

/** A Float32Array of `length` elements, from whichever realm. `shape` says what the length is made of. */
export function checkFloats(
  value: unknown,
  name: string,
  length: number,
  shape: string,
): Float32Array {
  if (!isFloat32Array(value) || value.length !== length) {
    throw invalid(name, `a Float32Array of ${length} elements (${shape})`, value)
  }
  return value
}

/** Holds across realms (worker contexts, Jest), where `instanceof` does not; a proxy is none. */
export function isFloat32Array(value: unknown): value is Float32Array {
  return types.isFloat32Array(value)
}

export function isFloat64Array(value: unknown): value is Float64Array {
  return types.isFloat64Array(value)
}
