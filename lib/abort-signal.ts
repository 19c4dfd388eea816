// Signals of callers that abort what they wait for.

import { HogwildError } from './errors'

/** Throws HOGWILD_ABORTED with the signal's reason as `cause`. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal === undefined || !use(() => signal.aborted)) return
  const cause = use(() => signal.reason)
  throw new HogwildError('aborted by the signal', 'HOGWILD_ABORTED', { cause })
}

/** Calls `abort` when the signal is aborted, until the function returned is called. */
export function onAbort(signal: AbortSignal | undefined, abort: () => void): () => void {
  if (signal === undefined) return () => {}
  use(() => signal.addEventListener('abort', abort))
  return () => {
    try {
      signal.removeEventListener('abort', abort)
    } catch {
      // A listener is left behind that does nothing any more.
    }
  }
}

// A signal may be anything with the right methods (see checkSignal), and these may throw.
function use<T>(read: () => T): T {
  try {
    return read()
  } catch (cause) {
    throw new HogwildError('the signal cannot be used', 'HOGWILD_INVALID_ARGUMENT', { cause })
  }
}
