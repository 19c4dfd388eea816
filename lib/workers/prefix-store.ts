// Beginnings of prompts and headers whose keys and values are kept, in pages, when their group has ended: a text that
// begins alike takes them in the place of computing them.
//
// That changes nothing, not the last bit on a CPU: a page is known by all tokens up to its end, from the beginning of its
// block on, and it was computed with nothing before them; its keys stay as they were rotated; whole pages are followed by
// what would have followed them. Whatever stands elsewhere in a view or came there from another block (turns, branches,
// what `inject` and workers write) saw something else, and is not kept.

import { createHash } from 'node:crypto'
import { throwIfAborted } from '../abort-signal'
import type { Block } from '../block'
import type { Cache } from '../cache'
import { copyBlocks, importBytes } from '../cache-file'
import { errorCode } from '../errors'
import { PAGE_TOKENS } from '../limits'
import type { PrefixFolder } from './prefix-folder'
import type { PrefixMetrics } from './prefix-metrics'

/** A page of tokens, the store's own. */
interface StoredPage {
  key: string
  block: Block
  /** Which page of its text it is, from 0. */
  index: number
  /** Who uses it. */
  holders: number
}

/** Where a store has what no group uses any more. */
export interface PrefixPlace {
  cache: Cache
  /** Pages that are kept while nobody uses them. */
  pages: number
  /** It is opened when it is first used; undefined: it cannot be. */
  folder: (() => Promise<PrefixFolder | undefined>) | undefined
  /** Does `work`, which uses the cache, while nobody else does. */
  exclusive: <T>(work: () => Promise<T>) => Promise<T>
  counters: PrefixMetrics
}

/** The stored pages of one cache. All but `load` and `close` is called while no step is under way on it. */
export class PrefixStore {
  readonly #place: PrefixPlace
  readonly #pages = new Map<string, StoredPage>()
  /** Those that nobody uses, the one that was used last at the end. */
  readonly #idle = new Map<string, StoredPage>()
  readonly #held = new Map<object, Set<StoredPage>>()
  readonly #keys = new WeakMap<Int32Array, string[]>()
  #loading: Promise<void> = Promise.resolve()
  /** To be written to the folder, and the work on it. */
  readonly #unsaved: StoredPage[] = []
  #saving: Promise<void> | undefined

  constructor(place: PrefixPlace) {
    this.#place = place
    place.cache.spare = this
  }

  /** Pages that are kept although nobody uses them: `makeRoom` gives them back. */
  get idlePages(): number {
    return this.#idle.size
  }

  /**
   * How many pages are stored of those that follow the first `done` of `tokens` in `block`, which holds these and no more,
   * as they are when they are computed alone.
   */
  find(block: Block, tokens: Int32Array, done: number): number {
    if (done % PAGE_TOKENS !== 0) return 0
    const keys = this.#keysOf(tokens)
    const first = done / PAGE_TOKENS
    let end = first
    while (end < keys.length && this.#pages.has(keys[end] as string)) end++
    return end > first && isBeginning(block, tokens, done) ? end - first : 0
  }

  /** Puts so many of the pages that `find` has found behind the block; they are in use until `holder` is released. */
  take(block: Block, tokens: Int32Array, done: number, pages: number, holder: object): void {
    const first = done / PAGE_TOKENS
    for (const key of this.#keysOf(tokens).slice(first, first + pages)) {
      const page = this.#pages.get(key) as StoredPage
      block.appendFrom(page.block)
      this.#hold(page, holder)
    }
    this.#place.counters.hits++
    this.#place.counters.reusedTokens += pages * PAGE_TOKENS
  }

  /** Keeps the whole pages of a block that holds the first `done` of `tokens`, once `holder` is released. */
  offer(block: Block, tokens: Int32Array, done: number, holder: object): void {
    const keys = this.#keysOf(tokens).slice(0, Math.floor(done / PAGE_TOKENS))
    if (keys.every((key) => this.#pages.has(key)) || !isBeginning(block, tokens, done)) return
    for (const [index, key] of keys.entries()) {
      if (this.#pages.has(key)) continue
      const part = block.forkRange(index * PAGE_TOKENS, (index + 1) * PAGE_TOKENS)
      const page = { key, block: part, index, holders: 0 }
      this.#pages.set(key, page)
      this.#hold(page, holder)
      this.#save(page)
    }
  }

  /** Nothing is in use on the holder's account any more. */
  release(holder: object): void {
    const pages = [...(this.#held.get(holder) ?? [])]
    this.#held.delete(holder)
    // The last pages of a text go first: without those before them they are of no use.
    for (const page of pages.sort((one, other) => other.index - one.index)) {
      if (--page.holders === 0) this.#idle.set(page.key, page)
    }
    this.#shrink(this.#place.pages)
  }

  /** Gives pages back, those used longest ago first, until so many are free in the cache or none is left. */
  makeRoom(pages: number): void {
    const missing = pages - this.#place.cache.stats.freePages
    if (missing > 0) this.#shrink(Math.max(0, this.#idle.size - missing))
  }

  /**
   * Brings what the folder has of the beginning of a text, as far as there is room for it. Throws HOGWILD_ABORTED; what
   * cannot be read is computed.
   */
  async load(tokens: Int32Array, signal: AbortSignal): Promise<void> {
    const { folder: open } = this.#place
    if (open === undefined) return
    // One after the other: of several that begin alike the first reads the files.
    const before = this.#loading
    const loading = before.then(async () => {
      const folder = await open()
      if (folder !== undefined) await this.#load(folder, tokens, signal)
    })
    this.#loading = loading.catch(() => {})
    await loading
  }

  /** Resolves once what was offered is in the folder. */
  async flush(): Promise<void> {
    await this.#saving
  }

  /** Gives all pages back that nobody uses, and keeps no more. */
  async close(): Promise<void> {
    await this.#loading
    await this.flush()
    this.#place.cache.spare = undefined
    for (const { block } of this.#pages.values()) block.close()
    this.#pages.clear()
    this.#idle.clear()
  }

  #hold(page: StoredPage, holder: object): void {
    const held = this.#held.get(holder) ?? new Set()
    this.#held.set(holder, held)
    if (held.has(page)) return
    held.add(page)
    page.holders++
    this.#idle.delete(page.key)
  }

  #shrink(most: number): void {
    for (const [key, { block }] of this.#idle) {
      if (this.#idle.size <= most) return
      this.#idle.delete(key)
      this.#pages.delete(key)
      block.close()
    }
  }

  /** Of each whole page: SHA-256 of the key before it and the page's tokens. */
  #keysOf(tokens: Int32Array): string[] {
    const known = this.#keys.get(tokens)
    if (known !== undefined) return known
    const keys: string[] = []
    for (let end = PAGE_TOKENS; end <= tokens.length; end += PAGE_TOKENS) {
      const page = tokens.subarray(end - PAGE_TOKENS, end)
      const hash = createHash('sha256').update(keys.at(-1) ?? '')
      keys.push(
        hash.update(new Uint8Array(page.buffer, page.byteOffset, page.byteLength)).digest('hex'),
      )
    }
    this.#keys.set(tokens, keys)
    return keys
  }

  async #load(folder: PrefixFolder, tokens: Int32Array, signal: AbortSignal): Promise<void> {
    const keys = this.#keysOf(tokens).slice(0, this.#place.pages)
    try {
      for (const [index, key] of keys.entries()) {
        throwIfAborted(signal)
        if (!this.#pages.has(key) && !(await this.#loadPage(folder, tokens, key, index))) break
      }
    } finally {
      // They count as used now, the first ones last: those stay longest.
      for (const key of keys.reverse()) {
        const page = this.#idle.get(key)
        if (page === undefined) continue
        this.#idle.delete(key)
        this.#idle.set(key, page)
      }
      this.#shrink(this.#place.pages)
    }
  }

  /** false: there is none that can be used, or no room for it. */
  async #loadPage(
    folder: PrefixFolder,
    tokens: Int32Array,
    key: string,
    index: number,
  ): Promise<boolean> {
    const { cache, exclusive, counters } = this.#place
    const file = await folder.read(key)
    if (file === undefined) return false
    try {
      const { blocks, data } = await exclusive(() => importBytes(cache, file.path, file.bytes))
      const [block] = blocks
      if (block === undefined || !isPage(block, data, tokens, key, index)) {
        for (const one of blocks) one.close()
        counters.damagedFiles++
        await folder.remove(key)
        return false
      }
      const page = { key, block, index, holders: 0 }
      this.#pages.set(key, page)
      this.#idle.set(key, page)
      counters.loadedPages++
      return true
    } catch (error) {
      const code = errorCode(error)
      if (code === undefined) throw error
      if (code === 'HOGWILD_INVALID_SESSION' || code === 'HOGWILD_UNSUPPORTED') {
        counters.damagedFiles++
        await folder.remove(key)
      }
      return false
    }
  }

  #save(page: StoredPage): void {
    const { folder } = this.#place
    if (folder === undefined) return
    this.#unsaved.push(page)
    this.#saving ??= this.#saveAll(folder)
  }

  async #saveAll(open: () => Promise<PrefixFolder | undefined>): Promise<void> {
    try {
      const folder = await open()
      for (let page = this.#unsaved.shift(); page !== undefined; page = this.#unsaved.shift()) {
        if (folder !== undefined && !folder.has(page.key)) await this.#savePage(folder, page)
      }
    } finally {
      this.#saving = undefined
    }
  }

  async #savePage(folder: PrefixFolder, { key, block, index }: StoredPage): Promise<void> {
    const { cache, exclusive, counters } = this.#place
    const isStored = () => this.#pages.get(key)?.block === block && !cache.closed
    try {
      const contents = await exclusive(async () =>
        isStored() ? await copyBlocks(cache, [block], dataOf(key, index)) : undefined,
      )
      if (contents !== undefined && (await folder.write(key, contents))) counters.savedPages++
    } catch (error) {
      // A cache that was closed, or no memory for a copy: the page is computed another time.
      if (errorCode(error) === undefined) throw error
    }
  }
}

/** What goes with the page of a file, which could have been renamed. */
const dataOf = (key: string, index: number) => ({ prefix: key, page: index })

function isPage(
  block: Block,
  data: unknown,
  tokens: Int32Array,
  key: string,
  index: number,
): boolean {
  const begin = index * PAGE_TOKENS
  const [segment, ...others] = block.segments
  return (
    JSON.stringify(data) === JSON.stringify(dataOf(key, index)) &&
    others.length === 0 &&
    segment?.rotatedAt === begin &&
    hasTokens(block, tokens.subarray(begin, begin + PAGE_TOKENS))
  )
}

/** Whether the block holds the first `done` tokens, as they are when they are computed alone. */
function isBeginning(block: Block, tokens: Int32Array, done: number): boolean {
  if (block.length !== done) return false
  if (done === 0) return true
  const [segment, ...others] = block.segments
  return (
    others.length === 0 && segment?.rotatedAt === 0 && hasTokens(block, tokens.subarray(0, done))
  )
}

function hasTokens(block: Block, tokens: Int32Array): boolean {
  const own = block.tokens()
  return own.length === tokens.length && own.every((token, i) => token === tokens[i])
}
