// The script of an experiment (docs/replay.md): reads and checks it, before anything is computed.

import { HogwildError } from '../../errors'

export type ReplayOp =
  | { op: 'block'; name: string }
  | { op: 'worker'; name: string; view: string[]; write_to?: string }
  | { op: 'prefill'; block: string; tokens: number[] }
  | { op: 'step'; workers: string[]; inputs: number[][] }
  | { op: 'append_from'; target: string; source: string; clear_source?: boolean }
  | { op: 'clear'; block: string }
  | { op: 'truncate'; block: string; length: number }
  | { op: 'fork'; block: string; name: string }
  | { op: 'insert'; target: string; at: number; source: string }
  | { op: 'forget'; block: string; begin: number; end: number }
  | { op: 'compact'; block: string }

interface Kind {
  expected: string
  accepts: (value: unknown) => boolean
}

const isIndex = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0
const isTokens = (value: unknown) => Array.isArray(value) && value.every(isIndex)
const isName = (value: unknown) => typeof value === 'string'

const name: Kind = { expected: 'a string', accepts: isName }
const names: Kind = {
  expected: 'an array of strings',
  accepts: (value) => Array.isArray(value) && value.every(isName),
}
const index: Kind = { expected: 'a non-negative integer', accepts: isIndex }
const tokens: Kind = { expected: 'an array of token ids', accepts: isTokens }
const inputs: Kind = {
  expected: 'an array of token id arrays',
  accepts: (value) => Array.isArray(value) && value.every(isTokens),
}
const flag: Kind = { expected: 'a boolean', accepts: (value) => typeof value === 'boolean' }
const optional = (kind: Kind): Kind => ({
  expected: `${kind.expected} or nothing`,
  accepts: (value) => value === undefined || kind.accepts(value),
})

const FIELDS: Record<ReplayOp['op'], Record<string, Kind>> = {
  block: { name },
  worker: { name, view: names, write_to: optional(name) },
  prefill: { block: name, tokens },
  step: { workers: names, inputs },
  append_from: { target: name, source: name, clear_source: optional(flag) },
  clear: { block: name },
  truncate: { block: name, length: index },
  fork: { block: name, name },
  insert: { target: name, at: index, source: name },
  forget: { block: name, begin: index, end: index },
  compact: { block: name },
}

/** @throws HogwildError HOGWILD_INVALID_ARGUMENT, with the index of the op and what was expected. */
export function parseScript(script: unknown): ReplayOp[] {
  const ops = (script as { ops?: unknown } | null)?.ops
  if (!Array.isArray(ops)) throw invalid('expected a script {"ops": [...]}')
  ops.forEach((op: Record<string, unknown> | null, at) => {
    const kind = op?.op as ReplayOp['op']
    if (!Object.hasOwn(FIELDS, kind)) {
      const known = Object.keys(FIELDS).join(', ')
      throw invalid(
        `op ${at}: expected "op" to be one of ${known}, received ${JSON.stringify(kind)}`,
      )
    }
    for (const [field, { expected, accepts }] of Object.entries(FIELDS[kind])) {
      const value = op?.[field]
      if (!accepts(value)) {
        const received = (JSON.stringify(value) ?? 'nothing').slice(0, 60)
        throw invalid(
          `op ${at} (${kind}): expected ${field} to be ${expected}, received ${received}`,
        )
      }
    }
  })
  ops.forEach((op: ReplayOp, at) => {
    if (op.op === 'step' && op.workers.length !== op.inputs.length) {
      const message = `expected inputs for ${op.workers.length} workers, received ${op.inputs.length}`
      throw invalid(`op ${at} (step): ${message}`)
    }
  })
  return ops
}

function invalid(message: string): HogwildError {
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}
