// Who is in the next step of a cache: what is ready of all groups on it. Tokens do not depend on who else is in a
// step (Model.step), so a group writes here what it would write alone.

import type { ContextReaction, Model, StepOutput, StepWorker } from '../model'
import { onAbort, throwIfAborted } from '../tasks'
import type { WorkerEvent } from './events'
import { type Group, isOutOfPages, type Next, type Prefill } from './group'

/** A group whose consumer waits for events. */
interface Request {
  group: Group
  signal: AbortSignal
  resolve: (events: WorkerEvent[] | undefined) => void
  reject: (error: unknown) => void
}

/** What a group brings to a step. */
interface Share {
  request: Request
  parts: StepWorker[]
  /** Of a block that is filled: how many tokens; undefined: it is a lock step. */
  filling: number | undefined
}

/** Tokens of blocks to be filled that one step takes, of all groups together; a step's own pieces are no smaller. */
const CHUNK = 512

export class Scheduler {
  readonly #model: Model
  /** In the order in which they asked. */
  #requests: Request[] = []
  #isRunning = false

  constructor(model: Model) {
    this.#model = model
  }

  /**
   * The next events of a group, once they are known; undefined: it is idle. What a group brings is in the next step that
   * begins; a group that does not ask is in none. Rejects with what the step or a callback throws, and with
   * HOGWILD_ABORTED once the group's part of a step under way has ended.
   */
  advance(group: Group, signal: AbortSignal): Promise<WorkerEvent[] | undefined> {
    return new Promise((resolve, reject) => {
      this.#requests.push({ group, signal, resolve, reject })
      void this.#run()
    })
  }

  async #run(): Promise<void> {
    if (this.#isRunning) return
    this.#isRunning = true
    while (this.#requests.length > 0) {
      // Consumers that handle the events of the last step without delay are in the next one.
      await new Promise((resolve) => setImmediate(resolve))
      const shares = this.#shares()
      if (shares.length > 0) await this.#step(shares)
    }
    this.#isRunning = false
  }

  /** Answers the requests that need no step. Of the others: what the next step takes. */
  #shares(): Share[] {
    const shares: Share[] = []
    let room = CHUNK
    for (const request of this.#requests) {
      const next = this.#ask(request)
      if (next?.type === 'step') shares.push({ request, parts: next.parts, filling: undefined })
      if (next?.type !== 'prefill' || room === 0) continue
      const { tokens, done } = next.prefill
      const filling = Math.min(room, tokens.length - done)
      room -= filling
      shares.push({ request, parts: [part(next.prefill, filling)], filling })
    }
    return shares
  }

  /** undefined: the request is answered. */
  #ask(request: Request): Next | undefined {
    try {
      throwIfAborted(request.signal)
      const next = request.group.next()
      if (next.type !== 'events' && next.type !== 'idle') return next
      this.#answer(request, next.type === 'events' ? next.events : undefined)
    } catch (error) {
      this.#fail(request, error)
    }
    return undefined
  }

  async #step(shares: readonly Share[]): Promise<void> {
    const abort = new AbortController()
    const forget = abortWithAll(shares, abort)
    try {
      const { outputs, seconds } = await this.#model.timedStep(
        shares.flatMap(({ parts }) => parts),
        { signal: abort.signal, reactions: shares.map(reaction) },
      )
      let first = 0
      for (const share of shares) {
        this.#finish(share, outputs.slice(first, first + share.parts.length), seconds)
        first += share.parts.length
      }
    } catch (error) {
      const [one] = shares
      if (shares.length === 1) this.#resolve(one as Share, error)
      // Nothing was computed. Whose part it was that cannot be is found out with each alone.
      else for (const share of shares) await this.#alone(share)
    } finally {
      forget()
    }
  }

  async #alone(share: Share): Promise<void> {
    if (share.request.signal.aborted) this.#resolve(share, undefined)
    else await this.#step([share])
  }

  #finish({ request, filling }: Share, outputs: StepOutput[], seconds: number): void {
    const { group, signal } = request
    try {
      const events = filling === undefined ? group.stepped(outputs, seconds) : undefined
      if (filling !== undefined) group.prefilled(filling)
      throwIfAborted(signal)
      if (events !== undefined) this.#answer(request, events)
    } catch (error) {
      this.#fail(request, error)
    }
  }

  /** The group's part alone was refused. */
  #resolve({ request }: Share, error: unknown): void {
    try {
      throwIfAborted(request.signal)
      if (!isOutOfPages(error)) throw error
      const events = request.group.withoutRoom(error)
      if (events.length > 0) this.#answer(request, events)
    } catch (thrown) {
      this.#fail(request, thrown)
    }
  }

  #answer(request: Request, events: WorkerEvent[] | undefined): void {
    this.#drop(request)
    request.resolve(events)
  }

  #fail(request: Request, error: unknown): void {
    this.#drop(request)
    request.reject(error)
  }

  #drop(request: Request): void {
    this.#requests = this.#requests.filter((other) => other !== request)
  }
}

function part({ block, tokens, done }: Prefill, count: number): StepWorker {
  const piece = tokens.subarray(done, done + count)
  return { view: { blocks: [block] }, tokens: piece, sampler: null }
}

function reaction({ request, parts }: Share): ContextReaction {
  const { settings, warnings } = request.group
  const { beyondContext } = settings
  return { workers: parts.length, beyondContext, warnings }
}

/** Aborts a step once nobody wants its results any more. */
function abortWithAll(shares: readonly Share[], abort: AbortController): () => void {
  let waiting = shares.length
  const forget = shares.map(({ request }) =>
    onAbort(request.signal, () => {
      if (--waiting === 0) abort.abort()
    }),
  )
  return () => {
    for (const one of forget) one()
  }
}
