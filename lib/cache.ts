// The shared KV cache: a pool of pages, the blocks in it, and passes for engines that bring their own model.

import { Block } from './block'
import { checkCacheDtype, defaultCacheDtype } from './cache-dtype'
import { exportBlocks, importBlocks } from './cache-file'
import { type Device, useDevice } from './device'
import type { DeviceName } from './device-name'
import { HogwildError } from './errors'
import { type CacheDtype, kvDtypes, kvRowBytes } from './formats'
import { DEFAULT_CAPACITY, HEAD_DIM, MAX_CAPACITY } from './limits'
import { checkMemory } from './memory'
import { type CacheHandle, type NativeBudgetStats, native } from './native'
import { beginPass, type Pass, type PassWorker } from './pass'
import type { Rope, RopeOptions } from './rope'
import { checkPath } from './sources/files'
import { Tasks } from './tasks'
import type { TransferOptions } from './transfer'
import {
  checkArray,
  checkInstance,
  checkInteger,
  checkJson,
  checkNumber,
  checkOptionalFunction,
  checkOptions,
  checkSignal,
  checkString,
  invalid,
  isFloat64Array,
  optionKeys,
  readable,
} from './validate'
import { type WarningHandler, Warnings } from './warnings'

/** What one token takes in a cache: layers x (key and value) x kvHeads rows of headDim elements. */
export interface CacheShape {
  /** Layers of the model, each with keys and values of its own. */
  layers: number
  /** Hkv */
  kvHeads: number
  /** D: a multiple of 8, at most 256 */
  headDim: number
  /** Of the elements, and of a scale for each row where it is int8. A name where keys and values have the same. */
  dtype: CacheDtype
}

/** Options of `createCache`. H: hidden size; Hkv: heads of keys and values; D: dimensions of a head. */
export interface CacheOptions extends Omit<CacheShape, 'dtype'> {
  /** What turns q and k: one for all layers, or one for each, null where nothing turns them. */
  rope: RopeOptions | readonly (RopeOptions | null)[]
  /** Tokens, rounded up to pages; default 8192. */
  capacity?: number | undefined
  /**
   * Of keys and values as stored, 'f32', 'f16', 'bf16' or 'int8', or `{ keys, values }` for a dtype each; default
   * 'f32', on a CUDA device, which has no f32, 'bf16'. A CUDA device has bf16 and f16, one for both.
   *
   * 'int8' takes headDim + 4 bytes for each row: about half of a 16-bit cache, in memory and in what attention reads.
   * Keys and values are rounded once, when they are written, to multiples of max |x| / 127 of their (token, kv head);
   * an infinity or NaN makes its row NaN. Nothing rounds them again: `compact` leaves segments apart that would
   * have to be turned. Where some dimensions of the keys are far larger than the others (Qwen 2 and 2.5, whose keys
   * have biases), `{ keys: 'bf16', values: 'int8' }` keeps most of the precision.
   */
  dtype?: CacheDtype | undefined
  /** Default 'auto': a device of its own, closed with the cache. */
  device?: Device | DeviceName | undefined
  /**
   * What the engine calls its model, for `export`: `import` refuses a file of another name. Default: none, which only goes
   * with none.
   */
  model?: string | undefined
  /**
   * Takes the cache's warnings; default: `process.emitWarning`. HOGWILD_LOW_MEMORY: the cache is larger
   * than the memory that is free.
   */
  onWarning?: WarningHandler | undefined
}

const CACHE_KEYS = optionKeys<CacheOptions>()({
  layers: true,
  kvHeads: true,
  headDim: true,
  rope: true,
  capacity: true,
  dtype: true,
  device: true,
  model: true,
  onWarning: true,
})

/** Options of `Cache.export`. */
export interface ExportOptions extends TransferOptions {
  /** Anything that JSON can hold, to go with the blocks: names, state of an engine. Default: null. */
  data?: unknown
}

/** Options of `Cache.import`. */
export type ImportOptions = TransferOptions

/** What `import` found. */
export interface Imported {
  /** In the order in which they were exported. */
  blocks: Block[]
  /** What `ExportOptions.data` was. */
  data: unknown
}

const EXPORT_KEYS = optionKeys<ExportOptions>()({ data: true, signal: true, onProgress: true })
const IMPORT_KEYS = optionKeys<ImportOptions>()({ signal: true, onProgress: true })

const ROPE_KEYS = optionKeys<RopeOptions>()({ inverseFrequencies: true, attentionFactor: true })

/** How full a cache is. */
export interface CacheStats {
  /** Tokens of a page. */
  pageSize: number
  /** Pages of the pool. */
  pages: number
  /** Pages that no block uses now. */
  freePages: number
  /** Most pages that were in use at once. */
  peakPages: number
  /** Bytes of a page: keys and values of all layers, with the scales of int8. */
  bytesPerPage: number
  /** Bytes of keys that `compact` has moved since the cache was made; nothing else moves keys. */
  keyBytesMoved: number
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
 * Throws HOGWILD_INVALID_ARGUMENT; HOGWILD_OUT_OF_MEMORY where the machine has less memory than the
 * capacity asks for.
 */
export function createCache(options: CacheOptions): Cache {
  options = checkOptions(options, 'options', CACHE_KEYS)
  const layers = checkInteger(options.layers, 'options.layers', 1, 2 ** 16)
  const kvHeads = checkInteger(options.kvHeads, 'options.kvHeads', 1, 2 ** 16)
  const headDim = checkInteger(options.headDim, 'options.headDim', HEAD_DIM.step, HEAD_DIM.max)
  if (headDim % HEAD_DIM.step !== 0) {
    throw invalid('options.headDim', `a multiple of ${HEAD_DIM.step}`, headDim)
  }
  const ropes = checkRopes(options.rope, layers, headDim)
  const wanted =
    options.dtype === undefined ? undefined : checkCacheDtype(options.dtype, 'options.dtype')
  const capacity = checkCapacity(options.capacity)
  const name = options.model === undefined ? null : checkString(options.model, 'options.model')
  const model = () => Promise.resolve(name)
  const warnings = new Warnings(options.onWarning)
  const { device, owned } = useDevice(options.device)
  try {
    const dtype = wanted ?? defaultCacheDtype(device, 'f32')
    const shape = { layers, kvHeads, headDim, dtype }
    return new Cache(device, owned, shape, ropes, model, capacity, warnings)
  } catch (error) {
    if (owned) device.close()
    throw error
  }
}

/** Keys and values of all layers. */
export function bytesPerToken({ layers, kvHeads, headDim, dtype }: CacheShape): number {
  const { keys, values } = kvDtypes(dtype)
  return layers * kvHeads * (kvRowBytes(keys, headDim) + kvRowBytes(values, headDim))
}

export function checkCapacity(capacity: number | undefined): number {
  return checkInteger(capacity ?? DEFAULT_CAPACITY, 'options.capacity', 1, MAX_CAPACITY)
}

/** Distinct tables, and which of them each layer has, or -1. */
export interface LayerRopes {
  ropes: readonly Rope[]
  layerRopes: Int32Array
}

function checkRopes(rope: CacheOptions['rope'], layers: number, headDim: number): LayerRopes {
  if (rope === undefined || rope === null) {
    const form =
      'RopeOptions (of ropeFrequencies), or a list of them, null where nothing turns, for each layer'
    throw invalid('options.rope', form, rope)
  }
  if (!readable('options.rope', undefined, () => Array.isArray(rope))) {
    const everywhere = checkRope(rope as RopeOptions, 'options.rope', headDim)
    return { ropes: [everywhere], layerRopes: new Int32Array(layers) }
  }
  const list = checkArray(rope, 'options.rope')
  if (list.length !== layers) throw invalid('options.rope', `a list of ${layers} (layers)`, list)
  const known = new Map<unknown, number>([[null, -1]])
  const ropes: Rope[] = []
  const layerRopes = list.map((one, i) => {
    const found = known.get(one)
    if (found !== undefined) return found
    known.set(one, ropes.length)
    return ropes.push(checkRope(one as RopeOptions, `options.rope[${i}]`, headDim)) - 1
  })
  return { ropes, layerRopes: Int32Array.from(layerRopes) }
}

function checkRope(rope: RopeOptions, name: string, headDim: number): Rope {
  const { inverseFrequencies, attentionFactor = 1 } = checkOptions(rope, name, ROPE_KEYS)
  if (
    !isFloat64Array(inverseFrequencies) ||
    inverseFrequencies.length < 1 ||
    inverseFrequencies.length > headDim / 2 ||
    !inverseFrequencies.every((f) => Number.isFinite(f))
  ) {
    throw invalid(
      `${name}.inverseFrequencies`,
      `a Float64Array of 1 to headDim / 2 = ${headDim / 2} finite numbers`,
      inverseFrequencies,
    )
  }
  checkNumber(attentionFactor, `${name}.attentionFactor`, 'a number > 0', (x) => x > 0)
  return { inverseFrequencies, attentionFactor }
}

export function checkTransfer<T extends TransferOptions>(
  value: T,
  keys: readonly (keyof T & string)[],
): T {
  const options = checkOptions(value, 'options', keys)
  checkSignal(options.signal, 'options.signal')
  checkOptionalFunction(options.onProgress, 'options.onProgress')
  return options
}

/**
 * A bounded pool of pages and the blocks in it. One step, pass, compaction, export or import at a time uses a cache;
 * while it does, everything else that would read or change blocks throws HOGWILD_BUSY.
 */
export class Cache {
  /** What its keys and values look like. */
  readonly shape: Readonly<CacheShape>
  /** Where it lives. */
  readonly device: Device
  /** @internal */
  readonly handle: CacheHandle
  /** @internal */
  readonly tasks = new Tasks()
  /** @internal */
  readonly ropes: LayerRopes
  /** @internal What its model is known by in files; null: not said. */
  readonly model: () => Promise<string | null>
  /** @internal Who keeps blocks that nobody uses, and gives their pages back where others want them. */
  spare: { makeRoom(pages: number): void } | undefined
  readonly #ownsDevice: boolean
  #pass: Pass | undefined
  #closing: Promise<void> | undefined

  /** @internal */
  constructor(
    device: Device,
    ownsDevice: boolean,
    shape: CacheShape,
    ropes: LayerRopes,
    model: () => Promise<string | null>,
    capacity: number,
    warnings: Warnings,
  ) {
    checkMemory(device, capacity, bytesPerToken(shape), warnings)
    const { layers, kvHeads, headDim } = shape
    const { keys, values } = kvDtypes(shape.dtype)
    this.handle = native.createCache(device.handle, {
      ...{ layers, kvHeads, headDim, capacity, ...ropes },
      keyFormat: keys,
      valueFormat: values,
    })
    this.device = device
    this.shape = shape
    this.ropes = ropes
    this.model = model
    this.#ownsDevice = ownsDevice
  }

  /** How full it is now. */
  get stats(): CacheStats {
    return native.cacheStats(this.open())
  }

  /** Whether it can no longer be used: `close()` was called on it, on its model or on its device. */
  get closed(): boolean {
    return this.#closing !== undefined || this.device.closed
  }

  /** @internal So that this many pages more are free, if nobody uses what a store keeps in others. */
  makeRoom(pages: number): void {
    this.spare?.makeRoom(pages)
  }

  /** A new empty block. */
  createBlock(): Block
  /** @internal `budget`: whose pages it takes, and its forks. */
  createBlock(budget: number | undefined): Block
  createBlock(budget?: number): Block {
    return new Block(this, native.createBlock(this.open(), budget))
  }

  /** @internal How many pages the blocks of one owner may have taken at once. Returns its number. */
  openBudget(pages: number): number {
    return native.openBudget(this.open(), pages)
  }

  /** @internal */
  budgetStats(budget: number): NativeBudgetStats {
    return native.budgetStats(this.open(), budget)
  }

  /** @internal Counts pages that others have taken, until it is closed. Throws HOGWILD_OUT_OF_PAGES. */
  chargeBudget(budget: number, pages: number): void {
    native.chargeBudget(this.open(), budget, pages)
  }

  /** @internal Its pages count as before until they are free. */
  closeBudget(budget: number): void {
    native.closeBudget(this.open(), budget)
  }

  /**
   * Begins one step of an engine's own model: reserves room for the new tokens of all workers and works
   * out which keys each of them sees. The cache is busy until the pass is committed or aborted.
   *
   * Throws HOGWILD_WRITE_CONFLICT, HOGWILD_OUT_OF_PAGES, HOGWILD_BUSY, HOGWILD_INVALID_ARGUMENT;
   * HOGWILD_UNSUPPORTED: a temperature in a view, on a CUDA device.
   */
  beginPass(workers: readonly PassWorker[]): Pass {
    this.#pass = beginPass(this, workers)
    return this.#pass
  }

  /**
   * Writes blocks to a file, for `import` into a cache of the same shape, dtypes, RoPE and model, in this process or
   * another, on any device: token ids, keys and values to the bit, and how they share pages, each of which is written once
   * (docs/sessions.md). Equal blocks give equal files. The file appears, or takes the place of one of this name, once it is
   * complete and on the disk. The cache is busy meanwhile. Returns the file's length in bytes.
   *
   * Rejects, and leaves what was there: HOGWILD_NOT_WRITTEN, HOGWILD_INVALID_ARGUMENT (a block that stands twice or is of
   * another cache, `data` that JSON cannot hold), HOGWILD_BUSY, HOGWILD_CLOSED, HOGWILD_ABORTED.
   */
  async export(
    blocks: readonly Block[],
    path: string,
    options: ExportOptions = {},
  ): Promise<number> {
    const list = checkArray(blocks, 'blocks').map((block, i) =>
      checkInstance(block, `blocks[${i}]`, Block),
    )
    const { data, ...transfer } = checkTransfer(options, EXPORT_KEYS)
    const json = checkJson(data ?? null, 'options.data')
    return await exportBlocks(this, list, checkPath(path, 'path'), 'blocks', json, transfer)
  }

  /**
   * New blocks, as `export` wrote them: they hold the same tokens and go on as the exported ones would have. All of them
   * or none: after an error the cache is as before. The cache is busy meanwhile.
   *
   * Rejects: HOGWILD_INVALID_SESSION for a file that is damaged, cut short, something else, or of another model, shape,
   * dtype or RoPE; HOGWILD_UNSUPPORTED for a version that this build does not know; HOGWILD_OUT_OF_PAGES,
   * HOGWILD_OUT_OF_MEMORY, HOGWILD_BUSY, HOGWILD_CLOSED, HOGWILD_ABORTED, HOGWILD_INVALID_ARGUMENT.
   */
  async import(path: string, options: ImportOptions = {}): Promise<Imported> {
    const transfer = checkTransfer(options, IMPORT_KEYS)
    return await importBlocks(this, checkPath(path, 'path'), 'blocks', transfer)
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

  /** As `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** @internal */
  static is(value: unknown): value is Cache {
    return typeof value === 'object' && value !== null && #ownsDevice in value
  }

  /** @internal Throws HOGWILD_CLOSED. */
  open(): CacheHandle {
    if (this.closed) throw new HogwildError('the cache is closed', 'HOGWILD_CLOSED')
    return this.handle
  }
}
