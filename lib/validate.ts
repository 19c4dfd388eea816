// Checks of values that come from outside: options, token ids, fields of model files. One message
// form for all: "expected NAME to be WHAT, received VALUE".

import { HogwildError, type HogwildErrorCode } from './errors'

/** Longest piece of a received value that a message repeats, in characters. */
const MAX_SHOWN = 60

/** A received value, in short, for messages. */
export function describe(value: unknown): string {
  if (value === undefined || value === null) return String(value)
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value === 'function') return `a function`
  if (typeof value === 'string' || Array.isArray(value)) {
    const text = JSON.stringify(value) ?? ''
    return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text
  }
  if (typeof value === 'object') return `an object (${value.constructor?.name ?? 'no prototype'})`
  return String(value)
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

/** Duck-typed, since realms have classes of their own. */
export function checkSignal(value: unknown, name: string): AbortSignal | undefined {
  if (value === undefined) return undefined
  const signal = value as Partial<AbortSignal> | null
  if (typeof signal?.aborted !== 'boolean' || typeof signal.addEventListener !== 'function') {
    throw invalid(name, 'an AbortSignal', value)
  }
  return signal as AbortSignal
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
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalid(name, 'an object', value, code)
  }
  return value as Record<string, unknown>
}

/**
 * An object of options, each of which is one of `keys`: a misspelt option is refused by its name instead of
 * being ignored. A list of keys that leaves one of T's out does not type-check: write it as
 * `optionKeys<T>()({ a: true, b: true })`.
 */
export function checkOptions<T extends object>(
  value: T,
  name: string,
  keys: readonly (keyof T & string)[],
): T {
  const unknown = Object.keys(checkObject(value, name)).find(
    (key) => !(keys as readonly string[]).includes(key),
  )
  if (unknown !== undefined) {
    throw new HogwildError(
      `${name} has no "${unknown}"; it knows ${keys.join(', ')}`,
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
  return value
}

/** The keys of T, complete by its type. */
export function optionKeys<T extends object>(): (
  keys: Record<keyof T & string, true>,
) => readonly (keyof T & string)[] {
  return (keys) => Object.keys(keys) as (keyof T & string)[]
}

export function checkInstance<T>(
  value: unknown,
  name: string,
  type: abstract new (...args: never[]) => T,
): T {
  if (!(value instanceof type)) throw invalid(name, `a ${type.name}`, value)
  return value
}

export function checkArray(value: unknown, name: string, code?: HogwildErrorCode): unknown[] {
  if (!Array.isArray(value)) throw invalid(name, 'an array', value, code)
  return value
}

/** Copies token ids, each in [0, vocabSize). An array or a typed array of integers. */
export function checkTokens(
  value: ArrayLike<number>,
  name: string,
  vocabSize: number,
  minLength = 0,
): Int32Array {
  if (typeof value !== 'object' || value === null || !Number.isSafeInteger(value.length)) {
    throw invalid(name, 'an array of token ids', value)
  }
  if (value.length < minLength) {
    throw invalid(name, `at least ${minLength} token${minLength === 1 ? '' : 's'}`, 'none')
  }
  const tokens = new Int32Array(value.length)
  for (let i = 0; i < tokens.length; i++) {
    tokens[i] = checkInteger(value[i], `${name}[${i}]`, 0, vocabSize - 1)
  }
  return tokens
}

/** A Float32Array of `length` elements, from whichever realm. `shape` says what the length is made of. */
export function checkFloats(
  value: unknown,
  name: string,
  length: number,
  shape: string,
): Float32Array {
  if (!isFloat32Array(value) || value.length !== length) {
    throw invalid(
      name,
      `a Float32Array of ${length} elements (${shape})`,
      isFloat32Array(value) ? `${value.length} elements` : value,
    )
  }
  return value
}

/** Holds across realms (worker contexts, Jest), where `instanceof` does not. */
export function isFloat32Array(value: unknown): value is Float32Array {
  return Object.prototype.toString.call(value) === '[object Float32Array]'
}

export function isFloat64Array(value: unknown): value is Float64Array {
  return Object.prototype.toString.call(value) === '[object Float64Array]'
}
