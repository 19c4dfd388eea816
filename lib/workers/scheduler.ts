// Groups over one model: when each begins, and in whose cache it lives. Who is in a step is the batcher's business.

import { onAbort, throwIfAborted } from '../abort-signal'
import { type Cache, checkCapacity } from '../cache'
import { errorCode, HogwildError } from '../errors'
import { kvDtypes } from '../formats'
import { DEFAULT_CAPACITY, MAX_CAPACITY, PAGE_TOKENS, pagesFor } from '../limits'
import { Model } from '../model'
import { checkPath } from '../sources/files'
import {
  checkInstance,
  checkInteger,
  checkOneOf,
  checkOptions,
  invalid,
  optionKeys,
} from '../validate'
import type { Warning } from '../warnings'
import type { Admission } from './admission'
import { Batcher, type StepReport } from './batcher'
import { type GroupMessage, publish } from './channels'
import type { Tenant } from './group'
import { firstCome, type OrderPolicy, type QueuedGroup } from './order'
import { Pool, poolCapacity } from './pool'
import { PrefixFiles } from './prefix-folder'
import { noPrefixes, type PrefixMetrics } from './prefix-metrics'
import { PrefixStore } from './prefix-store'
import { Seat } from './seat'

/** Options of `createScheduler`. */
export interface SchedulerOptions {
  /** Which groups share. */
  model: Model
  /**
   * Tokens of its pool, rounded up to pages: groups wait until their budgets (`RunOptions.capacity`) are free. Default:
   * nobody waits for pages. The pool has room for 64 groups (8 on a GPU) within half of the memory that is free (an
   * eighth of a GPU's), and a group that finds no room in it gets another one, with which it takes turns.
   */
  capacity?: number | undefined
  /** What a group waits for; default 'reserve'. */
  admission?: Admission | undefined
  /** Groups that have begun and not ended; others wait. Default: no bound but the pages. */
  maxGroups?: number | undefined
  /** Which of those that wait begin; default `firstCome()`. */
  order?: OrderPolicy | undefined
  /**
   * Tokens of prompts and headers, of all groups together, that one step computes: no running group waits longer for its
   * next token than such a step takes. Default 512.
   */
  chunk?: number | undefined
  /**
   * Keeps keys and values of prompts and headers, in whole pages, for groups whose prompt or header begins with the same
   * tokens: those are not computed again (docs/groups.md). On a CPU this changes no bit of what a group writes. Groups that
   * begin or want pages come first: what is kept makes room. Pools stay open until `close`. Default: nothing is kept.
   */
  prefixes?: PrefixOptions | undefined
}

/** What is kept of prompts and headers, and where. */
export interface PrefixOptions {
  /** Tokens, rounded up to pages, that are kept while no group uses them, those used last; default 32768. */
  capacity?: number | undefined
  /**
   * Path of a folder in which they are kept too, beyond this process: a file for each page. Several processes and models
   * may share one. Made if it is not there. Default: none.
   */
  folder?: string | undefined
  /** Bytes of the files in it, those used last; default 4 GiB. */
  folderBytes?: number | undefined
}

const KEYS = optionKeys<SchedulerOptions>()({
  model: true,
  capacity: true,
  admission: true,
  maxGroups: true,
  order: true,
  chunk: true,
  prefixes: true,
})

const PREFIX_KEYS = optionKeys<PrefixOptions>()({
  capacity: true,
  folder: true,
  folderBytes: true,
})

const PREFIX_CAPACITY = 32_768
const FOLDER_BYTES = 4 * 2 ** 30

/** What a scheduler has done so far, and how full it is. */
export interface SchedulerMetrics {
  /** Groups that have not ended. */
  groups: ScheduledGroups
  /** Of its pools; of caches that users bring nothing is counted. */
  pages: ScheduledPages
  /** What `SchedulerOptions.prefixes` saved. */
  prefixes: Readonly<PrefixMetrics>
  /** Lock steps so far. */
  steps: number
  /** Tokens of lock steps. */
  tokens: number
  /** Tokens of prompts and headers. */
  prefilledTokens: number
  /** Time of all steps. */
  milliseconds: number
  /** Tokens of lock steps for each second of steps, over the last 64 of them; 0 before the first. */
  tokensPerSecond: number
}

/** Groups of a scheduler, now. */
export interface ScheduledGroups {
  /** Those that have not begun. */
  waiting: number
  /** Those that have begun and not ended. */
  running: number
}

/** Pages of a scheduler's pools, now. */
export interface ScheduledPages {
  /** Of all its pools. */
  total: number
  /** Those that blocks use. */
  used: number
  /** Those of the running groups' budgets. */
  reserved: number
  /** Those kept for groups to come, free for whoever wants them. */
  kept: number
}

/** Steps over which tokens per second are measured. */
const RECENT = 64

interface Waiting {
  group: Tenant
  queued: QueuedGroup
  resolve: (seat: Seat) => void
  reject: (error: unknown) => void
}

/**
 * Makes a scheduler: groups that run on it (`RunOptions.scheduler`) share its steps and its pool. Runs that name none share
 * that of their model, which never makes them wait.
 *
 *     const scheduler = createScheduler({ model, capacity: 65_536, order: firstCome() })
 *     const runs = requests.map((prompt) => runWorkers({ model, scheduler, prompt, workers, capacity: 2048 }))
 *     await Promise.all(runs.map(consume))
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function createScheduler(options: SchedulerOptions): Scheduler {
  return new Scheduler(options)
}

const schedulers = new WeakMap<Model, Scheduler>()

/** The scheduler of runs that name none. */
export function schedulerOf(model: Model): Scheduler {
  checkInstance(model, 'model', Model)
  const known = schedulers.get(model)
  if (known !== undefined) return known
  const scheduler = new Scheduler({ model })
  schedulers.set(model, scheduler)
  return scheduler
}

/** Shares a model among groups. Costs nothing while nobody runs on it; its pools are closed with their last group. */
export class Scheduler {
  /** Which its groups share. */
  readonly model: Model
  readonly #capacity: number | undefined
  readonly #admission: Admission
  readonly #maxGroups: number
  readonly #order: OrderPolicy
  readonly #chunk: number
  readonly #prefixes: { pages: number; files: PrefixFiles | undefined } | undefined
  readonly #counters = noPrefixes()
  #isClosed = false
  #closing: Promise<void> | undefined
  /** By what their caches differ in. */
  readonly #pools = new Map<string, Pool[]>()
  readonly #running = new Map<Seat, { queued: QueuedGroup; pool: Pool; key: string }>()
  #waiting: Waiting[] = []
  readonly #recent: StepReport[] = []
  #steps = 0
  #tokens = 0
  #prefilledTokens = 0
  #milliseconds = 0

  /** @internal */
  constructor(options: SchedulerOptions) {
    options = checkOptions(options, 'options', KEYS)
    const { capacity, order, maxGroups } = options
    this.model = checkInstance(options.model, 'options.model', Model)
    this.#capacity = capacity === undefined ? undefined : checkCapacity(capacity)
    this.#admission = checkOneOf(options.admission ?? 'reserve', 'options.admission', [
      'reserve',
      'park',
    ])
    this.#maxGroups =
      maxGroups === undefined
        ? Number.POSITIVE_INFINITY
        : checkInteger(maxGroups, 'options.maxGroups', 1)
    this.#order = checkOrder(order ?? firstCome())
    this.#chunk = checkInteger(options.chunk ?? 512, 'options.chunk', 1)
    this.#prefixes = options.prefixes && checkPrefixes(options.prefixes, this.model)
  }

  /** What it has done so far, and how full it is now. */
  get metrics(): SchedulerMetrics {
    const pools = [...this.#pools.values()].flat().filter(({ cache }) => !cache.closed)
    const sum = (value: (pool: Pool) => number) => pools.reduce((all, pool) => all + value(pool), 0)
    const recent = (value: (report: StepReport) => number) =>
      this.#recent.reduce((all, report) => all + value(report), 0)
    const milliseconds = recent((report) => report.milliseconds)
    return {
      groups: { waiting: this.#waiting.length, running: this.#running.size },
      pages: {
        total: sum(({ pages }) => pages),
        used: sum((pool) => pool.pages - pool.cache.stats.freePages - keptPages(pool)),
        reserved: sum(({ reservedPages }) => reservedPages),
        kept: sum(keptPages),
      },
      prefixes: { ...this.#counters },
      steps: this.#steps,
      tokens: this.#tokens,
      prefilledTokens: this.#prefilledTokens,
      milliseconds: this.#milliseconds,
      tokensPerSecond: milliseconds > 0 ? (1e3 * recent(({ tokens }) => tokens)) / milliseconds : 0,
    }
  }

  /** @internal */
  static is(value: unknown): value is Scheduler {
    return typeof value === 'object' && value !== null && #capacity in value
  }

  /** @internal Pages of a budget. Throws HOGWILD_INVALID_ARGUMENT, of `name`, where the pool can never have so many. */
  pagesFor(capacity: number | undefined, name = 'options.capacity'): number {
    const most = this.#capacity ?? Number.POSITIVE_INFINITY
    const tokens = capacity ?? Math.min(DEFAULT_CAPACITY, most)
    const pages = pagesFor(tokens)
    if (pages <= pagesFor(most)) return pages
    throw invalid(name, `at most the ${most} tokens of the scheduler`, capacity)
  }

  /**
   * @internal A seat for the group, once it may begin. Rejects with HOGWILD_ABORTED, with what making a pool throws, and
   * with what the order throws.
   */
  async enter(group: Tenant, signal: AbortSignal): Promise<Seat> {
    const { cache, capacity } = group.settings
    if (cache !== undefined) {
      const pages = capacity === undefined ? undefined : pagesFor(capacity)
      return new Seat(cache, this.#batcherOf(cache), pages)
    }
    throwIfAborted(signal)
    if (this.#isClosed) throw closed()
    const queued = queuedGroup(group, this.pagesFor(capacity))
    let forget = () => {}
    try {
      return await new Promise<Seat>((resolve, reject) => {
        const waiting = { group, queued, resolve, reject }
        this.#waiting.push(waiting)
        forget = onAbort(signal, () => this.#withdraw(waiting, signal))
        this.#admit()
        if (this.#waiting.includes(waiting)) publish('hogwild:group:wait', () => message(queued))
      })
    } finally {
      forget()
    }
  }

  /** @internal The group has ended: its pages are free for others. `keep`: its blocks stay, in a cache of their user's. */
  async leave(seat: Seat, keep: boolean): Promise<void> {
    const running = this.#running.get(seat)
    if (running === undefined) {
      seat.leave(keep)
      return
    }
    const { queued, pool, key } = running
    this.#running.delete(seat)
    pool.leave(seat)
    publish('hogwild:group:end', () => message(queued))
    this.#admit()
    if (pool.isEmpty) await this.#closePool(pool, key)
  }

  /**
   * Lets no group begin any more: those that wait and those to come reject with HOGWILD_CLOSED; those that run go on.
   * Resolves once prefixes that are kept are in their folder, and the pages of pools that no group uses are given back.
   * Idempotent.
   */
  close(): Promise<void> {
    this.#isClosed = true
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    for (const { reject } of this.#waiting.splice(0)) reject(closed())
    const pools = [...this.#pools].flatMap(([key, list]) => list.map((pool) => ({ pool, key })))
    await Promise.all(
      pools.map(async ({ pool, key }) => {
        if (pool.isEmpty) await this.#closePool(pool, key)
        else await pool.prefixes?.flush()
      }),
    )
  }

  /** As `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** A pool without groups; of those that keep prefixes, the first of its kind stays open. */
  async #closePool(pool: Pool, key: string): Promise<void> {
    const pools = this.#poolsOf(key)
    if (pool.prefixes !== undefined && pool === pools[0] && !this.#isClosed) return
    this.#pools.set(
      key,
      pools.filter((other) => other !== pool),
    )
    await pool.close()
  }

  #withdraw(waiting: Waiting, signal: AbortSignal): void {
    this.#waiting = this.#waiting.filter((other) => other !== waiting)
    try {
      throwIfAborted(signal)
    } catch (error) {
      waiting.reject(error)
    }
    this.#admit()
  }

  /** Lets begin who may. What the order throws, all that wait are told. */
  #admit(): void {
    if (this.#waiting.length === 0) return
    try {
      const running = [...this.#running.values()].map(({ queued }) => queued)
      const chosen = this.#order.choose(
        this.#waiting.map(({ queued }) => queued),
        running,
      )
      for (const queued of chosen) {
        if (this.#running.size >= this.#maxGroups || !this.#begin(queued)) return
      }
    } catch (error) {
      for (const { reject } of this.#waiting.splice(0)) reject(error)
    }
  }

  /** false: there are not enough pages. */
  #begin(queued: QueuedGroup): boolean {
    const waiting = this.#waiting.find((other) => other.queued === queued)
    if (waiting === undefined) throw invalid('what the order chose', 'groups that wait', queued)
    const { group, resolve, reject } = waiting
    try {
      const key = cacheKey(group)
      const pool = this.#poolFor(key, group, queued.pages)
      if (pool === undefined) return false
      const seat = pool.enter(group, queued.pages)
      this.#running.set(seat, { queued, pool, key })
      publish('hogwild:group:begin', () => message(queued))
      resolve(seat)
    } catch (error) {
      reject(error)
    }
    this.#waiting = this.#waiting.filter((other) => other !== waiting)
    return true
  }

  #poolFor(key: string, group: Tenant, pages: number): Pool | undefined {
    const pools = this.#poolsOf(key)
    const fitting = pools.find((pool) => pool.fits(pages))
    if (fitting !== undefined || (this.#capacity !== undefined && pools.length > 0)) return fitting
    const cache = this.#createCache(group, pages)
    const pool = new Pool(
      cache,
      this.#admission,
      (guard) => new Batcher(this.#chunk, this.#report, guard),
      (batcher) => this.#createPrefixes(cache, batcher),
    )
    this.#pools.set(key, [...pools, pool])
    return pool
  }

  #createPrefixes(cache: Cache, batcher: Batcher): PrefixStore | undefined {
    if (this.#prefixes === undefined) return undefined
    const { pages, files } = this.#prefixes
    return new PrefixStore({
      cache,
      pages,
      folder: files && (() => files.of(cache)),
      exclusive: (work) => batcher.exclusive(work),
      counters: this.#counters,
    })
  }

  #poolsOf(key: string): Pool[] {
    return (this.#pools.get(key) ?? []).filter(({ cache }) => !cache.closed)
  }

  #createCache({ settings, warnings }: Tenant, pages: number): Cache {
    const { context, cacheDtype: dtype } = settings
    const onWarning = ({ code, message }: Warning) => warnings.warn(code, message)
    const options = { context, dtype, onWarning }
    const budget = pages * PAGE_TOKENS
    const capacity = this.#capacity ?? poolCapacity(this.model, pages, dtype)
    try {
      return this.model.createCache({ ...options, capacity })
    } catch (error) {
      const isTooLarge = errorCode(error) === 'HOGWILD_OUT_OF_MEMORY'
      if (!isTooLarge || this.#capacity !== undefined || capacity === budget) throw error
      return this.model.createCache({ ...options, capacity: budget })
    }
  }

  #batcherOf(cache: Cache): Batcher {
    const known = batchers.get(cache)
    if (known !== undefined) return known
    const batcher = new Batcher(this.#chunk, this.#report)
    batchers.set(cache, batcher)
    return batcher
  }

  readonly #report = (report: StepReport): void => {
    this.#steps++
    this.#tokens += report.tokens
    this.#prefilledTokens += report.prefilledTokens
    this.#milliseconds += report.milliseconds
    this.#recent.push(report)
    if (this.#recent.length > RECENT) this.#recent.shift()
    publish('hogwild:step', () => report)
  }
}

/** Of caches that users bring: all groups on one are in the same steps. */
const batchers = new WeakMap<Cache, Batcher>()

/** Groups with the same key may live in one cache. */
function cacheKey({ settings: { model, context, cacheDtype } }: Tenant): string {
  const dtypes = cacheDtype === undefined ? 'default' : JSON.stringify(kvDtypes(cacheDtype))
  return `${dtypes} ${model.rotatesForLongViews(context)}`
}

function queuedGroup({ settings, workers }: Tenant, pages: number): QueuedGroup {
  const { prompt, maxTokens, priority } = settings
  return { prompt, workers: workers.length, maxTokens, pages, priority }
}

function message({ prompt, workers, pages, priority }: QueuedGroup): GroupMessage {
  return { workers, promptTokens: prompt.length, pages, priority }
}

function keptPages({ prefixes }: Pool): number {
  return prefixes?.idlePages ?? 0
}

function closed(): HogwildError {
  return new HogwildError('the scheduler is closed', 'HOGWILD_CLOSED')
}

function checkPrefixes(value: PrefixOptions, model: Model) {
  const { capacity, folder, folderBytes } = checkOptions(value, 'options.prefixes', PREFIX_KEYS)
  const name = 'options.prefixes'
  if (folder === undefined && folderBytes !== undefined) {
    throw invalid(`${name}.folderBytes`, 'absent without a folder', folderBytes)
  }
  const bytes = checkInteger(folderBytes ?? FOLDER_BYTES, `${name}.folderBytes`, 1)
  const path = folder === undefined ? undefined : checkPath(folder, `${name}.folder`)
  return {
    pages: pagesFor(checkInteger(capacity ?? PREFIX_CAPACITY, `${name}.capacity`, 1, MAX_CAPACITY)),
    files: path === undefined ? undefined : new PrefixFiles(path, bytes, model),
  }
}

function checkOrder(order: OrderPolicy): OrderPolicy {
  if (typeof order?.choose !== 'function') {
    throw invalid('options.order', 'firstCome(), multiBin() or an object with choose()', order)
  }
  return order
}
