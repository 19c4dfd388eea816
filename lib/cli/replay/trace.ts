// The script in a trace (docs/replay.md, "Traces"): its ops, without what only a reader wants to know.

import { wrong } from './script'

const VERSION = 1

/** Fields that a trace adds to ops. */
const EXTRA = ['time', 'step', 'forced', 'texts', 'milliseconds']

/**
 * The script in the lines of a trace; undefined: the text is none. A last line without an end is left out: whoever wrote
 * it was ended there.
 *
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT, HOGWILD_UNSUPPORTED for a version that is not known.
 */
export function scriptOfTrace(text: string): { ops: unknown[] } | undefined {
  const lines = text.split('\n').slice(0, -1)
  const version = versionOf(lines[0])
  if (version === undefined) return undefined
  if (version !== VERSION) {
    const message = `a trace of version ${JSON.stringify(version)}: this release reads version ${VERSION}`
    throw wrong(message, 'HOGWILD_UNSUPPORTED')
  }
  const ops = lines.slice(1).flatMap((line, i) => {
    const parsed = parseLine(line)
    if (typeof parsed !== 'object' || parsed === null) {
      throw wrong(`line ${i + 2} of the trace is no JSON object`)
    }
    if (!Object.hasOwn(parsed, 'op')) return []
    return [Object.fromEntries(Object.entries(parsed).filter(([field]) => !EXTRA.includes(field)))]
  })
  return { ops }
}

function versionOf(line: string | undefined): unknown {
  const head = line === undefined ? undefined : parseLine(line)
  return (head as { trace?: unknown } | null | undefined)?.trace
}

/** undefined where it is no JSON. */
function parseLine(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}
