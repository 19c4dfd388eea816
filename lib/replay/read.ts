// Reads the file of a script or a trace (docs/replay.md).

import { HogwildError } from '../errors'
import { parseJson, readText } from '../sources/files'
import { scriptOfTrace } from './trace'

const MAX_BYTES = 64 * 2 ** 20

/**
 * The text of a script or a trace, of at most 64 MiB.
 *
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT
 */
export async function readReplayText(path: string): Promise<string> {
  try {
    return await readText(path, { maxBytes: MAX_BYTES })
  } catch (cause) {
    throw ofReplay(cause)
  }
}

/**
 * The script in a text, which is JSON or a trace. `where` is for messages.
 *
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT, HOGWILD_UNSUPPORTED for a version of the trace that is not known.
 */
export function scriptIn(text: string, where: string): unknown {
  try {
    return scriptOfTrace(text) ?? parseJson(text, where)
  } catch (cause) {
    throw ofReplay(cause)
  }
}

/** The reader of files speaks of models. */
function ofReplay(cause: unknown): unknown {
  if ((cause as HogwildError).code !== 'HOGWILD_INVALID_MODEL') return cause
  const message = `expected a JSON file with a script, or a trace: ${(cause as Error).message}`
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
}
