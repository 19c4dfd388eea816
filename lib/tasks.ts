// Native calls that take their time: aborting them, and waiting for them before something is closed.

import { onAbort, throwIfAborted } from './abort-signal'
import { errorCode } from './errors'
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
