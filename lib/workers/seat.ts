// A group's place in a cache: the blocks that are made for it, and the pages they may take.

import type { Block } from '../block'
import type { Cache } from '../cache'
import { HogwildError } from '../errors'
import { PAGE_TOKENS, pagesFor } from '../limits'
import type { Batcher } from './batcher'
import type { BlockStore, Prefill } from './group'
import type { PrefixStore } from './prefix-store'

/** What the pool of a seat is for it. */
export interface SeatPool {
  /** Its budget is larger than what it is sure to find free now. */
  isLent: boolean
  prefixes: PrefixStore | undefined
  /** Whether it may take so many pages now. */
  grant(pages: number): boolean
}

/** A block that is filled with tokens, of which it has `done`. */
type Filling = Pick<Prefill, 'block' | 'tokens' | 'done'>

export class Seat implements BlockStore {
  readonly cache: Cache
  readonly batcher: Batcher
  /** Its budget; undefined: no bound but the cache. */
  readonly pages: number | undefined
  readonly #budget: number | undefined
  readonly #pool: SeatPool | undefined
  readonly #blocks = new Set<Block>()

  /** `pool`: of a scheduler's; undefined in a cache of the user's. */
  constructor(cache: Cache, batcher: Batcher, pages: number | undefined, pool?: SeatPool) {
    this.#pool = pool
    this.cache = cache
    this.batcher = batcher
    this.pages = pages
    this.#budget = pages === undefined ? undefined : cache.openBudget(pages)
  }

  createBlock(): Block {
    const block = this.cache.createBlock(this.#budget)
    this.#blocks.add(block)
    return block
  }

  /** Whether it was made here, or adopted. */
  owns(block: Block): boolean {
    return this.#blocks.has(block)
  }

  /** These are given back with those that are made here. */
  adopt(blocks: readonly Block[]): void {
    for (const block of blocks) this.#blocks.add(block)
  }

  /**
   * Whose pages blocks take that come from a file (cache-file.ts): its own, or nobody's. A page that none of them took is
   * its own where all of them are.
   */
  budgetsFor(owned: readonly boolean[]): number[] {
    const all = owned.every((isOwned) => isOwned)
    return [...owned, all].map((isOwned) => (isOwned ? (this.#budget ?? 0) : 0))
  }

  requireRoom(block: Block, tokens: number): void {
    if (this.#pool?.isLent !== true) {
      this.cache.beginPass([{ view: { blocks: [block] }, tokens }]).abort()
      return
    }
    // Pages that others have now may be free when they are wanted: what counts is the budget.
    const last = block.segments.at(-1)
    const begun = last === undefined ? 0 : last.pages * PAGE_TOKENS - last.length
    const free = (this.pages as number) - this.usedPages
    if (pagesFor(tokens - Math.min(begun, PAGE_TOKENS - 1)) <= free) return
    throw new HogwildError(
      `the budget is used up: ${tokens} tokens do not fit into ${free} pages of ${PAGE_TOKENS}`,
      'HOGWILD_OUT_OF_PAGES',
    )
  }

  reuse({ block, tokens, done }: Filling): number {
    const { prefixes, grant } = this.#pool ?? {}
    if (prefixes === undefined || this.#budget === undefined) return 0
    const pages = prefixes.find(block, tokens, done)
    const free = (this.pages as number) - this.usedPages
    if (pages === 0 || pagesFor(tokens.length - done) > free || !grant?.(pages)) return 0
    // They count as if it had computed them: it ends where it would have ended, and has what it needs if others go.
    this.cache.chargeBudget(this.#budget, pages)
    prefixes.take(block, tokens, done, pages, this)
    return pages * PAGE_TOKENS
  }

  offer({ block, tokens, done }: Filling): void {
    this.#pool?.prefixes?.offer(block, tokens, done, this)
  }

  /** Brings what the folder of the pool's store has of texts that are to be filled. Throws HOGWILD_ABORTED. */
  async load(texts: readonly Int32Array[], signal: AbortSignal): Promise<void> {
    for (const tokens of texts) await this.#pool?.prefixes?.load(tokens, signal)
  }

  get usedPages(): number {
    return this.#usage?.usedPages ?? 0
  }

  /** Most pages in use at once; undefined: it has no budget by which they are counted. */
  get peakPages(): number | undefined {
    return this.#usage?.peakPages
  }

  /** Gives its pages back. `keep`: the blocks belong to somebody else from now on. */
  leave(keep: boolean): void {
    if (this.cache.closed) return
    if (!keep) for (const block of this.#blocks) block.close()
    if (this.#budget !== undefined) this.cache.closeBudget(this.#budget)
    this.#pool?.prefixes?.release(this)
  }

  get #usage() {
    if (this.#budget === undefined || this.cache.closed) return undefined
    return this.cache.budgetStats(this.#budget)
  }
}
