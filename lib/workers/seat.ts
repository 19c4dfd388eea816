// A group's place in a cache: the blocks that are made for it, and the pages they may take.

import type { Block } from '../block'
import type { Cache } from '../cache'
import { HogwildError } from '../errors'
import { PAGE_TOKENS } from '../limits'
import type { Batcher } from './batcher'
import type { BlockStore } from './group'

export class Seat implements BlockStore {
  readonly cache: Cache
  readonly batcher: Batcher
  /** Its budget; undefined: no bound but the cache. */
  readonly pages: number | undefined
  readonly #budget: number | undefined
  readonly #isLent: boolean
  readonly #blocks = new Set<Block>()

  /** `isLent`: its budget is larger than what it is sure to find free now. */
  constructor(cache: Cache, batcher: Batcher, pages: number | undefined, isLent: boolean) {
    this.#isLent = isLent
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
    if (!this.#isLent) {
      this.cache.beginPass([{ view: { blocks: [block] }, tokens }]).abort()
      return
    }
    // Pages that others have now may be free when they are wanted: what counts is the budget.
    const missing = tokens - (block.length > 0 ? PAGE_TOKENS - 1 : 0)
    const free = (this.pages as number) - this.usedPages
    if (Math.ceil(missing / PAGE_TOKENS) <= free) return
    throw new HogwildError(
      `the budget is used up: ${tokens} tokens do not fit into ${free} pages of ${PAGE_TOKENS}`,
      'HOGWILD_OUT_OF_PAGES',
    )
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
  }

  get #usage() {
    if (this.#budget === undefined || this.cache.closed) return undefined
    return this.cache.budgetStats(this.#budget)
  }
}
