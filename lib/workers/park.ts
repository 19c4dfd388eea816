// Work that a worker waits for: a tool, a search, a person.

import { onAbort } from '../abort-signal'
import { HogwildError } from '../errors'

/** Makes the tokens that a worker goes on with. `signal` is aborted when nobody waits for them any more. */
export type ParkWork = (signal: AbortSignal) => PromiseLike<ArrayLike<number>>

/** A worker that waits for work, as plain data. */
export interface Parked {
  worker: string
  timeoutMs: number | undefined
  /** What JSON can hold. */
  data: unknown
}

/** Rejects with what the work throws, HOGWILD_TIMEOUT, or HOGWILD_ABORTED where `signal` is aborted first. */
export async function doWork(
  work: ParkWork,
  signal: AbortSignal,
  timeoutMs: number | undefined,
): Promise<ArrayLike<number>> {
  const abort = new AbortController()
  let timer: NodeJS.Timeout | undefined
  let forget = () => {}
  const given = new Promise<never>((_, reject) => {
    const giveUp = (error: HogwildError) => {
      reject(error)
      abort.abort(error)
    }
    forget = onAbort(signal, () => giveUp(new HogwildError('the run has ended', 'HOGWILD_ABORTED')))
    if (timeoutMs === undefined) return
    timer = setTimeout(() => {
      giveUp(new HogwildError(`work took longer than ${timeoutMs} ms`, 'HOGWILD_TIMEOUT'))
    }, timeoutMs)
  })
  try {
    return await Promise.race([work(abort.signal), given])
  } finally {
    clearTimeout(timer)
    forget()
  }
}
