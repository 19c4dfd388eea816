// A pool: a cache in which groups of a scheduler live, each with a budget of its pages.

import { bytesPerToken, type Cache } from '../cache'
import { defaultCacheDtype } from '../cache-dtype'
import type { CacheDtype } from '../formats'
import { DEFAULT_CAPACITY, PAGE_TOKENS } from '../limits'
import { availableMemory } from '../memory'
import type { Model } from '../model'
import type { Admission } from './admission'
import { type Claim, isSafe } from './banker'
import type { Batcher, PageGuard } from './batcher'
import type { Tenant } from './group'
import type { PrefixStore } from './prefix-store'
import { Seat } from './seat'

export class Pool {
  readonly cache: Cache
  readonly batcher: Batcher
  readonly pages: number
  /** What is kept in it of groups that have ended. Their pages are free for whoever wants them. */
  readonly prefixes: PrefixStore | undefined
  readonly #admission: Admission
  readonly #seats = new Map<Seat, Tenant>()
  /** Where pages are lent, those of the groups when the next step is put together. */
  #claims = new Map<Tenant, Claim>()
  #reserved = 0

  constructor(
    cache: Cache,
    admission: Admission,
    batcher: (guard: PageGuard) => Batcher,
    prefixes: (batcher: Batcher) => PrefixStore | undefined,
  ) {
    this.cache = cache
    this.#admission = admission
    this.pages = cache.stats.pages
    this.batcher = batcher(() => this.#lend())
    this.prefixes = prefixes(this.batcher)
  }

  get reservedPages(): number {
    return this.#reserved
  }

  get isEmpty(): boolean {
    return this.#seats.size === 0
  }

  fits(pages: number): boolean {
    if (this.#admission === 'park') return pages <= this.pages
    return pages <= this.pages - this.#reserved
  }

  enter(group: Tenant, pages: number): Seat {
    const seat = new Seat(this.cache, this.batcher, pages, {
      isLent: this.#admission === 'park',
      prefixes: this.prefixes,
      grant: (wanted) => this.#grant(group, wanted),
    })
    this.#seats.set(seat, group)
    this.#reserved += pages
    return seat
  }

  leave(seat: Seat): void {
    if (!this.#seats.delete(seat)) return
    this.#reserved -= seat.pages as number
    seat.leave(false)
    this.batcher.wake()
  }

  /** No group is in it. Resolves once what is kept is in the store's folder, too. */
  async close(): Promise<void> {
    await this.prefixes?.close()
    await this.cache.close()
  }

  #lend(): ReturnType<PageGuard> {
    if (this.#admission === 'park') {
      this.#claims = new Map(
        [...this.#seats].map(([seat, group]) => [
          group,
          { used: seat.usedPages, limit: seat.pages as number },
        ]),
      )
    }
    return (group, pages) => this.#grant(group, pages)
  }

  /** Whether a group may take so many pages more, beside what was granted before in the same step. */
  #grant(group: Tenant, pages: number): boolean {
    if (this.#admission === 'reserve') return true
    const claim = this.#claims.get(group) as Claim
    const before = claim.used
    claim.used = Math.min(claim.limit, before + pages)
    if (isSafe([...this.#claims.values()], this.pages)) return true
    claim.used = before
    return false
  }
}

/** Pools of a CPU cost address space until pages are written, those of a GPU its memory: room for so many groups. */
const GROUPS = { cpu: 64, cuda: 8 } as const

/** Tokens of a pool that is made for a group with this budget, where nothing is said of it. */
export function poolCapacity(model: Model, pages: number, dtype: CacheDtype | undefined): number {
  const { device, config } = model
  const isCpu = device.info.type === 'cpu'
  const shape = {
    layers: config.layers.length,
    kvHeads: config.kvHeads,
    headDim: config.headDim,
    dtype: dtype ?? defaultCacheDtype(device, model.dtype),
  }
  const budget = pages * PAGE_TOKENS
  const free = isCpu ? availableMemory() / 2 : device.freeMemory / 8
  const most = Math.floor(free / bytesPerToken(shape) / PAGE_TOKENS) * PAGE_TOKENS
  const wanted = GROUPS[device.info.type] * Math.max(budget, DEFAULT_CAPACITY)
  return Math.max(budget, Math.min(wanted, most))
}
