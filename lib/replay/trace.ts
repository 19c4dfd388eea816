// The script in a trace (docs/replay.md, "Traces"): its ops, without what only a reader wants to know.

import { wrong } from './script'

const VERSION = 2

/** A line, of which nothing is known but that it is an object. */
export type TraceRecord = Readonly<Record<string, unknown>>

/** Fields that a trace adds to ops. */
const EXTRA = ['time', 'step', 'text', 'forced', 'texts', 'attention', 'milliseconds']

/**
 * The script in the lines of a trace; undefined: the text is none. A last line without an end is left out: whoever wrote
 * it was ended there.
 *
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT, HOGWILD_UNSUPPORTED for a version that is not known.
 */
export function scriptOfTrace(text: string): { ops: unknown[] } | undefined {
  const lines = linesOfTrace(text)
  return lines && { ops: lines.slice(1).flatMap((line) => opOf(line) ?? []) }
}

/** The op of a line, as a script has it; undefined: it is none. */
export function opOf(line: TraceRecord): object | undefined {
  if (!Object.hasOwn(line, 'op')) return undefined
  return Object.fromEntries(Object.entries(line).filter(([field]) => !EXTRA.includes(field)))
}

/**
 * All complete lines of a trace, the head first; undefined: the text is none.
 *
 * @throws HogwildError as `scriptOfTrace`.
 */
export function linesOfTrace(text: string): TraceRecord[] | undefined {
  const lines = text.split('\n').slice(0, -1)
  const head = lines[0] === undefined ? undefined : parseLine(lines[0])
  const version = (head as { trace?: unknown } | null | undefined)?.trace
  if (version === undefined) return undefined
  if (version !== VERSION) {
    const message = `a trace of version ${JSON.stringify(version)}: this release reads version ${VERSION}`
    throw wrong(message, 'HOGWILD_UNSUPPORTED')
  }
  return lines.map((line, i) => {
    const parsed = i === 0 ? head : parseLine(line)
    if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
      throw wrong(`line ${i + 1} of the trace is no JSON object`)
    }
    return parsed as TraceRecord
  })
}

/** undefined where it is no JSON. */
function parseLine(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}
