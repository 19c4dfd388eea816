// Models, and the step.

import { throwIfAborted } from './abort-signal'
import type { Block } from './block'
import { Cache, checkCapacity } from './cache'
import { checkCacheDtype, defaultCacheDtype } from './cache-dtype'
import { type Device, useDevice } from './device'
import type { DeviceName } from './device-name'
import { HogwildError } from './errors'
import type { ModelConfig } from './families'
import { fingerprint } from './fingerprint'
import { type CacheDtype, DTYPES, type Format, isQuantised, storedBytes } from './formats'
import { GrammarMatcher } from './grammar/grammar'
import { checkDownload, findModel, type ModelDownloadOptions } from './hub/find'
import { MAX_CAPACITY, pagesFor } from './limits'
import { checkWeightMemory, weightMemory } from './memory'
import {
  type CancelHandle,
  type Dtype,
  type ModelHandle,
  type NativeExtras,
  type NativeModelConfig,
  type NativeStepResults,
  type NativeStepWorker,
  type NativeTensor,
  native,
  type ProgressHandle,
} from './native'
import { type BlockGrowth, endOf, placeEntries } from './places'
import { type Rope, ropeFrequencies } from './rope'
import { GREEDY, Sampler } from './sampler'
import { openSource } from './sources/source'
import {
  checkLogitBias,
  heldFor,
  type LogitBias,
  type ProcessLogits,
  type StepHooks,
  stepWithHooks,
} from './step-hooks'
import { runTask, Tasks } from './tasks'
import {
  checkArray,
  checkBoolean,
  checkFloats,
  checkInstance,
  checkInteger,
  checkOneOf,
  checkOptionalFunction,
  checkOptions,
  checkSignal,
  checkString,
  checkTokens,
  invalid,
  isFloat32Array,
  optionKeys,
} from './validate'
import { type CheckedView, checkView, nativeView, type View } from './view'
import { type WarningHandler, Warnings } from './warnings'

const PROGRESS_INTERVAL_MS = 100

/** Options of `loadModel`. */
export interface LoadModelOptions {
  /** Default 'auto': a device of its own, closed with the model. */
  device?: Device | DeviceName | undefined
  /** Threads of that device of its own. */
  threads?: number | undefined
  /** Of matrices in memory. Default 'auto': as stored; another one is converted to. */
  dtype?: 'auto' | Dtype | undefined
  /**
   * Default true: a CPU reads matrices of the stored dtype in place, from files that it maps and whose pages it shares
   * with other processes on the model. They must not
   * change while the model is open: a step that finds a file changed rejects with HOGWILD_INVALID_MODEL, but a
   * file that is shortened during a step ends the process. false: everything is read into memory.
   */
  mapped?: boolean | undefined
  /**
   * Default true: a CPU copies quantised matrices, in another order, into memory of this process, where products are
   * several times as fast; the file's pages are let go. false: they stay as the file has them, so that processes on
   * one model share its mapped pages (but rows of q and k that have to be reordered), and each product arranges them
   * anew. Results are the same to the bit.
   */
  repack?: boolean | undefined
  /** Called about ten times per second while weights are read or copied to a GPU, and at the end. */
  onProgress?: ((progress: LoadProgress) => void) | undefined
  /** How a model of the hub is brought, if it has to be: `download` describes the options. */
  download?: ModelDownloadOptions | undefined
  /** Aborts the loading: HOGWILD_ABORTED with the signal's reason as `cause`. */
  signal?: AbortSignal | undefined
  /**
   * Fields of config.json, or keys of a GGUF file's metadata, that are treated as if they were not there: the way to
   * load a model whose configuration says what hogwild does not know or compute, once you are sure that it does not
   * matter. A field within an object is written 'rope_scaling.field', a key as 'llama.key'. Fields that the model is computed from are refused.
   */
  ignoreFields?: readonly string[] | undefined
  /** What a step does whose view is longer than the model's context (`config.maxPositions`); default 'warn'. */
  beyondContext?: BeyondContext | undefined
  /**
   * Takes the warnings of the model, its caches and runs; default: `process.emitWarning`. Each code comes
   * once. HOGWILD_BEYOND_CONTEXT: see `beyondContext`; HOGWILD_UNKNOWN_EOS_TOKEN: a token that would end
   * a text is not in the vocabulary; HOGWILD_LOW_MEMORY: a cache is larger than the memory that is free;
   * HOGWILD_PREFIXES_NOT_KEPT: the folder of a scheduler's prefixes cannot be used.
   */
  onWarning?: WarningHandler | undefined
}

/**
 * - `warn`: it is computed and HOGWILD_BEYOND_CONTEXT is told, once per model, and once per run
 * - `error`: it is refused with HOGWILD_INVALID_ARGUMENT
 */
export type BeyondContext = 'warn' | 'error'

const BEYOND_CONTEXT = ['warn', 'error'] as const

/** Bytes of the model's tensors, in its files. */
export interface LoadProgress {
  /** Of tensors that were dealt with. */
  loadedBytes: number
  /** Of all tensors. */
  totalBytes: number
}

/** What one worker brings to a step, and what it wants of it. */
export interface StepWorker {
  /** What it sees, and which block it writes. */
  view: View
  /** New token ids, at least one, each in [0, vocabSize). They go to the end of the view's write target. */
  tokens: ArrayLike<number>
  /** In their place: see EmbeddingsWorker. */
  embeddings?: undefined
  /**
   * Guesses of the tokens that come next, each in [0, vocabSize) (speculative decoding). The i-th is computed as in the
   * i-th step behind this one, in which those workers take part that have an i-th draft: as it would be there, it sees the
   * others' drafts up to the i-th. It stays if it is the token that is chosen in its place, and so are the drafts before it;
   * where workers are in each other's views, those of all of them. The others leave no trace. What is chosen is what
   * those steps would choose (bit for bit on the CPU), draw for draw of the sampler. A draft that ends the text of the
   * `grammar`, or would bring a view beyond the context, is left out with those behind it.
   * Not with `sampler: null`, `hidden` and `attentionMass`. Default: none.
   */
  drafts?: ArrayLike<number> | undefined
  /** How the next token is chosen; default: greedily. null: none is. A sampler serves one worker of a step. */
  sampler?: Sampler | null | undefined
  /** Which logits come back; default 'none'. */
  logits?: 'none' | 'last' | 'all' | undefined
  /** Whether the chosen token's log-probability comes back; default false. */
  logprob?: boolean | undefined
  /** How many of the most likely tokens come back with theirs, whatever was chosen, at most 1024; default 0. */
  topLogprobs?: number | undefined
  /**
   * Added to the logits of these token ids, before all else that is done with them: finite numbers, or -Infinity for a
   * token that must not come out. Default: none.
   */
  logitBias?: LogitBias | undefined
  /**
   * Changes the logits [V] from which the token is chosen, in place, after `logitBias` and before `grammar` and all that
   * the sampler does. It is called once per step (with `drafts`: once for each token that is chosen, in their order), with
   * the logits after the last new token, and returns when it has done its work: a promise is refused. The cache is busy meanwhile. Logits come to JavaScript for this worker alone.
   *
   * Where it throws, the step rejects with what it threw; where it leaves NaN, +Infinity or nothing but -Infinity, with
   * HOGWILD_INVALID_ARGUMENT. Cache and samplers are then as they were.
   */
  processLogits?: ProcessLogits | undefined
  /**
   * Only tokens that it allows are chosen; it goes on behind the one that was. Made by `Grammar.matcher`; one serves one
   * worker of a step.
   */
  grammar?: GrammarMatcher | undefined
  /** Whether the last layer's output comes back; default false. */
  hidden?: boolean | undefined
  /**
   * Whether it comes back how the last new token's attention is spread over the view; default false. The layers attend
   * once more for it, for this token alone.
   */
  attentionMass?: boolean | undefined
}

/**
 * A worker that brings embeddings in the place of token ids, e.g. of images, of soft prompts, or hidden states as
 * thoughts. All else is as with ids. Where the cache keeps ids, and for penalties, which count nothing for it, a token
 * without one has the id -1.
 */
export interface EmbeddingsWorker extends Omit<StepWorker, 'tokens' | 'embeddings' | 'drafts'> {
  /**
   * [new tokens, H], finite, at least one: what the first layer reads. A model that multiplies the embeddings of ids
   * (`config.embeddingScale`: Gemma, Granite) does not multiply these: a row of its own table times this number is the id.
   */
  embeddings: Float32Array
  /** Absent: embeddings stand in their place. */
  tokens?: undefined
}

/** A token and how likely it is. */
export interface TokenLogprob {
  /** Its id. */
  token: number
  /** Natural log of the token's probability by the raw logits. */
  logprob: number
}

/** A token that a step has chosen, as in StepOutput. */
export interface ChosenToken {
  /** Its id. */
  token: number
  /** Its log-probability, as `StepOutput.logprob` has it; undefined where not asked for. */
  logprob: number | undefined
  /** The most probable tokens there, as `StepOutput.topLogprobs` has them; undefined where not asked for. */
  topLogprobs: TokenLogprob[] | undefined
}

/** What became of a worker's drafts. */
export interface DraftedTokens {
  /** How many of them stay: they are in the block. */
  kept: number
  /** All that were chosen: the drafts that stay, and the token behind them, which is in no block yet. */
  chosen: ChosenToken[]
  /**
   * What would have been chosen behind the drafts that do not stay, were they right: the next guesses of Jacobi iteration.
   * Of a worker with `processLogits` or a `grammar`: the most likely tokens.
   */
  guesses: number[]
}

/** What one worker gets from a step. */
export interface StepOutput {
  /** Chosen after the last new token (or draft that stays); undefined where sampler was null. It is in no block yet. */
  token: number | undefined
  /** Natural log of the token's probability by the raw logits. */
  logprob: number | undefined
  /** The most likely first, equal ones by ascending id; undefined where not asked for or where sampler was null. */
  topLogprobs: TokenLogprob[] | undefined
  /** 'last': [V], after the last new token; 'all': [new tokens, V]. As the model computes them, whatever hooks do. */
  logits: Float32Array | undefined
  /** `[H]`: the last layer's output for the last new token, after the final norm; undefined where not asked for. */
  hidden: Float32Array | undefined
  /**
   * `[blocks of the view]`: the share of the last new token's attention that goes to each, the mean over all layers and
   * heads; undefined where not asked for. 0 for a hidden block. They sum to 1, but for what sinks take (gpt-oss).
   */
  attentionMass: Float32Array | undefined
  /** undefined where there were no drafts. */
  drafted: DraftedTokens | undefined
}

/** Options of `Model.step`. */
export interface StepOptions {
  /** Aborts the step: HOGWILD_ABORTED with the signal's reason as `cause`, and the cache as it was before. */
  signal?: AbortSignal | undefined
  /** Default: the model's. */
  beyondContext?: BeyondContext | undefined
  /** Takes the warnings of this step; default: the model's. */
  onWarning?: WarningHandler | undefined
}

/** @internal The next so many workers of a step, and what it does where their views are beyond the model's context. */
export interface WorkerSet {
  workers: number
  beyondContext: BeyondContext | undefined
  warnings: Warnings
  /** Whether all of them keep as many drafts as each other, whomever they see. */
  inLockStep: boolean
}

/** Options of `Model.prefill`: those of a step and of its one worker. */
export type PrefillOptions = StepOptions & Omit<StepWorker, 'view' | 'tokens' | 'embeddings'>

/** Options of `Model.createCache`. */
export interface ModelCacheOptions {
  /** Tokens, rounded up to pages; default 8192. */
  capacity?: number | undefined
  /**
   * Positions of the longest view that there will be. Of interest to models with longrope alone, whose keys are
   * rotated in one way up to their original context and in another beyond: where `context` is beyond it, all keys of
   * the cache are rotated in the second way (short views too, where transformers would use the first). Default: up
   * to the original context; a step with a longer view is then refused.
   */
  context?: number | undefined
  /**
   * Of keys and values as stored (see CacheOptions); default: the model's or, where its weights are quantised, 'f16'.
   * On a CUDA device 'bf16' in the place of 'f32', which it multiplies in bf16.
   */
  dtype?: CacheDtype | undefined
  /** Takes the cache's warnings (see CacheOptions); default: the model's. */
  onWarning?: WarningHandler | undefined
}

const LOAD_KEYS = optionKeys<LoadModelOptions>()({
  device: true,
  threads: true,
  dtype: true,
  onProgress: true,
  download: true,
  mapped: true,
  repack: true,
  signal: true,
  ignoreFields: true,
  beyondContext: true,
  onWarning: true,
})
const STEP_WORKER_KEYS = optionKeys<AnyWorker>()({
  view: true,
  tokens: true,
  embeddings: true,
  drafts: true,
  sampler: true,
  logits: true,
  logprob: true,
  topLogprobs: true,
  logitBias: true,
  processLogits: true,
  grammar: true,
  hidden: true,
  attentionMass: true,
})
const STEP_KEYS = optionKeys<StepOptions>()({
  signal: true,
  beyondContext: true,
  onWarning: true,
})
const PREFILL_KEYS = optionKeys<PrefillOptions>()({
  signal: true,
  beyondContext: true,
  onWarning: true,
  drafts: true,
  sampler: true,
  logits: true,
  logprob: true,
  topLogprobs: true,
  logitBias: true,
  processLogits: true,
  grammar: true,
  hidden: true,
  attentionMass: true,
})
const CACHE_KEYS = optionKeys<ModelCacheOptions>()({
  capacity: true,
  context: true,
  dtype: true,
  onWarning: true,
})

/**
 * Loads a model: of a Hugging Face folder config.json and the safetensors, or a GGUF file (the first of a split one).
 * `model` is the path of either or, where there is no such path, a name of the hub (org/name[@revision][:QUANTISATION]),
 * whose files are brought first; see `download`.
 *
 * Families: Llama 2 and 3, Mistral, Mixtral, Qwen2 and 2.5, Qwen3 and Qwen3-MoE, Phi-3, 3.5 and 4 (text), Gemma 1, 2
 * and 3 (text), SmolLM3, OLMo 2, Granite 3, GLM-4, gpt-oss; models with their config.json (SmolLM2, QwQ, DeepSeek-R1
 * distills) with them. Sliding windows are windows of view positions. Fields of config.json, keys of a GGUF file's
 * metadata and tensors that are not known are refused by name.
 *
 * Weights: f32, f16 and bf16; the quantised ones of GGUF files, and of folders 4-bit integers in groups of 32, 64 or
 * 128 as AWQ (gemm), GPTQ (v1, v2, `desc_act`) and compressed-tensors (pack-quantized) store them.
 *
 * Warns of HOGWILD_UNKNOWN_EOS_TOKEN: ids of `eos_token_id` beyond the vocabulary, which are left out.
 *
 * Throws HOGWILD_INVALID_MODEL for damaged or contradictory files, HOGWILD_UNSUPPORTED, naming what is
 * supported, for models that would not be computed exactly, HOGWILD_INVALID_ARGUMENT, HOGWILD_OUT_OF_MEMORY,
 * HOGWILD_ABORTED, HOGWILD_DOWNLOAD.
 */
export async function loadModel(model: string, options: LoadModelOptions = {}): Promise<Model> {
  options = checkOptions(options, 'options', LOAD_KEYS)
  const beyondContext = checkBeyondContext(options.beyondContext)
  const dtype = checkOneOf(options.dtype ?? 'auto', 'options.dtype', ['auto', ...DTYPES])
  const onProgress = checkOptionalFunction(options.onProgress, 'options.onProgress')
  const mapped = checkBoolean(options.mapped ?? true, 'options.mapped')
  const repack = checkBoolean(options.repack ?? true, 'options.repack')
  const signal = checkSignal(options.signal, 'options.signal')
  const ignoreFields = checkArray(
    options.ignoreFields === undefined ? [] : options.ignoreFields,
    'options.ignoreFields',
  ).map((field, i) => checkString(field, `options.ignoreFields[${i}]`))
  const warnings = new Warnings(options.onWarning)
  const { onWarning } = options
  const path = await findModel(model, { ...checkDownload(options.download), signal, onWarning })
  const source = await openSource(path)
  const { config, tensors } = await source.model({ ignoreFields, signal, warnings })
  throwIfAborted(signal)
  const { device, owned } = useDevice(options.device, options.threads)
  try {
    const place = { device: device.info.type, dtype, mapped, repack }
    checkWeightMemory(device, weightMemory(tensors, place), warnings)
    const create = (progress: ProgressHandle | null, cancel: CancelHandle) =>
      native.createModel(
        device.handle,
        nativeConfig(config),
        tensors,
        dtype === 'auto' ? null : dtype,
        progress,
        cancel,
        mapped,
        repack,
      )
    const handle = await runTask([], signal, (cancel) =>
      reportProgress(
        tensors,
        onProgress,
        (progress) => create(progress, cancel),
        () => native.cancel(cancel),
      ),
    )
    const weights = weightFormats(tensors, dtype)
    const identify = () => fingerprint(config, tensors)
    return new Model(handle, config, device, owned, weights, identify, beyondContext, warnings)
  } catch (error) {
    if (owned) device.close()
    throw error
  }
}

/** Bytes of the matrices by format, the largest first. Vectors have rows = 1. */
function weightFormats(tensors: readonly NativeTensor[], dtype: 'auto' | Dtype): WeightFormats {
  const bytes = new Map<Format, number>()
  for (const { format: stored, rows, cols } of tensors) {
    if (rows === 1) continue
    const format = dtype === 'auto' ? stored : dtype
    bytes.set(format, (bytes.get(format) ?? 0) + storedBytes(format, rows, cols))
  }
  return Object.fromEntries([...bytes].sort(([, one], [, other]) => other - one))
}

function nativeConfig(config: ModelConfig): NativeModelConfig {
  const contexts = shortContext(config) === undefined ? [1] : [1, Number.MAX_SAFE_INTEGER]
  return { ...config, ropes: contexts.map((context) => ropesFor(config, context)) }
}

/** For views of up to `context` tokens. */
function ropesFor(config: ModelConfig, context: number): Rope[] {
  return config.ropes.map((rope) => ropeFrequencies(rope, context))
}

/** Tokens of a view up to which longrope has frequencies of their own; undefined: it is the same for all lengths. */
function shortContext({ ropes }: ModelConfig): number | undefined {
  const bounds = ropes.flatMap((rope) =>
    rope.type === 'longrope' ? [rope.originalMaxPositions] : [],
  )
  return bounds.length > 0 ? Math.min(...bounds) : undefined
}

/** Calls `onProgress` until the load has settled. What it throws aborts the load and is thrown in its place. */
async function reportProgress(
  tensors: readonly NativeTensor[],
  onProgress: LoadModelOptions['onProgress'],
  start: (progress: ProgressHandle | null) => Promise<ModelHandle>,
  abort: () => void,
): Promise<ModelHandle> {
  if (onProgress === undefined) return start(null)
  const progress = native.createProgress()
  const totalBytes = tensors.reduce(
    (sum, { format, rows, cols }) => sum + storedBytes(format, rows, cols),
    0,
  )
  const thrown: unknown[] = []
  const report = () => {
    if (thrown.length > 0) return
    try {
      onProgress({ loadedBytes: native.progressBytes(progress), totalBytes })
    } catch (error) {
      thrown.push(error)
      abort()
    }
  }
  const timer = setInterval(report, PROGRESS_INTERVAL_MS)
  try {
    const handle = await start(progress)
    report()
    if (thrown.length === 0) return handle
    native.modelClose(handle)
  } catch (error) {
    if (thrown.length === 0) throw error
  } finally {
    clearInterval(timer)
  }
  throw thrown[0]
}

/** Bytes by format, the largest first. */
export type WeightFormats = Readonly<Partial<Record<Format, number>>>

/** A model, ready to run: read-only, so any number of caches may use it. Made by `loadModel`. */
export class Model {
  /** What its files say of it. */
  readonly config: Readonly<ModelConfig>
  /** Where it computes. */
  readonly device: Device
  /** Bytes of the matrices as files store them, by format, the largest first. */
  readonly weights: WeightFormats
  /**
   * That of most of the matrices; 'f16' where some are quantised: products are exact enough then for a cache in f16
   * to be the better of the two that take 16 bits.
   */
  readonly dtype: Dtype
  /** Bytes of weights that one step reads, whatever the number of workers. */
  readonly weightBytes: number
  /** @internal */
  readonly warnings: Warnings
  readonly #handle: ModelHandle
  readonly #tasks = new Tasks()
  readonly #identify: () => Promise<string>
  readonly #ownsDevice: boolean
  readonly #beyondContext: BeyondContext
  /** Those that may be open. */
  readonly #caches = new Set<WeakRef<Cache>>()
  /** Of caches whose keys are turned by longrope's frequencies for short views. */
  readonly #longestViews = new WeakMap<Cache, number>()
  #fingerprint: Promise<string> | undefined
  #closing: Promise<void> | undefined

  /** @internal */
  constructor(
    handle: ModelHandle,
    config: ModelConfig,
    device: Device,
    ownsDevice: boolean,
    weights: WeightFormats,
    identify: () => Promise<string>,
    beyondContext: BeyondContext,
    warnings: Warnings,
  ) {
    this.#handle = handle
    this.config = config
    this.device = device
    this.weights = weights
    const formats = Object.keys(weights) as Format[]
    this.dtype = formats.some(isQuantised) ? 'f16' : (formats[0] as Dtype)
    this.weightBytes = native.modelWeightBytes(handle)
    this.warnings = warnings
    this.#identify = identify
    this.#ownsDevice = ownsDevice
    this.#beyondContext = beyondContext
  }

  /** Whether it can no longer be used: `close()` was called on it or on its device. */
  get closed(): boolean {
    return this.#closing !== undefined || this.device.closed
  }

  /**
   * What tells this model from others in files of blocks: SHA-256, in hex, of its architecture, sizes,
   * tensors' names, formats and shapes, and 4096 bytes from the middle of each tensor. The same on every device and for every
   * `dtype`. The files are read when this is first called. Rejects with HOGWILD_INVALID_MODEL where they are gone.
   */
  async fingerprint(): Promise<string> {
    this.#fingerprint ??= this.#identify().catch((error: unknown) => {
      this.#fingerprint = undefined // the files may be readable later
      throw error
    })
    return await this.#fingerprint
  }

  /**
   * A cache of this model's shape, on its device.
   *
   * Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED; HOGWILD_OUT_OF_MEMORY where the machine has less
   * memory than the capacity asks for.
   */
  createCache(options: ModelCacheOptions = {}): Cache {
    options = checkOptions(options, 'options', CACHE_KEYS)
    this.#open()
    const { layers, kvHeads, headDim } = this.config
    const context = checkContext(options.context)
    const dtype =
      options.dtype === undefined
        ? defaultCacheDtype(this.device, this.dtype)
        : checkCacheDtype(options.dtype, 'options.dtype')
    const shape = { layers: layers.length, kvHeads, headDim, dtype }
    const ropes = {
      ropes: ropesFor(this.config, context),
      layerRopes: Int32Array.from(layers, ({ rope }) => rope),
    }
    const capacity = checkCapacity(options.capacity)
    const warnings = this.warnings.child(options.onWarning)
    const name = () => this.fingerprint()
    const cache = new Cache(this.device, false, shape, ropes, name, capacity, warnings)
    const longest = shortContext(this.config)
    if (longest !== undefined && context <= longest) this.#longestViews.set(cache, longest)
    for (const ref of this.#caches) {
      if (ref.deref()?.closed !== false) this.#caches.delete(ref)
    }
    this.#caches.add(new WeakRef(cache))
    return cache
  }

  /**
   * One forward pass of any number of workers with any number of new tokens each. In every layer all
   * workers write before any looks, so each sees the others' tokens of this very step. Blocks of all
   * views are of one cache. Results come in the order of `workers` and do not depend, to the last bit,
   * on which other workers take part.
   *
   * Rejects and leaves the cache as it was: HOGWILD_INVALID_ARGUMENT, HOGWILD_WRITE_CONFLICT (two workers
   * write to one block), HOGWILD_OUT_OF_PAGES, HOGWILD_BUSY (the cache or a sampler is in use),
   * HOGWILD_CLOSED, HOGWILD_ABORTED, HOGWILD_INVALID_MODEL (the model computes NaN or infinity, or its files
   * changed); and with what a `processLogits` threw.
   *
   * From the logits to a token: `logitBias`, `processLogits`, `grammar`, then the sampler (see there).
   *
   * A long step does not hold up the steps of other caches on the device: they take turns, piece by piece.
   */
  async step(
    workers: readonly (StepWorker | EmbeddingsWorker)[],
    options: StepOptions = {},
  ): Promise<StepOutput[]> {
    return (await this.timedStep(workers, checkOptions(options, 'options', STEP_KEYS))).outputs
  }

  /**
   * @internal The same, with the seconds that the step took, without its waiting for others on the device. `sets`: one of
   * each owner of workers, in the order of the workers.
   */
  async timedStep(
    workers: readonly (StepWorker | EmbeddingsWorker)[],
    { sets, ...options }: StepOptions & { sets?: readonly WorkerSet[] } = {},
  ): Promise<{ outputs: StepOutput[]; seconds: number }> {
    const signal = checkSignal(options.signal, 'options.signal')
    const list = this.#checkWorkers(workers)
    const model = this.#open()
    const cache = (list[0] as CheckedWorker).view.cache
    const known = sets ?? [this.#onlySet(list, options)]
    this.#checkContexts(list, known)
    cache.makeRoom(
      list.reduce(
        (sum, { tokens, drafts = [] }) => sum + pagesFor(tokens.length + drafts.length),
        0,
      ),
    )
    const groups = draftGroups(list, known)
    const natives = list.map((worker, i) => nativeWorker(worker, groups[i] as number))
    const users = usersOf(list)
    const held = natives.some((worker) => worker.held !== 'no')
    const acquired: StepUser[] = []
    let outputs: StepOutput[] | undefined
    try {
      for (const user of users) {
        user.acquire()
        acquired.push(user)
      }
      const results = await runTask([this.#tasks, cache.tasks], signal, (cancel) =>
        held
          ? stepWithHooks(
              list,
              (edits) => native.holdStep(model, cache.open(), natives, cancel, edits),
              cancel,
            )
          : native.step(model, cache.open(), natives, cancel),
      )
      outputs = stepOutputs(results, list)
      return { outputs, seconds: results.seconds }
    } finally {
      for (const user of acquired) user.release(chosenBy(outputs?.[user.worker]))
    }
  }

  /**
   * A step of one worker with the view [block]: computes tokens on their own, without anything before the
   * block. Rejects as `step` does.
   */
  async prefill(
    block: Block,
    tokens: ArrayLike<number>,
    options: PrefillOptions = {},
  ): Promise<StepOutput> {
    const { signal, beyondContext, onWarning, ...wanted } = checkOptions(
      options,
      'options',
      PREFILL_KEYS,
    )
    const worker = { view: { blocks: [block] }, tokens, ...wanted }
    const stepOptions = { signal, beyondContext, onWarning }
    const outputs = await this.step([worker], stepOptions)
    return outputs[0] as StepOutput
  }

  /** @internal Whether a cache for views of this length has its keys turned otherwise than one for short views (longrope). */
  rotatesForLongViews(context: number | undefined): boolean {
    const longest = shortContext(this.config)
    return longest !== undefined && checkContext(context) > longest
  }

  /** Aborts the steps under way, waits for them, closes the model's caches and frees the weights. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#tasks.abort()
    await Promise.all(Array.from(this.#caches, (ref) => ref.deref()?.close()))
    native.modelClose(this.#handle)
    if (this.#ownsDevice) this.device.close()
  }

  /** As `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** @internal */
  static is(value: unknown): value is Model {
    return typeof value === 'object' && value !== null && #handle in value
  }

  #open(): ModelHandle {
    if (this.closed) throw new HogwildError('the model is closed', 'HOGWILD_CLOSED')
    return this.#handle
  }

  #checkWorkers(workers: readonly (StepWorker | EmbeddingsWorker)[]): CheckedWorker[] {
    const list: CheckedWorker[] = []
    for (const worker of checkArray(workers, 'workers')) {
      list.push(checkWorker(worker as AnyWorker, list.length, this.config, list[0]?.view.cache))
    }
    if (list.length === 0) throw invalid('workers', 'at least one worker', list)
    return list
  }

  #onlySet(workers: readonly CheckedWorker[], options: StepOptions): WorkerSet {
    const { beyondContext, onWarning } = options
    if (beyondContext !== undefined) checkBeyondContext(beyondContext)
    const warnings = onWarning === undefined ? this.warnings : new Warnings(onWarning)
    return { workers: workers.length, beyondContext, warnings, inLockStep: false }
  }

  #checkContexts(workers: readonly CheckedWorker[], sets: readonly WorkerSet[]): void {
    let first = 0
    for (const set of sets) {
      this.#checkContext(workers.slice(first, first + set.workers), set)
      first += set.workers
    }
  }

  /** Positions are those of the tokens that a worker sees, hidden blocks included. */
  #checkContext(
    workers: readonly CheckedWorker[],
    { beyondContext = this.#beyondContext, warnings }: WorkerSet,
  ): void {
    const { maxPositions } = this.config
    const longest = this.#longestViews.get((workers[0] as CheckedWorker).view.cache)
    if (maxPositions === undefined && longest === undefined) return
    const positions = longestView(workers, false)
    const bound = longest ?? (positions > (maxPositions as number) ? undefined : maxPositions)
    if (bound !== undefined) leaveOutDrafts(workers, longestView(workers, true) - bound)
    if (longest !== undefined && positions > longest) {
      throw new HogwildError(
        `a view of ${positions} positions is beyond the ${longest} for which the keys of this cache are rotated (longrope): create it with context: ${positions} or more`,
        'HOGWILD_INVALID_ARGUMENT',
      )
    }
    if (maxPositions === undefined) return
    if (positions <= maxPositions) return
    const message = `a view of ${positions} positions is beyond the model's context of ${maxPositions} (max_position_embeddings)`
    if (beyondContext === 'error') throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
    warnings.warn('HOGWILD_BEYOND_CONTEXT', message)
  }
}

/** All that a worker of either kind may bring. */
type AnyWorker = Omit<StepWorker, 'tokens' | 'embeddings'> & {
  tokens?: StepWorker['tokens'] | undefined
  embeddings?: Float32Array | undefined
}

/** A worker whose parts were checked and copied. */
interface CheckedWorker extends StepHooks {
  view: CheckedView
  /** Without drafts. */
  tokens: Int32Array
  embeddings: Float32Array | undefined
  sampler: Sampler | null | undefined
  logits: 'none' | 'last' | 'all'
  logprob: boolean
  topLogprobs: number
  logitBias: NativeStepWorker['logitBias']
  hidden: boolean
  attentionMass: boolean
}

/** `cache`: that of the workers before. */
function checkWorker(
  worker: AnyWorker,
  index: number,
  config: ModelConfig,
  cache: Cache | undefined,
): CheckedWorker {
  const name = `workers[${index}]`
  const part = checkOptions(worker, name, STEP_WORKER_KEYS)
  const { sampler, grammar } = part
  const view = checkView(part.view, `${name}.view`, cache)
  const { tokens, embeddings } = checkInput(part, name, config)
  const checked = {
    view,
    tokens,
    embeddings,
    drafts: checkDrafts(part, name, config),
    sampler:
      sampler === undefined || sampler === null
        ? sampler
        : checkInstance(sampler, `${name}.sampler`, Sampler),
    logits: checkOneOf(part.logits ?? 'none', `${name}.logits`, ['none', 'last', 'all']),
    logprob: checkBoolean(part.logprob ?? false, `${name}.logprob`),
    topLogprobs: checkInteger(part.topLogprobs ?? 0, `${name}.topLogprobs`, 0, 1024),
    logitBias:
      part.logitBias === undefined
        ? undefined
        : checkLogitBias(part.logitBias, `${name}.logitBias`, config.vocabSize),
    processLogits: checkOptionalFunction(part.processLogits, `${name}.processLogits`),
    grammar:
      grammar === undefined ? undefined : checkInstance(grammar, `${name}.grammar`, GrammarMatcher),
    info: { worker: index, block: view.writeTo, tokens },
    hidden: checkBoolean(part.hidden ?? false, `${name}.hidden`),
    attentionMass: checkBoolean(part.attentionMass ?? false, `${name}.attentionMass`),
  }
  const hook = (['logitBias', 'processLogits', 'grammar'] as const).find(
    (key) => part[key] !== undefined,
  )
  if (sampler === null && hook !== undefined) {
    throw invalid(
      `${name}.sampler`,
      `a Sampler, or none for a greedy one, as there is a ${hook}`,
      sampler,
    )
  }
  return checked
}

/** Up to one that ends the text of the worker's grammar. */
function checkDrafts(worker: AnyWorker, name: string, { vocabSize }: ModelConfig): Int32Array {
  const drafts = checkTokens(worker.drafts ?? [], `${name}.drafts`, vocabSize)
  if (drafts.length === 0) return drafts
  const { sampler, embeddings, hidden, attentionMass, grammar } = worker
  if (sampler === null) throw invalid(`${name}.drafts`, 'absent where sampler is null', drafts)
  const beside = Object.entries({ embeddings, hidden, attentionMass }).find(([, value]) => value)
  if (beside !== undefined) throw invalid(`${name}.drafts`, `absent beside ${beside[0]}`, drafts)
  const end = grammar === undefined ? -1 : drafts.findIndex((id) => grammar.grammar.isStop(id))
  return end < 0 ? drafts : drafts.subarray(0, end)
}

/** So many of each worker's: whatever view is longer than it may be is shorter by as many, or has no drafts in it. */
function leaveOutDrafts(workers: readonly CheckedWorker[], count: number): void {
  if (count <= 0) return
  for (const worker of workers) {
    worker.drafts = worker.drafts.subarray(0, Math.max(0, worker.drafts.length - count))
  }
}

/** Of each worker, the group in which drafts are kept together, as the index of one of its workers. */
function draftGroups(workers: readonly CheckedWorker[], sets: readonly WorkerSet[]): number[] {
  const groups = workers.map((_, i) => i)
  if (workers.every(({ drafts }) => drafts.length === 0)) return groups
  const join = (one: number, other: number) => {
    const [from, to] = [groups[one], groups[other] as number]
    groups.forEach((group, i) => {
      if (group === from) groups[i] = to
    })
  }
  const writers = new Map(workers.map(({ view }, i) => [view.writeTo, i]))
  workers.forEach(({ view }, i) => {
    for (const { block } of view.entries) join(i, writers.get(block) ?? i)
  })
  let first = 0
  for (const set of sets) {
    const end = first + set.workers
    for (let i = first + 1; set.inLockStep && i < end; i++) join(i, first)
    first = end
  }
  return groups
}

/** The token ids, or -1 for each embedding. */
function checkInput(
  { tokens, embeddings }: AnyWorker,
  name: string,
  { vocabSize, hiddenSize }: ModelConfig,
): Pick<CheckedWorker, 'tokens' | 'embeddings'> {
  if (embeddings === undefined) {
    const ids = checkTokens(tokens, `${name}.tokens`, vocabSize, 1)
    return { tokens: ids, embeddings }
  }
  if (tokens !== undefined) {
    throw invalid(name, 'either tokens or embeddings', { tokens, embeddings })
  }
  const rows = isFloat32Array(embeddings) ? embeddings.length / hiddenSize : 0
  const shape = `[new tokens, ${hiddenSize}], at least one`
  const count = Number.isInteger(rows) && rows > 0 ? rows : 1
  checkFloats(embeddings, `${name}.embeddings`, count * hiddenSize, shape)
  return { tokens: new Int32Array(count).fill(-1), embeddings }
}

function nativeWorker(worker: CheckedWorker, group: number): NativeStepWorker {
  const { view, tokens, drafts, embeddings, sampler, logits, logprob, topLogprobs } = worker
  const { logitBias, hidden, attentionMass } = worker
  const { view: blocks, fields, target } = nativeView(view)
  return {
    view: blocks,
    fields,
    target,
    tokens: drafts.length === 0 ? tokens : Int32Array.from([...tokens, ...drafts]),
    drafts: drafts.length,
    group,
    embeddings,
    logits,
    sampler: sampler === undefined ? GREEDY : (sampler?.next() ?? null),
    logprob,
    topLogprobs,
    logitBias,
    held: heldFor(worker),
    hidden,
    attentionMass,
  }
}

/** What serves one worker at a time, from the step's begin to its end; then it is told the tokens that were chosen. */
interface StepUser {
  worker: number
  acquire(): void
  release(tokens: readonly number[]): void
}

/** Throws HOGWILD_INVALID_ARGUMENT where one serves two workers. */
function usersOf(workers: readonly CheckedWorker[]): StepUser[] {
  const seen = new Set<Sampler | GrammarMatcher>()
  const once = <T extends Sampler | GrammarMatcher>(user: T, what: string): T => {
    if (seen.has(user)) {
      throw new HogwildError(
        `expected workers to be served by a ${what} of its own each, received one that serves two`,
        'HOGWILD_INVALID_ARGUMENT',
      )
    }
    seen.add(user)
    return user
  }
  return workers.flatMap(({ sampler, grammar }, worker) => {
    const users: StepUser[] = []
    if (sampler) {
      const user = once(sampler, 'sampler')
      users.push({
        worker,
        acquire: () => user.acquire(),
        release: (tokens) => user.release(tokens.length),
      })
    }
    if (grammar) {
      const user = once(grammar, 'grammar matcher')
      users.push({
        worker,
        acquire: () => user.acquire(),
        release: (tokens) => user.release(tokens),
      })
    }
    return users
  })
}

/** The tokens that were chosen. undefined: the step has failed. */
function chosenBy(output: StepOutput | undefined): number[] {
  if (output === undefined) return []
  const chosen = output.drafted?.chosen ?? [output]
  return chosen.flatMap(({ token }) => token ?? [])
}

function stepOutputs(results: NativeStepResults, workers: readonly CheckedWorker[]): StepOutput[] {
  let first = 0
  return workers.map((worker, i) => {
    const output = stepOutput(results, i, first, worker)
    first += worker.drafts.length + 1
    return output
  })
}

/** Of worker number `index`, whose first stage is number `first`. */
function stepOutput(
  results: NativeStepResults,
  index: number,
  first: number,
  worker: CheckedWorker,
): StepOutput {
  const kept = results.kept[index] as number
  const extras = results.extras[index] as NativeExtras
  const { drafts } = worker
  const choice = (stage: number) => {
    const token = results.tokens[first + stage] as number
    return {
      token: token < 0 ? undefined : token,
      logprob: worker.logprob && token >= 0 ? results.logprobs[first + stage] : undefined,
      topLogprobs: topOf(extras, stage, drafts.length + 1),
    }
  }
  const { token, logprob, topLogprobs } = choice(kept)
  return {
    token,
    logprob,
    topLogprobs,
    logits: keptLogits(extras.logits, kept, worker),
    hidden: extras.hidden,
    attentionMass: extras.attentionMass,
    drafted:
      drafts.length > 0
        ? {
            kept,
            chosen: Array.from({ length: kept + 1 }, (_, stage) => choice(stage) as ChosenToken),
            guesses: Array.from(
              results.tokens.subarray(first + kept + 1, first + drafts.length + 1),
            ),
          }
        : undefined,
  }
}

/** The most likely tokens of one of so many stages. */
function topOf(
  { topTokens, topLogprobs }: NativeExtras,
  stage: number,
  stages: number,
): TokenLogprob[] | undefined {
  if (topTokens === undefined || topLogprobs === undefined) return undefined
  const top = topTokens.length / stages
  return Array.from({ length: top }, (_, rank) => ({
    token: topTokens[stage * top + rank] as number,
    logprob: topLogprobs[stage * top + rank] as number,
  }))
}

/** Without those of drafts that do not stay. */
function keptLogits(
  logits: Float32Array | undefined,
  kept: number,
  { tokens, drafts, logits: wanted }: CheckedWorker,
): Float32Array | undefined {
  if (logits === undefined || drafts.length === 0) return logits
  const rows = wanted === 'all' ? tokens.length + drafts.length : 1 + drafts.length
  const vocab = logits.length / rows
  return wanted === 'all'
    ? logits.slice(0, (tokens.length + kept) * vocab)
    : logits.slice(kept * vocab, (kept + 1) * vocab)
}

/** Positions of the longest view of the step. Asks each block for its length once. */
function longestView(workers: readonly CheckedWorker[], withDrafts: boolean): number {
  const growths = new Map<Block, BlockGrowth>()
  for (const { view } of workers) {
    for (const { block } of view.entries) {
      if (!growths.has(block)) growths.set(block, { before: block.length, appended: 0 })
    }
  }
  for (const { view, tokens, drafts } of workers) {
    const growth = growths.get(view.writeTo) as BlockGrowth
    growth.appended += tokens.length + (withDrafts ? drafts.length : 0)
  }
  return workers.reduce((longest, { view: { entries, writeTo } }) => {
    const written = entries.findIndex(({ block }) => block === writeTo)
    const places = placeEntries(entries, written, ({ block }) => growths.get(block) as BlockGrowth)
    return Math.max(longest, endOf(places))
  }, 0)
}

/** Positions of the longest view; 1 stands for "not said". */
export function checkContext(context: number | undefined): number {
  return checkInteger(context ?? 1, 'options.context', 1, MAX_CAPACITY)
}

export function checkBeyondContext(value: BeyondContext = 'warn'): BeyondContext {
  return checkOneOf(value, 'options.beyondContext', BEYOND_CONTEXT)
}
