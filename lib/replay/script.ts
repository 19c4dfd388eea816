// The script of an experiment (docs/replay.md): its form. Whether the names in it exist and the numbers fit is
// the rehearsal's question (rehearsal.ts).

import { HogwildError, type HogwildErrorCode } from '../errors'
import { checkOptions, invalid, optionKeys } from '../validate'
import { checkEntryFields, type EntryFields } from '../view-entry'

/** A block of a view: its name alone, or with how it is seen. */
export type ReplayEntry = string | ({ block: string } & EntryFields)

export type ReplayOp =
  | { op: 'block'; name: string }
  | { op: 'worker'; name: string; view: ReplayEntry[]; write_to?: string }
  | { op: 'prefill'; block: string; tokens: number[] }
  | { op: 'step'; workers: string[]; inputs: number[][] }
  | { op: 'append_from'; target: string; source: string; clear_source?: boolean }
  | { op: 'clear'; block: string }
  | { op: 'truncate'; block: string; length: number }
  | { op: 'fork'; block: string; name: string }
  | { op: 'insert'; target: string; at: number; source: string }
  | { op: 'forget'; block: string; begin: number; end: number }
  | { op: 'compact'; block: string }

/** Longest piece of a script that a message repeats, in characters. */
const MAX_SHOWN = 60

interface Kind {
  expected: string
  accepts: (value: unknown) => boolean
}

const isIndex = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0
const isTokens = (value: unknown) =>
  Array.isArray(value) && value.length > 0 && value.every(isIndex)
const isName = (value: unknown) => typeof value === 'string' && value !== ''
const isListOf = (accepts: (value: unknown) => boolean) => (value: unknown) =>
  Array.isArray(value) && value.length > 0 && value.every(accepts)

const name: Kind = { expected: 'a string that is not empty', accepts: isName }
const entries: Kind = {
  expected: 'a non-empty array of names and entries',
  accepts: isListOf(() => true),
}
/** Of workers: those of a run may have an empty one. */
const isString = (value: unknown) => typeof value === 'string'
const worker: Kind = { expected: 'a string', accepts: isString }
const workers: Kind = { expected: 'a non-empty array of names', accepts: isListOf(isString) }
const index: Kind = { expected: 'a non-negative integer', accepts: isIndex }
const tokens: Kind = { expected: 'a non-empty array of token ids', accepts: isTokens }
const inputs: Kind = {
  expected: 'an array with a non-empty array of token ids for each worker',
  accepts: isListOf(isTokens),
}
const flag: Kind = { expected: 'a boolean', accepts: (value) => typeof value === 'boolean' }
const optional = (kind: Kind): Kind => ({
  expected: `${kind.expected} or absent`,
  accepts: (value) => value === undefined || kind.accepts(value),
})
/** What a script may expect of a prefill or step. It is not compared with anything here. */
const expectation: Kind = { expected: 'anything', accepts: () => true }
const EXPECTATIONS = {
  logits: expectation,
  argmax: expectation,
  top8_ids: expectation,
  top8_values: expectation,
  first_position: expectation,
  view_length: expectation,
  shown: expectation,
  margin: expectation,
}

const FIELDS: Record<ReplayOp['op'], Record<string, Kind>> = {
  block: { name },
  worker: { name: worker, view: entries, write_to: optional(name) },
  prefill: { block: name, tokens, ...EXPECTATIONS },
  step: { workers, inputs, ...EXPECTATIONS },
  append_from: { target: name, source: name, clear_source: optional(flag) },
  clear: { block: name },
  truncate: { block: name, length: index },
  fork: { block: name, name },
  insert: { target: name, at: index, source: name },
  forget: { block: name, begin: index, end: index },
  compact: { block: name },
}

/**
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT, with the index of the op, its field, and what was expected.
 */
export function parseScript(script: unknown): ReplayOp[] {
  const ops = (script as { ops?: unknown } | null)?.ops
  if (!Array.isArray(ops)) throw wrong('expected a script {"ops": [...]}')
  return ops.map((op, at) => parseOp(op, at))
}

function parseOp(value: unknown, at: number): ReplayOp {
  const op = (typeof value === 'object' ? value : {}) as Readonly<Record<string, unknown>> | null
  const kind = op?.op
  if (op === null || !isKind(kind)) {
    const known = Object.keys(FIELDS).join(', ')
    throw wrong(`op ${at}: expected "op" to be one of ${known}, received ${show(kind)}`)
  }
  const fields = FIELDS[kind]
  for (const [field, { expected, accepts }] of Object.entries(fields)) {
    const own = Object.hasOwn(op, field) ? op[field] : undefined
    if (!accepts(own)) {
      throw refusal(at, kind, wrong(`expected ${field} to be ${expected}, received ${show(own)}`))
    }
  }
  const known = ['op', ...Object.keys(fields)]
  const unknown = Object.keys(op).find((field) => !known.includes(field))
  if (unknown !== undefined) {
    const message = `unknown field ${show(unknown)}; known: ${known.join(', ')}`
    throw refusal(at, kind, wrong(message))
  }
  return checkParts(op as ReplayOp, at)
}

function checkParts(op: ReplayOp, at: number): ReplayOp {
  if (op.op === 'step' && op.workers.length !== op.inputs.length) {
    const message = `expected inputs for ${op.workers.length} workers, received ${op.inputs.length}`
    throw refusal(at, op.op, wrong(message))
  }
  if (op.op === 'worker') {
    for (const [i, entry] of op.view.entries()) {
      if (isName(entry)) continue
      try {
        checkEntry(entry, `view[${i}]`)
      } catch (error) {
        throw error instanceof HogwildError ? refusal(at, op.op, error) : error
      }
    }
  }
  return op
}

const ENTRY_KEYS = optionKeys<Exclude<ReplayEntry, string>>()({
  block: true,
  at: true,
  lag: true,
  temperature: true,
  bias: true,
})

function checkEntry(entry: ReplayEntry, where: string): void {
  if (typeof entry !== 'object' || entry === null) {
    throw invalid(where, `a name or an object { ${ENTRY_KEYS.join(', ')} }`, entry)
  }
  const { block, ...fields } = checkOptions(entry, where, ENTRY_KEYS)
  if (!isName(block)) throw invalid(`${where}.block`, name.expected, block)
  // Numbers of JSON may be infinite, as 1e999 is.
  const { bias } = fields
  if (bias !== undefined && !Number.isFinite(bias)) {
    throw invalid(`${where}.bias`, 'a finite number', bias)
  }
  checkEntryFields(fields, where)
}

/** The name of an entry's block. */
export function blockOf(entry: ReplayEntry): string {
  return typeof entry === 'string' ? entry : entry.block
}

function isKind(value: unknown): value is ReplayOp['op'] {
  return typeof value === 'string' && Object.hasOwn(FIELDS, value)
}

/** The error of an op, with its index and kind in front. The code stays. */
export function refusal(at: number, kind: ReplayOp['op'], error: HogwildError): HogwildError {
  return new HogwildError(`op ${at} (${kind}): ${error.message}`, error.code, { cause: error })
}

export function wrong(
  message: string,
  code: HogwildErrorCode = 'HOGWILD_INVALID_ARGUMENT',
): HogwildError {
  return new HogwildError(message, code)
}

/** A value of a script, cut where it is long. */
export function show(value: unknown): string {
  const json = JSON.stringify(value) ?? 'nothing'
  return json.length > MAX_SHOWN ? `${json.slice(0, MAX_SHOWN)}…` : json
}
