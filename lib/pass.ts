// Passes: one step of an engine's own model, layer by layer.

import type { Cache } from './cache'
import { HogwildError } from './errors'
import { DTYPES } from './formats'
import { pagesFor } from './limits'
import type { AttentionState } from './merge-states'
import { type Dtype, type NativeAttendOptions, native, type PassHandle } from './native'
import {
  checkArray,
  checkFloats,
  checkInteger,
  checkNumber,
  checkOneOf,
  checkOptions,
  invalid,
  isFloat32Array,
  optionKeys,
} from './validate'
import { checkView, nativeView, type View } from './view'

/** A worker of a pass. */
export interface PassWorker {
  /** What it sees, and which block gets its tokens. */
  view: View
  /** New tokens, at least 1. */
  tokens: number
  /**
   * How many of the last of them are drafts: guesses of an engine that keeps as many as were right (`commit`). As in a step
   * (see StepWorker), they see of other workers' drafts those of the same step to come and of earlier ones. Default 0.
   */
  drafts?: number | undefined
}

/** Whose buffers on the device: their dtype, and the CUDA stream on which they are made and used. */
export interface DeviceCaller {
  /** Default 'f32'. */
  dtype?: Dtype | undefined
  /**
   * A cudaStream_t of the cache's card that is not capturing a graph: the call's work comes after what the stream
   * holds when it runs, and before what is enqueued there once it has resolved. 0n and 1n (cudaStreamLegacy) are the
   * legacy default stream, which is PyTorch's default. 2n (cudaStreamPerThread) is refused: it would be another
   * stream than the engine's. Absent: the buffers are complete before the call, and the work is done when it
   * resolves.
   */
  stream?: bigint | undefined
}

/** Addresses in device memory, multiples of 16: k, v [T, Hkv, D], keys before RoPE; they may be the same. */
export interface DeviceKeys extends DeviceCaller {
  /** Address of the keys, before RoPE. */
  k: bigint
  /** Address of the values. */
  v: bigint
}

/**
 * Addresses in device memory, multiples of 16: q before RoPE, out [T, Hq, D]; lse [T, Hq], f32. None overlaps
 * another: queries are read while results are written.
 */
export interface DeviceQueries extends DeviceCaller {
  /** Address of the queries, before RoPE. */
  q: bigint
  /** Address that takes the results. */
  out: bigint
  /** Address that takes the log-sum-exp of the scores, in f32. Default: it is not wanted. */
  lse?: bigint | undefined
}

/** Options of `Pass.attend`. T: new tokens of all workers; Hq: query heads; D: dimensions of a head. */
export interface AttendOptions {
  /** Multiplies the scores; default 1 / sqrt(headDim). */
  scale?: number | undefined
  /**
   * A sliding window in view positions, at least 1: of what a token at position p sees without it, it sees what stands
   * beyond p - window, its own included. Pages that no token of the step sees are not read. Default: none, it sees all of its view up to its own.
   */
  window?: number | undefined
  /**
   * Scores become softcap · tanh(score / softcap), before the view's temperatures and biases; in [1e-6, 1e6]. Default:
   * they stay.
   */
  softcap?: number | undefined
  /**
   * [Hq], finite or -Infinity: exp(sinks[h]) is added to the sum that the weights of head h are divided by, as if it
   * saw one more key with that score and no value. Copied. Default: none.
   */
  sinks?: Float32Array | undefined
  /** `[T, Hq, D]`: takes `Attended.out`; default: a new array. Filled when the call has ended well, else left as it was. */
  out?: Float32Array | undefined
  /**
   * Whether the log-sum-exp of the scores is wanted too, or an array [T, Hq] that takes it, filled as `out` is; the
   * two do not overlap. Default false.
   */
  lse?: boolean | Float32Array | undefined
}

/** What `Pass.attend` found. T: new tokens of all workers; Hq: query heads; D: dimensions of a head. */
export interface Attended {
  /** [T, Hq, D]; 0 where a token sees nothing. */
  out: Float32Array
  /**
   * `[T, Hq]`: natural logarithm of the sum of exp(score), sinks included: -Infinity where a token sees nothing and has
   * no sink. Undefined where not asked for.
   */
  lse: Float32Array | undefined
}

/** How `attendDevice` computes: results go to the buffers of DeviceQueries. */
export interface AttendDeviceOptions extends Pick<AttendOptions, 'scale'> {
  /** Hq, a multiple of kvHeads. */
  queryHeads: number
}

const PASS_WORKER_KEYS = optionKeys<PassWorker>()({ view: true, tokens: true, drafts: true })
const ATTEND_KEYS = optionKeys<AttendOptions>()({
  scale: true,
  window: true,
  softcap: true,
  sinks: true,
  out: true,
  lse: true,
})
const ATTEND_DEVICE_KEYS = optionKeys<AttendDeviceOptions>()({ scale: true, queryHeads: true })
const KEYS_BUFFERS = optionKeys<DeviceKeys>()({ k: true, v: true, dtype: true, stream: true })
const QUERIES_BUFFERS = optionKeys<DeviceQueries>()({
  q: true,
  out: true,
  lse: true,
  dtype: true,
  stream: true,
})

/** See `Cache.beginPass`. */
export function beginPass(cache: Cache, workers: readonly PassWorker[]): Pass {
  const natives = checkArray(workers, 'workers').map((worker, i) => {
    const name = `workers[${i}]`
    const part = checkOptions(worker as PassWorker, name, PASS_WORKER_KEYS)
    const nTokens = checkInteger(part.tokens, `${name}.tokens`, 1, 2 ** 31 - 1)
    const drafts = checkInteger(part.drafts ?? 0, `${name}.drafts`, 0, nTokens - 1)
    return { ...nativeView(checkView(part.view, `${name}.view`, cache)), nTokens, drafts }
  })
  if (natives.length === 0) throw invalid('workers', 'at least one worker', workers)
  const counts = natives.map(({ nTokens }) => nTokens)
  cache.makeRoom(counts.reduce((sum, tokens) => sum + pagesFor(tokens), 0))
  return new Pass(cache, native.beginPass(cache.open(), natives), counts)
}

/**
 * One step of an engine's own model, begun by `Cache.beginPass`. In each layer: `append` the new keys and
 * values of all workers, then `attend`. Rows are new tokens, worker after worker. Until `commit` blocks look
 * as before.
 */
export class Pass {
  /** Whose step it is. */
  readonly cache: Cache
  /** T: new tokens of all workers. */
  readonly tokens: number
  readonly #handle: PassHandle
  /** New tokens, by worker. */
  readonly #counts: readonly number[]
  /** Layers that have the new keys and values. */
  readonly #appended = new Set<number>()
  #running: Promise<unknown> | undefined
  #state: 'open' | 'committed' | 'aborted' = 'open'

  /** @internal */
  constructor(cache: Cache, handle: PassHandle, counts: readonly number[]) {
    this.cache = cache
    this.tokens = counts.reduce((sum, count) => sum + count, 0)
    this.#handle = handle
    this.#counts = counts
  }

  /**
   * k, v: [T, Hkv, D] of one layer, keys before RoPE. The arrays are copied.
   *
   * Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED.
   */
  async append(layer: number, k: Float32Array, v: Float32Array): Promise<void> {
    this.#check(layer)
    const { kvHeads, headDim } = this.cache.shape
    const size = this.tokens * kvHeads * headDim
    const shape = `[T, Hkv, D] = [${this.tokens}, ${kvHeads}, ${headDim}]`
    checkFloats(k, 'k', size, shape)
    checkFloats(v, 'v', size, shape)
    await this.#append(layer, native.passAppend(this.#handle, layer, k, v))
  }

  /**
   * Attention of each new token over its worker's view (all new tokens of this step that come
   * before it in the view included). q: [T, Hq, D] of one layer, before RoPE; Hq, a multiple of Hkv,
   * follows from its length. Leaves the pass as it was, so what failed may be tried again. Throws
   * HOGWILD_INVALID_ARGUMENT: an option out of its range, a layer before its `append`, an array of the caller's that was
   * transferred meanwhile; HOGWILD_UNSUPPORTED: `window`, `softcap` or `sinks` on a CUDA device.
   */
  attend(
    layer: number,
    q: Float32Array,
    options: AttendOptions & { lse: true | Float32Array },
  ): Promise<AttentionState>
  attend(layer: number, q: Float32Array, options?: AttendOptions): Promise<Attended>
  async attend(layer: number, q: Float32Array, options: AttendOptions = {}): Promise<Attended> {
    options = checkOptions(options, 'options', ATTEND_KEYS)
    this.#check(layer)
    this.#checkAppended(layer)
    const { kvHeads, headDim } = this.cache.shape
    const group = this.tokens * kvHeads * headDim
    const length = isFloat32Array(q) ? q.length : 0
    if (length === 0 || length % group !== 0) {
      const shape = `[T, Hq, D] = [${this.tokens}, Hq, ${headDim}], Hq a multiple of ${kvHeads}`
      throw invalid('q', `a Float32Array of a multiple of ${group} elements (${shape})`, q)
    }
    const queryHeads = length / (this.tokens * headDim)
    const rows = this.tokens * queryHeads
    const { scale, window, softcap, sinks, out, lse = false } = options
    const floats = (array: Float32Array | undefined, name: string, size: number, shape: string) =>
      array === undefined ? null : checkFloats(array, `options.${name}`, size, shape)
    const natives: NativeAttendOptions = {
      scale: this.#checkScale(scale),
      window: window === undefined ? null : checkInteger(window, 'options.window', 1),
      softcap: softcap === undefined ? null : checkSoftcap(softcap),
      sinks: floats(sinks, 'sinks', queryHeads, `[Hq] = [${queryHeads}]`),
      wantLse: lse !== false,
      out: floats(
        out,
        'out',
        length,
        `[T, Hq, D] = [${[this.tokens, queryHeads, headDim].join(', ')}]`,
      ),
      lse:
        typeof lse === 'boolean'
          ? null
          : floats(lse, 'lse', rows, `[T, Hq] = [${this.tokens}, ${queryHeads}]`),
    }
    if (natives.out !== null && natives.lse !== null && overlap(natives.out, natives.lse)) {
      throw invalid('options.lse', 'memory other than that of options.out', lse)
    }
    const results = await this.#run(native.passAttend(this.#handle, layer, q, queryHeads, natives))
    return { out: results.out, lse: results.lse ?? undefined }
  }

  /**
   * `append` for an engine on a CUDA device: `k`, `v` are addresses of [T, Hkv, D] in device memory. Nothing
   * passes through the host. Resolves once the work is enqueued on `stream`, or is done where there is none.
   * Throws HOGWILD_UNSUPPORTED on another device, HOGWILD_INVALID_ARGUMENT where an address is not memory of this
   * one.
   */
  async appendDevice(layer: number, buffers: DeviceKeys): Promise<void> {
    const { k, v, ...caller } = checkOptions(buffers, 'buffers', KEYS_BUFFERS)
    this.#check(layer)
    const keys = { k, v, ...checkCaller(caller) }
    await this.#append(layer, native.passAppendDevice(this.#handle, layer, keys))
  }

  /**
   * `attend` for an engine on a CUDA device: `q` and `out` are addresses of [T, Hq, D], `lse` of [T, Hq] in
   * f32. As with `appendDevice`, results are there when `stream` has come so far. Throws HOGWILD_INVALID_ARGUMENT
   * where they overlap.
   */
  async attendDevice(
    layer: number,
    buffers: DeviceQueries,
    options: AttendDeviceOptions,
  ): Promise<void> {
    const { q, out, lse = 0n, ...caller } = checkOptions(buffers, 'buffers', QUERIES_BUFFERS)
    const { queryHeads, scale } = checkOptions(options, 'options', ATTEND_DEVICE_KEYS)
    this.#check(layer)
    this.#checkAppended(layer)
    const { kvHeads } = this.cache.shape
    if (checkInteger(queryHeads, 'options.queryHeads', 1, 2 ** 16) % kvHeads !== 0) {
      throw invalid('options.queryHeads', `a multiple of ${kvHeads} (kvHeads)`, queryHeads)
    }
    const queries = { q, out, lse, ...checkCaller(caller) }
    await this.#run(
      native.passAttendDevice(this.#handle, layer, queries, queryHeads, this.#checkScale(scale)),
    )
  }

  /**
   * The new tokens are in their blocks from now on. `kept`: how many of each worker's, the first ones; the others
   * leave no trace. Default: all. Throws HOGWILD_BUSY while a call is under way and HOGWILD_INVALID_ARGUMENT before every
   * layer's `append`.
   */
  commit(kept: readonly number[] = this.#counts): void {
    this.#check(0)
    if (checkArray(kept, 'kept').length !== this.#counts.length) {
      throw invalid('kept', `a number for each of ${this.#counts.length} workers`, kept)
    }
    const counts = this.#counts.map((count, i) => checkInteger(kept[i], `kept[${i}]`, 0, count))
    if (this.#running !== undefined) {
      throw new HogwildError('a call of this pass is under way', 'HOGWILD_BUSY')
    }
    for (let layer = 0; layer < this.cache.shape.layers; layer++) this.#checkAppended(layer)
    native.passCommit(this.#handle, Int32Array.from(counts))
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

  /** Runs the append of one layer, which counts as appended at once: `attend` may be called behind it. */
  async #append(layer: number, task: Promise<void>): Promise<void> {
    this.#appended.add(layer)
    try {
      await this.#run(task)
    } catch (error) {
      this.#appended.delete(layer)
      throw error
    }
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

function checkSoftcap(softcap: number): number {
  const range = 'a number in [1e-6, 1e6]'
  return checkNumber(softcap, 'options.softcap', range, (x) => x >= 1e-6 && x <= 1e6)
}

function overlap(a: Float32Array, b: Float32Array): boolean {
  const end = (array: Float32Array) => array.byteOffset + array.byteLength
  return a.buffer === b.buffer && a.byteOffset < end(b) && b.byteOffset < end(a)
}

function checkCaller({ dtype, stream }: DeviceCaller): { dtype: Dtype; stream: bigint | null } {
  return { dtype: checkOneOf(dtype ?? 'f32', 'buffers.dtype', DTYPES), stream: stream ?? null }
}
