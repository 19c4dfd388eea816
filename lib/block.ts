// Blocks: the lists of tokens of which views are made.

import type { Cache } from './cache'
import { pagesFor } from './limits'
import { type BlockHandle, native } from './native'
import {
  checkBoolean,
  checkInstance,
  checkInteger,
  checkOptions,
  invalid,
  optionKeys,
} from './validate'

/** A run of a block's tokens that lie together in storage, and whose keys were rotated at consecutive positions. */
export interface Segment {
  /** Tokens. */
  length: number
  /** Position at which its first key was rotated. */
  rotatedAt: number
  /** Pages that it reaches. */
  pages: number
}

/** What `compact` did. */
export interface CompactResult {
  /** Segments that the block had. */
  segmentsBefore: number
  /** Segments that it has now: 1, or 0 where it is empty; more of int8 keys, which are not turned. */
  segmentsAfter: number
  /** Tokens whose keys and values were copied. */
  tokensMoved: number
}

/** What a layer stores of a block. Hkv: heads of keys and values; D: dimensions of a head. */
export interface StoredKeys {
  /** Keys as stored, rotated: [length, Hkv, D]. */
  k: Float32Array
  /** Values: [length, Hkv, D]. */
  v: Float32Array
  /** Position at which each key was rotated: [length]. */
  rotatedAt: Float64Array
}

/** Options of `Block.appendFrom`. */
export interface AppendFromOptions {
  /** Whether the source is emptied afterwards: both happen, or neither. Default false. */
  clearSource?: boolean | undefined
}

const APPEND_FROM_KEYS = optionKeys<AppendFromOptions>()({ clearSource: true })

/**
 * An ordered list of tokens with one writer: keys and values of all layers, and the token ids. All
 * operations are O(pages) and move no key, `compact` apart; each takes place as a whole or throws and
 * changes nothing. Blocks of different caches never mix (HOGWILD_INVALID_ARGUMENT).
 */
export class Block {
  /** The cache whose pages it takes. */
  readonly cache: Cache
  readonly #handle: BlockHandle

  /** @internal */
  constructor(cache: Cache, handle: BlockHandle) {
    this.cache = cache
    this.#handle = handle
  }

  /** Tokens. While a step runs: without its new ones. */
  get length(): number {
    return native.blockLength(this.handle)
  }

  /** How its tokens lie in storage, from the first to the last. */
  get segments(): Segment[] {
    return native.blockSegments(this.handle)
  }

  /** Token ids, [length]; -1 for tokens of a pass, which have none. */
  tokens(): Int32Array {
    return native.blockTokens(this.handle)
  }

  /** Appends the source's tokens. */
  appendFrom(source: Block, options: AppendFromOptions = {}): void {
    const from = checkInstance(source, 'source', Block)
    const { clearSource = false } = checkOptions(options, 'options', APPEND_FROM_KEYS)
    checkBoolean(clearSource, 'options.clearSource')
    if (clearSource && from === this) {
      throw invalid('source', 'another block where clearSource is set', 'the block itself')
    }
    native.blockAppendFrom(this.handle, from.handle)
    // Cannot fail: appending has just found the source open and its cache idle.
    if (clearSource) native.blockClear(from.handle)
  }

  /** Puts the source's tokens before this block's token number `at`, 0 <= at <= length. */
  insert(at: number, source: Block): void {
    const from = checkInstance(source, 'source', Block)
    native.blockInsert(this.handle, checkInteger(at, 'at', 0, this.length), from.handle)
  }

  /** Keeps the first `length` tokens. */
  truncate(length: number): void {
    native.blockTruncate(this.handle, checkInteger(length, 'length', 0, this.length))
  }

  /** Removes the tokens from number `begin` to before number `end`. */
  forget(begin: number, end: number): void {
    checkInteger(begin, 'begin', 0, this.length)
    native.blockForget(this.handle, begin, checkInteger(end, 'end', begin, this.length))
  }

  /** Removes all tokens. */
  clear(): void {
    native.blockClear(this.handle)
  }

  /** A block with the same tokens in the same pages; what is written later belongs to one of them only. */
  fork(): Block {
    return new Block(this.cache, native.blockFork(this.handle))
  }

  /** @internal The same of the tokens from number `begin` to before number `end`. */
  forkRange(begin: number, end: number): Block {
    return new Block(this.cache, native.blockFork(this.handle, begin, end))
  }

  /**
   * Joins the segments into one. Keys that come to stand elsewhere are rotated there in f32 and rounded
   * once: relative error at most 2^-8 (bf16), 2^-11 (f16), 2^-22 (f32). Values are copied bit for bit.
   * Throws HOGWILD_OUT_OF_PAGES where the copy does not fit.
   */
  async compact(): Promise<CompactResult> {
    this.cache.makeRoom(pagesFor(this.length))
    return await this.cache.tasks.track(native.blockCompact(this.handle))
  }

  /** What one layer stores of the block. HOGWILD_BUSY while the device computes, for whatever cache. */
  read(layer: number): StoredKeys {
    checkInteger(layer, 'layer', 0, this.cache.shape.layers - 1)
    return native.blockRead(this.handle, layer)
  }

  /** Gives the block's pages back. Idempotent. */
  close(): void {
    if (!this.cache.closed) native.blockClose(this.#handle)
  }

  /** As `close`. */
  [Symbol.dispose](): void {
    this.close()
  }

  /** @internal */
  static is(value: unknown): value is Block {
    return typeof value === 'object' && value !== null && #handle in value
  }

  /** @internal Throws HOGWILD_CLOSED where the cache is closed; the native side looks at the block. */
  get handle(): BlockHandle {
    this.cache.open()
    return this.#handle
  }
}
