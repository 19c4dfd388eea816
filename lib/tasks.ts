// Native calls that take their time: aborting them, and waiting for them before something is closed.

import { errorCode, HogwildError } from './errors'
import { type CancelHandle, native } from './native'

/** The calls under way of one owner (a cache, a model). */
export class Tasks {
  readonly #running = new Map<Promise<unknown>, () => void>()

  /** Remembers a call until it settles. `abort` asks it to end early. */
  track<T>(task: Promise<T>, abort: () => void = () => {}): Promise<T> {
    this.#running.set(task, abort)
    const forget = () => this.#running.delete(task)
    task.then(forget, forget)
    return task
  }

  /** Asks every call to end early and waits until all have settled. */
  async abort(): Promise<void> {
    for (const abort of this.#running.values()) abort()
    await Promise.allSettled(this.#running.keys())
  }
}

/**
 * Runs a native call that an AbortSignal and the closing of its owners can abort. A signal that is
 * aborted already rejects without calling. Where the call ends before the abort reaches it, it has
 * simply succeeded.
 */
export async function runTask<T>(
  owners: readonly Tasks[],
  signal: AbortSignal | undefined,
  start: (cancel: CancelHandle) => Promise<T>,
): Promise<T> {
  throwIfAborted(signal)
  const cancel = native.createCancel()
  const abort = () => native.cancel(cancel)
  const forget = onAbort(signal, abort)
  try {
    const task = start(cancel)
    for (const owner of owners) owner.track(task, abort)
    return await task
  } catch (error) {
    const isAbort = errorCode(error) === 'HOGWILD_ABORTED'
    if (isAbort) throwIfAborted(signal)
    throw error
  } finally {
    forget()
  }
}

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
