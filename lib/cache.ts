// The shared KV cache: blocks, views, and passes for engines that bring their own model.

import { cacheDtype, type Device, useDevice } from './device'
import type { DeviceName } from './device-name'
import { HogwildError } from './errors'
import { DTYPES } from './formats'
import { DEFAULT_CAPACITY, MAX_CAPACITY } from './limits'
import {
  type BlockHandle,
  type CacheHandle,
  type Dtype,
  type NativeCacheStats,
  type NativeSegment,
  type NativeWorkerView,
  native,
  type PassHandle,
} from './native'
import type { Rope, RopeOptions } from './rope'
import { Tasks } from './tasks'
import {
  checkArray,
  checkBoolean,
  checkFloats,
  checkInstance,
  checkInteger,
  checkNumber,
  checkObject,
  checkOneOf,
  invalid,
  isFloat64Array,
} from './validate'

/** What one token takes in a cache: layers x (key and value) x kvHeads x headDim elements of dtype. */
export interface CacheShape {
  layers: number
  /** Hkv */
  kvHeads: number
  /** D: a multiple of 8, at most 256 */
  headDim: number
  dtype: Dtype
}

export interface CacheOptions extends Omit<CacheShape, 'dtype'> {
  rope: RopeOptions
  /** Tokens, rounded up to pages; default 8192. */
  capacity?: number | undefined
  /** Of keys and values as stored; default 'f32', on a CUDA device, which has no f32, 'bf16'. */
  dtype?: Dtype | undefined
  /** Default 'auto': a device of its own, closed with the cache. */
  device?: Device | DeviceName | undefined
}

/**
 * - `pageSize`: tokens per page; `pages`, `freePages`, `peakPages`: of the pool, now free, most in use at once
 * - `bytesPerPage`: keys and values of all layers
 * - `keyBytesMoved`: by `compact`, since the cache was made; nothing else moves keys
 */
export type CacheStats = NativeCacheStats

/** A run of `length` tokens in `pages` pages whose first key was rotated at position `rotatedAt`. */
export type Segment = NativeSegment

/** What `compact` did. */
export interface CompactResult {
  segmentsBefore: number
  segmentsAfter: number
  tokensMoved: number
}

/** The blocks that one worker sees, in order. Positions follow from the blocks' lengths at each step. */
export interface View {
  /** At least one; blocks may be empty, shared with other views, and occur twice. All of one cache. */
  blocks: readonly Block[]
  /** The block that receives the new tokens, one of `blocks` (its first place counts); default: the last. */
  writeTo?: Block | undefined
  /** Log-weight per block, added to its scores; -Infinity hides it. Default: none. */
  bias?: readonly number[] | undefined
}

export interface PassWorker {
  view: View
  /** New tokens, at least 1. */
  tokens: number
}

/** Whose buffers on the device: their dtype, and the CUDA stream on which they are made and used. */
export interface DeviceCaller {
  /** Default 'f32'. */
  dtype?: Dtype | undefined
  /** A cudaStream_t; default 0n: the device's own order. */
  stream?: bigint | undefined
}

/** Addresses in device memory, multiples of 16: k, v [T, Hkv, D], keys before RoPE. */
export interface DeviceKeys extends DeviceCaller {
  k: bigint
  v: bigint
}

/** Addresses in device memory, multiples of 16: q before RoPE, out [T, Hq, D]; lse [T, Hq], f32. */
export interface DeviceQueries extends DeviceCaller {
  q: bigint
  out: bigint
  lse?: bigint | undefined
}

export interface AttendOptions {
  /** Multiplies the scores; default 1 / sqrt(headDim). */
  scale?: number | undefined
  /** Whether the log-sum-exp of the scores is wanted too; default false. */
  lse?: boolean | undefined
}

export interface Attended {
  /** [T, Hq, D] */
  out: Float32Array
  /** [T, Hq]: natural logarithm of the sum of exp(score), or undefined where not asked for. */
  lse: Float32Array | undefined
}

/**
 * A cache for an engine that brings its own model: the engine computes k, v and q of each layer and
 * calls `append` and `attend`.
 *
 *     const cache = createCache({ layers, kvHeads, headDim, rope })
 *     const prompt = cache.createBlock(), alice = cache.createBlock(), bob = cache.createBlock()
 *     const pass = cache.beginPass([
 *       { view: { blocks: [prompt, bob, alice] }, tokens: 1 },
 *       { view: { blocks: [prompt, alice, bob] }, tokens: 1 },
 *     ])
 *     for (let layer = 0; layer < layers; layer++) {
 *       const { q, k, v } = project(layer)       // rows: Alice's token, Bob's token
 *       await pass.append(layer, k, v)
 *       const { out } = await pass.attend(layer, q)
 *       mix(layer, out)
 *     }
 *     pass.commit()
 *
 * Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_OUT_OF_MEMORY.
 */
export function createCache(options: CacheOptions): Cache {
  checkObject(options, 'options')
  const { layers, kvHeads, headDim } = options
  checkInteger(layers, 'options.layers', 1, 2 ** 16)
  checkInteger(kvHeads, 'options.kvHeads', 1, 2 ** 16)
  if (checkInteger(headDim, 'options.headDim', 8, 256) % 8 !== 0) {
    throw invalid('options.headDim', 'a multiple of 8', headDim)
  }
  const rope = checkRope(options.rope, headDim)
  if (options.dtype !== undefined) checkOneOf(options.dtype, 'options.dtype', DTYPES)
  const capacity = checkCapacity(options.capacity)
  const { device, owned } = useDevice(options.device)
  try {
    const dtype = options.dtype ?? cacheDtype(device, 'f32')
    return new Cache(device, owned, { layers, kvHeads, headDim, dtype }, rope, capacity)
  } catch (error) {
    if (owned) device.close()
    throw error
  }
}

export function checkCapacity(capacity: number | undefined): number {
  return checkInteger(capacity ?? DEFAULT_CAPACITY, 'options.capacity', 1, MAX_CAPACITY)
}

function checkRope(rope: RopeOptions, headDim: number): Rope {
  const { inverseFrequencies, attentionFactor = 1 } = checkObject(
    rope,
    'options.rope',
  ) as unknown as RopeOptions
  if (
    !isFloat64Array(inverseFrequencies) ||
    inverseFrequencies.length < 1 ||
    inverseFrequencies.length > headDim / 2 ||
    !inverseFrequencies.every((f) => Number.isFinite(f))
  ) {
    throw invalid(
      'options.rope.inverseFrequencies',
      `a Float64Array of 1 to headDim / 2 = ${headDim / 2} finite numbers`,
      inverseFrequencies,
    )
  }
  checkNumber(attentionFactor, 'options.rope.attentionFactor', 'a number > 0', (x) => x > 0)
  return { inverseFrequencies, attentionFactor }
}

/**
 * A bounded pool of pages and the blocks in it. One step, pass or compaction at a time uses a cache;
 * while it does, everything else that would read or change blocks throws HOGWILD_BUSY.
 */
export class Cache {
  readonly shape: Readonly<CacheShape>
  readonly device: Device
  /** @internal */
  readonly handle: CacheHandle
  /** @internal */
  readonly tasks = new Tasks()
  readonly #ownsDevice: boolean
  #pass: Pass | undefined
  #closing: Promise<void> | undefined

  /** @internal */
  constructor(
    device: Device,
    ownsDevice: boolean,
    shape: CacheShape,
    rope: Rope,
    capacity: number,
  ) {
    this.handle = native.createCache(device.handle, { ...shape, ...rope, capacity })
    this.device = device
    this.shape = shape
    this.#ownsDevice = ownsDevice
  }

  get stats(): CacheStats {
    return native.cacheStats(this.open())
  }

  get closed(): boolean {
    return this.#closing !== undefined
  }

  /** A new empty block. */
  createBlock(): Block {
    return new Block(this, native.createBlock(this.open()))
  }

  /**
   * Begins one step of an engine's own model: reserves room for the new tokens of all workers and works
   * out which keys each of them sees. The cache is busy until the pass is committed or aborted.
   *
   * Throws HOGWILD_WRITE_CONFLICT, HOGWILD_OUT_OF_PAGES, HOGWILD_BUSY, HOGWILD_INVALID_ARGUMENT.
   */
  beginPass(workers: readonly PassWorker[]): Pass {
    const handle = this.open()
    const natives = checkArray(workers, 'workers').map((worker, i) => {
      const name = `workers[${i}]`
      const { view, tokens } = checkObject(worker, name) as unknown as PassWorker
      const nTokens = checkInteger(tokens, `${name}.tokens`, 1, 2 ** 31 - 1)
      return { ...nativeView(view, `${name}.view`, this), nTokens }
    })
    if (natives.length === 0) throw invalid('workers', 'at least one worker', workers)
    const total = natives.reduce((sum, { nTokens }) => sum + nTokens, 0)
    this.#pass = new Pass(this, native.beginPass(handle, natives), total)
    return this.#pass
  }

  /**
   * Aborts the step under way, waits for it, and frees the pool with all blocks. Idempotent. Calls after
   * it throw HOGWILD_CLOSED.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#pass?.abort()
    await this.tasks.abort()
    native.cacheClose(this.handle)
    if (this.#ownsDevice) this.device.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** @internal */
  open(): CacheHandle {
    if (this.closed) throw new HogwildError('the cache is closed', 'HOGWILD_CLOSED')
    return this.handle
  }
}

/**
 * An ordered list of tokens with one writer: keys and values of all layers, and the token ids. All
 * operations are O(pages) and move no key, `compact` apart; each takes place as a whole or throws and
 * changes nothing. Blocks of different caches never mix (HOGWILD_INVALID_ARGUMENT).
 */
export class Block {
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

  get segments(): Segment[] {
    return native.blockSegments(this.handle)
  }

  /** Token ids, [length]; -1 for tokens of a pass, which have none. */
  tokens(): Int32Array {
    return native.blockTokens(this.handle)
  }

  /** Appends the source's tokens. `clearSource` empties it afterwards: both happen, or neither. */
  appendFrom(source: Block, options: { clearSource?: boolean | undefined } = {}): void {
    const from = checkInstance(source, 'source', Block)
    const clearSource = checkBoolean(options.clearSource ?? false, 'options.clearSource')
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

  /**
   * Joins the segments into one. Keys that come to stand elsewhere are rotated there in f32 and rounded
   * once: relative error at most 2^-8 (bf16), 2^-11 (f16), 2^-22 (f32). Values are copied bit for bit.
   * Throws HOGWILD_OUT_OF_PAGES where the copy does not fit.
   */
  async compact(): Promise<CompactResult> {
    return this.cache.tasks.track(native.blockCompact(this.handle))
  }

  /** One layer's keys as stored and values, [length, Hkv, D] each, and where each key was rotated, [length]. */
  read(layer: number): { k: Float32Array; v: Float32Array; rotatedAt: Float64Array } {
    checkInteger(layer, 'layer', 0, this.cache.shape.layers - 1)
    return native.blockRead(this.handle, layer)
  }

  /** Gives the block's pages back. Idempotent. */
  close(): void {
    if (!this.cache.closed) native.blockClose(this.#handle)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** @internal Throws HOGWILD_CLOSED where the cache is closed; the native side looks at the block. */
  get handle(): BlockHandle {
    this.cache.open()
    return this.#handle
  }
}

/**
 * One step of an engine's own model. In each layer: `append` the new keys and values of all workers,
 * then `attend`. Rows are new tokens, worker after worker. Until `commit` blocks look as before.
 */
export class Pass {
  readonly cache: Cache
  /** T: new tokens of all workers. */
  readonly tokens: number
  readonly #handle: PassHandle
  /** Layers that have the new keys and values. */
  readonly #appended = new Set<number>()
  #running: Promise<unknown> | undefined
  #state: 'open' | 'committed' | 'aborted' = 'open'

  /** @internal */
  constructor(cache: Cache, handle: PassHandle, tokens: number) {
    this.cache = cache
    this.tokens = tokens
    this.#handle = handle
  }

  /** k, v: [T, Hkv, D] of one layer, keys before RoPE. The arrays are copied. */
  async append(layer: number, k: Float32Array, v: Float32Array): Promise<void> {
    this.#check(layer)
    const { kvHeads, headDim } = this.cache.shape
    const size = this.tokens * kvHeads * headDim
    const shape = `[T, Hkv, D] = [${this.tokens}, ${kvHeads}, ${headDim}]`
    checkFloats(k, 'k', size, shape)
    checkFloats(v, 'v', size, shape)
    const task = native.passAppend(this.#handle, layer, k, v)
    this.#appended.add(layer)
    try {
      await this.#run(task)
    } catch (error) {
      this.#appended.delete(layer)
      throw error
    }
  }

  /**
   * Attention of each new token over its worker's view (SEMANTICS: all new tokens of this step that come
   * before it in the view included). q: [T, Hq, D] of one layer, before RoPE; Hq, a multiple of Hkv,
   * follows from its length. Throws HOGWILD_INVALID_ARGUMENT before the layer's `append`.
   */
  async attend(layer: number, q: Float32Array, options: AttendOptions = {}): Promise<Attended> {
    this.#check(layer)
    this.#checkAppended(layer)
    const { kvHeads, headDim } = this.cache.shape
    const group = this.tokens * kvHeads * headDim
    const length = ArrayBuffer.isView(q) ? (q as Float32Array).length : Number.NaN
    if (!(length >= group && length % group === 0)) {
      throw invalid('q', `a Float32Array of [T, Hq, D], a multiple of ${group} elements`, q)
    }
    checkFloats(q, 'q', length, '[T, Hq, D]')
    const scale = this.#checkScale(options.scale)
    const wantLse = checkBoolean(options.lse ?? false, 'options.lse')
    const queryHeads = length / (this.tokens * headDim)
    const { out, lse } = await this.#run(
      native.passAttend(this.#handle, layer, q, queryHeads, scale, wantLse),
    )
    return { out, lse: lse ?? undefined }
  }

  /**
   * `append` for an engine on a CUDA device: `k`, `v` are addresses of [T, Hkv, D] in device memory. Nothing
   * passes through the host. Resolves once the work is enqueued behind what `stream` holds; what is
   * enqueued there later comes after it. Throws HOGWILD_UNSUPPORTED on another device.
   */
  async appendDevice(layer: number, buffers: DeviceKeys): Promise<void> {
    this.#check(layer)
    checkObject(buffers, 'buffers')
    const { k, v } = buffers
    const task = native.passAppendDevice(this.#handle, layer, { k, v, ...checkCaller(buffers) })
    this.#appended.add(layer)
    try {
      await this.#run(task)
    } catch (error) {
      this.#appended.delete(layer)
      throw error
    }
  }

  /**
   * `attend` for an engine on a CUDA device: `q` and `out` are addresses of [T, Hq, D], `lse` of [T, Hq] in
   * f32. As with `appendDevice`, results are there when `stream` has come so far.
   */
  async attendDevice(
    layer: number,
    buffers: DeviceQueries,
    options: Omit<AttendOptions, 'lse'> & { queryHeads: number },
  ): Promise<void> {
    this.#check(layer)
    this.#checkAppended(layer)
    checkObject(buffers, 'buffers')
    checkObject(options, 'options')
    const { q, out, lse = 0n } = buffers
    const { kvHeads } = this.cache.shape
    if (checkInteger(options.queryHeads, 'options.queryHeads', 1, 2 ** 16) % kvHeads !== 0) {
      throw invalid('options.queryHeads', `a multiple of ${kvHeads} (kvHeads)`, options.queryHeads)
    }
    await this.#run(
      native.passAttendDevice(
        this.#handle,
        layer,
        { q, out, lse, ...checkCaller(buffers) },
        options.queryHeads,
        this.#checkScale(options.scale),
      ),
    )
  }

  /**
   * The new tokens are in their blocks from now on. Throws HOGWILD_BUSY while a call is under way and
   * HOGWILD_INVALID_ARGUMENT before every layer's `append`.
   */
  commit(): void {
    this.#check(0)
    if (this.#running !== undefined) {
      throw new HogwildError('a call of this pass is under way', 'HOGWILD_BUSY')
    }
    for (let layer = 0; layer < this.cache.shape.layers; layer++) this.#checkAppended(layer)
    native.passCommit(this.#handle)
    this.#state = 'committed'
  }

  /** Leaves the cache as it was before the pass, once a call under way has ended. Idempotent. */
  abort(): void {
    if (this.#state !== 'open') return
    this.#state = 'aborted'
    if (this.#running === undefined) native.passAbort(this.#handle)
  }

  /** Aborts what was not committed. */
  [Symbol.dispose](): void {
    this.abort()
  }

  #check(layer: number): void {
    if (this.#state !== 'open') {
      throw new HogwildError(`the pass was ${this.#state} before`, 'HOGWILD_CLOSED')
    }
    checkInteger(layer, 'layer', 0, this.cache.shape.layers - 1)
  }

  #checkScale(scale: number | undefined): number {
    const byDefault = 1 / Math.sqrt(this.cache.shape.headDim)
    return checkNumber(scale ?? byDefault, 'options.scale', 'a number > 0', (x) => x > 0)
  }

  #checkAppended(layer: number): void {
    if (!this.#appended.has(layer)) throw invalid('layer', 'one whose keys were appended', layer)
  }

  async #run<T>(task: Promise<T>): Promise<T> {
    this.#running = this.cache.tasks.track(task)
    try {
      return await task
    } finally {
      if (this.#running === task) {
        this.#running = undefined
        if (this.#state === 'aborted') native.passAbort(this.#handle)
      }
    }
  }
}

function checkCaller({ dtype, stream = 0n }: DeviceCaller): { dtype: Dtype; stream: bigint } {
  return { dtype: checkOneOf(dtype ?? 'f32', 'buffers.dtype', DTYPES), stream }
}

/** @internal A view as the native side takes it. Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED. */
export function nativeView(view: View, name: string, cache: Cache): NativeWorkerView {
  checkObject(view, name)
  const blocks = checkArray(view.blocks, `${name}.blocks`) as Block[]
  if (blocks.length === 0) throw invalid(`${name}.blocks`, 'at least one block', blocks)
  blocks.forEach((block, i) => {
    checkInstance(block, `${name}.blocks[${i}]`, Block)
    if (block.cache !== cache) {
      throw invalid(
        `${name}.blocks[${i}]`,
        'of the same cache as all others',
        'one of another cache',
      )
    }
  })
  const target = view.writeTo ?? (blocks.at(-1) as Block)
  if (!blocks.includes(target)) {
    throw invalid(`${name}.writeTo`, 'one of the blocks of the view', target)
  }
  let bias: Float32Array | null = null
  if (view.bias !== undefined) {
    if (view.bias.length !== blocks.length) {
      throw invalid(`${name}.bias`, `one number for each of ${blocks.length} blocks`, view.bias)
    }
    bias = Float32Array.from(view.bias)
    if (bias.some((weight) => Number.isNaN(weight) || weight === Number.POSITIVE_INFINITY)) {
      throw invalid(`${name}.bias`, 'finite numbers or -Infinity', view.bias)
    }
  }
  return { view: blocks.map((block) => block.handle), bias, target: target.handle }
}
