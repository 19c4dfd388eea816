// The steps of one cache: each takes what is ready of all groups on it. Tokens do not depend on who else is in a
// step (Model.step), so each group writes what it would write alone.

import { onAbort, throwIfAborted } from '../abort-signal'
import { pagesFor } from '../limits'
import type { StepOutput, StepWorker, WorkerSet } from '../model'
import type { StepMessage } from './channels'
import type { WorkerEvent } from './events'
import { type Group, isOutOfPages, type Prefill, type Tenant } from './group'

export type StepReport = StepMessage

/** Asked before each step: whether a group may take at most so many pages in it, beside those asked for before. */
export type PageGuard = () => (group: Tenant, pages: number) => boolean

interface Waiting {
  group: Tenant
  signal: AbortSignal | undefined
  reject: (error: unknown) => void
}

/** A group whose consumer waits for events. */
interface Advance extends Waiting {
  type: 'advance'
  group: Group
  resolve: (hasEvents: boolean) => void
}

/** A question about a group's blocks as they are between two of its steps. */
interface Probe extends Waiting {
  type: 'probe'
  group: Group
  parts: () => StepWorker[]
  resolve: (outputs: StepOutput[]) => void
}

/** Work that takes its time and needs the cache for itself. */
interface Hold extends Waiting {
  type: 'hold'
  pages: number
  work: () => Promise<unknown>
  resolve: (value: unknown) => void
}

type Request = Advance | Probe | Hold

/** What a group brings to a step. */
interface Share {
  request: Advance | Probe
  parts: StepWorker[]
  /** Of a block that is filled: how many tokens; 0: all of the parts, as a whole. */
  filling: number
}

export class Batcher {
  /** Tokens of blocks to be filled that one step takes, of all groups. */
  readonly #chunk: number
  readonly #report: (report: StepReport) => void
  readonly #guard: PageGuard
  /** Those of a higher priority first, then in the order in which they asked. */
  #requests: Request[] = []
  #changes: (() => void | Promise<void>)[] = []
  #isRunning = false

  constructor(
    chunk: number,
    report: (report: StepReport) => void,
    guard: PageGuard = () => () => true,
  ) {
    this.#chunk = chunk
    this.#report = report
    this.#guard = guard
  }

  /**
   * Brings the next events of a group into its outbox, once they are known; false: it is idle. What a group brings is in
   * the next step that begins; a group that does not ask is in none. Rejects with what the step or a callback throws, and
   * with HOGWILD_ABORTED once the group's part of a step under way has ended.
   */
  async advance(group: Group, signal: AbortSignal): Promise<boolean> {
    return await this.#ask<boolean>(signal, (resolve, reject) => {
      return { type: 'advance', group, signal, resolve, reject }
    })
  }

  /**
   * What `work` resolves to: called between two steps of the cache, the next of which waits until it has settled. `pages`:
   * those that the group takes in it, once it may. Rejects with what it throws, and with HOGWILD_ABORTED where `signal` is
   * aborted before it begins.
   */
  async hold<T>(
    group: Tenant,
    signal: AbortSignal | undefined,
    pages: number,
    work: () => Promise<T>,
  ): Promise<T> {
    return (await this.#ask<unknown>(signal, (resolve, reject) => {
      return { type: 'hold', group, signal, pages, work, resolve, reject }
    })) as T
  }

  /**
   * What `parts` give in a step of which the group's workers are no part: they see blocks as they are between two of its
   * steps. `parts` is called when that step begins. Rejects as `advance`.
   */
  async probe(group: Group, signal: AbortSignal, parts: () => StepWorker[]): Promise<StepOutput[]> {
    return await this.#ask<StepOutput[]>(signal, (resolve, reject) => {
      return { type: 'probe', group, signal, parts, resolve, reject }
    })
  }

  /** Calls `change` while no step is under way on the cache. Rejects with what it throws. */
  async between<T>(change: () => T): Promise<T> {
    return await new Promise((resolve, reject) => {
      this.#changes.push(() => {
        try {
          resolve(change())
        } catch (error) {
          reject(error)
        }
      })
      this.wake()
    })
  }

  /**
   * Does work that takes its time and needs the cache for itself: the next step begins once it has settled. Rejects with
   * what it throws.
   */
  async exclusive<T>(work: () => Promise<T>): Promise<T> {
    return await new Promise((resolve, reject) => {
      this.#changes.push(() => work().then(resolve, reject))
      this.wake()
    })
  }

  /** Pages have become free, or a signal was aborted: who waits is looked at again. */
  wake(): void {
    void this.#run()
  }

  async #ask<T>(
    signal: AbortSignal | undefined,
    request: (resolve: (value: T) => void, reject: (error: unknown) => void) => Request,
  ): Promise<T> {
    const forget = onAbort(signal, () => this.wake())
    try {
      return await new Promise<T>((resolve, reject) => {
        this.#add(request(resolve, reject))
        this.wake()
      })
    } finally {
      forget()
    }
  }

  #add(request: Request): void {
    const { priority } = request.group.settings
    const after = this.#requests.findIndex(({ group }) => group.settings.priority < priority)
    this.#requests.splice(after < 0 ? this.#requests.length : after, 0, request)
  }

  /** Until nobody asks, or all that ask are parked. */
  async #run(): Promise<void> {
    if (this.#isRunning) return
    this.#isRunning = true
    while (this.#requests.length > 0 || this.#changes.length > 0) {
      // Consumers that handle the events of the last step without delay are in the next one.
      await new Promise((resolve) => setImmediate(resolve))
      for (const change of this.#changes.splice(0)) {
        const working = change()
        if (working !== undefined) await working
      }
      const hasHeld = await this.#holds()
      const shares = this.#shares()
      if (shares.length > 0) await this.#step(shares)
      else if (!hasHeld && this.#changes.length === 0) break
    }
    this.#isRunning = false
  }

  /** Work that may begin, one after the other. Whether there was any. */
  async #holds(): Promise<boolean> {
    let hasHeld = false
    for (const request of this.#requests.filter(({ type }) => type === 'hold') as Hold[]) {
      try {
        throwIfAborted(request.signal)
        if (!this.#guard()(request.group, request.pages)) continue
        hasHeld = true
        const value = await request.work()
        this.#drop(request)
        request.resolve(value)
      } catch (error) {
        this.#fail(request, error)
      }
    }
    return hasHeld
  }

  /** Answers the requests that need no step. Of the others: what the next step takes. */
  #shares(): Share[] {
    const shares: Share[] = []
    const mayTake = this.#guard()
    let room = this.#chunk
    for (const request of [...this.#requests]) {
      if (request.type === 'hold') continue
      const { group } = request
      const isOfOneModel = shares.every(
        ({ request }) => request.group.settings.model === group.settings.model,
      )
      if (!isOfOneModel || shares.some((share) => share.request.group === group)) continue
      const share = this.#shareOf(request, room)
      if (share === undefined || !mayTake(group, mostPages(share))) continue
      room -= share.filling
      shares.push(share)
    }
    return shares
  }

  /** undefined: the request is answered, or finds no room. */
  #shareOf(request: Advance | Probe, room: number): Share | undefined {
    try {
      throwIfAborted(request.signal)
      if (request.type === 'probe') return { request, parts: request.parts(), filling: 0 }
      const next = request.group.next()
      switch (next.type) {
        case 'step':
          return { request, parts: next.parts, filling: 0 }
        case 'prefill':
          return room === 0 ? undefined : fillingOf(request, next.prefill, room)
        case 'events':
          this.#answer(request, next.events)
          return undefined
        case 'idle':
          this.#answer(request, [])
          return undefined
      }
    } catch (error) {
      this.#fail(request, error)
      return undefined
    }
  }

  async #step(shares: readonly Share[]): Promise<void> {
    const abort = new AbortController()
    const forget = abortWithAll(shares, abort)
    try {
      const { model } = (shares[0] as Share).request.group.settings
      const parts = shares.flatMap((share) => share.parts)
      const sets = shares.map(workersOf)
      const { outputs, seconds } = await model.timedStep(parts, { signal: abort.signal, sets })
      let first = 0
      for (const share of shares) {
        this.#finish(share, outputs.slice(first, first + share.parts.length), seconds)
        first += share.parts.length
      }
      this.#report(reportOf(shares, outputs, seconds))
    } catch (error) {
      const [one] = shares
      if (shares.length === 1) this.#refused(one as Share, error)
      // Nothing was computed. Whose part it was that cannot be is found out with each alone.
      else for (const share of shares) await this.#alone(share)
    } finally {
      forget()
    }
  }

  async #alone(share: Share): Promise<void> {
    if (share.request.signal?.aborted) this.#refused(share, undefined)
    else await this.#step([share])
  }

  #finish({ request, filling }: Share, outputs: StepOutput[], seconds: number): void {
    const { group, signal } = request
    try {
      if (request.type === 'probe') {
        this.#drop(request)
        request.resolve(outputs)
        return
      }
      const events = filling === 0 ? group.stepped(outputs, seconds) : undefined
      if (filling > 0) group.prefilled(filling)
      throwIfAborted(signal)
      if (events !== undefined) this.#answer(request, events)
    } catch (error) {
      this.#fail(request, error)
    }
  }

  /** The group's part alone cannot be computed. */
  #refused({ request }: Share, error: unknown): void {
    try {
      throwIfAborted(request.signal)
      if (request.type === 'probe' || !isOutOfPages(error)) throw error
      const events = request.group.withoutRoom(error)
      if (events.length > 0) this.#answer(request, events)
    } catch (thrown) {
      this.#fail(request, thrown)
    }
  }

  /** Without events it is idle. */
  #answer(request: Advance, events: readonly WorkerEvent[]): void {
    this.#drop(request)
    for (const event of events) request.group.state.outbox.push(event)
    request.resolve(events.length > 0)
  }

  #fail(request: Request, error: unknown): void {
    this.#drop(request)
    request.reject(error)
  }

  #drop(request: Request): void {
    this.#requests = this.#requests.filter((other) => other !== request)
  }
}

function fillingOf(
  request: Share['request'],
  { block, tokens, done }: Prefill,
  room: number,
): Share {
  const filling = Math.min(room, tokens.length - done)
  const piece = tokens.subarray(done, done + filling)
  return { request, parts: [{ view: { blocks: [block] }, tokens: piece, sampler: null }], filling }
}

function mostPages({ parts }: Share): number {
  return parts.reduce(
    (sum, { tokens, drafts = [] }) => sum + pagesFor(tokens.length + drafts.length),
    0,
  )
}

function workersOf({ request, parts }: Share): WorkerSet {
  const { settings, warnings } = request.group
  const { beyondContext } = settings
  return { workers: parts.length, beyondContext, warnings, inLockStep: true }
}

function reportOf(
  shares: readonly Share[],
  outputs: readonly StepOutput[],
  seconds: number,
): StepReport {
  const report = { groups: shares.length, workers: 0, tokens: 0, prefilledTokens: 0 }
  let next = 0
  for (const { parts, filling } of shares) {
    report.prefilledTokens += filling
    if (filling === 0) report.workers += parts.length
    for (const { tokens } of parts) {
      const kept = outputs[next++]?.drafted?.kept ?? 0
      if (filling === 0) report.tokens += tokens.length + kept
    }
  }
  return { ...report, milliseconds: seconds * 1e3 }
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
