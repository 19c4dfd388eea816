// Models of a Hugging Face folder, and the step.

import { stat } from 'node:fs/promises'
import { type Block, Cache, checkCapacity, nativeView, type View } from './cache'
import { cacheDtype, type Device, useDevice } from './device'
import type { DeviceName } from './device-name'
import { HogwildError } from './errors'
import type { ModelConfig } from './families'
import { DTYPES } from './formats'
import {
  type CancelHandle,
  type Dtype,
  type ModelHandle,
  type NativeStepWorker,
  type NativeTensor,
  native,
  type ProgressHandle,
} from './native'
import { ropeFrequencies } from './rope'
import { GREEDY, Sampler } from './sampler'
import { checkFolder } from './sources/files'
import { readFolder } from './sources/huggingface'
import { runTask, Tasks, throwIfAborted } from './tasks'
import {
  checkArray,
  checkBoolean,
  checkInstance,
  checkObject,
  checkOneOf,
  checkOptionalFunction,
  checkOptions,
  checkSignal,
  checkString,
  checkTokens,
  describe,
  invalid,
  optionKeys,
} from './validate'
import { type WarningHandler, Warnings } from './warnings'

const PROGRESS_INTERVAL_MS = 100

export interface LoadModelOptions {
  /** Default 'auto': a device of its own, closed with the model. */
  device?: Device | DeviceName | undefined
  /** Threads of that device of its own. */
  threads?: number | undefined
  /** Of matrices in memory. Default 'auto': as stored, mapped from the files; another one is converted to. */
  dtype?: 'auto' | Dtype | undefined
  /** Called about ten times per second while weights are read or copied to a GPU, and at the end. */
  onProgress?: ((progress: LoadProgress) => void) | undefined
  /** Aborts the loading: HOGWILD_ABORTED with the signal's reason as `cause`. */
  signal?: AbortSignal | undefined
  /**
   * Fields of config.json that are treated as if they were not there: the way to load a model whose
   * configuration says what hogwild does not know or compute, once you are sure that it does not matter. A field
   * within an object is written 'rope_scaling.field'. Fields that the model is computed from are refused.
   */
  ignoreFields?: readonly string[] | undefined
  /** Takes warnings, each code once; default: `process.emitWarning`. */
  onWarning?: WarningHandler | undefined
}

const LOAD_MODEL_OPTIONS = optionKeys<LoadModelOptions>()({
  device: true,
  threads: true,
  dtype: true,
  onProgress: true,
  signal: true,
  ignoreFields: true,
  onWarning: true,
})

/** Bytes of the model's tensors, in its files. */
export interface LoadProgress {
  loadedBytes: number
  totalBytes: number
}

/** What one worker brings to a step. */
export interface StepWorker {
  view: View
  /** New token ids, at least one, each in [0, vocabSize). They go to the end of the view's write target. */
  tokens: ArrayLike<number>
  /** How the next token is chosen; default: greedily. null: none is. A sampler serves one worker of a step. */
  sampler?: Sampler | null | undefined
  /** Which logits come back; default 'none'. */
  logits?: 'none' | 'last' | 'all' | undefined
  /** Whether the chosen token's log-probability comes back; default false. */
  logprob?: boolean | undefined
}

/** What one worker gets from a step. */
export interface StepOutput {
  /** Chosen after the last new token; undefined where sampler was null. It is in no block yet. */
  token: number | undefined
  /** Natural log of the token's probability by the raw logits. */
  logprob: number | undefined
  /** 'last': [V], after the last new token; 'all': [new tokens, V]. */
  logits: Float32Array | undefined
}

export interface StepOptions {
  /** Aborts the step: HOGWILD_ABORTED with the signal's reason as `cause`, and the cache as it was before. */
  signal?: AbortSignal | undefined
}

export type PrefillOptions = StepOptions & Pick<StepWorker, 'sampler' | 'logits' | 'logprob'>

/**
 * Loads config.json and the safetensors of a Hugging Face folder. Architectures: Llama, Mistral (without
 * sliding window), Qwen2, Qwen3, Gemma, Phi-3 (without longrope). Fields of config.json and tensors that are
 * not known are refused by name.
 *
 * Warns of HOGWILD_UNKNOWN_EOS_TOKEN: ids of `eos_token_id` beyond the vocabulary, which are left out.
 *
 * Throws HOGWILD_INVALID_MODEL for damaged or contradictory files, HOGWILD_UNSUPPORTED, naming what is
 * supported, for models that would not be computed exactly, HOGWILD_INVALID_ARGUMENT, HOGWILD_OUT_OF_MEMORY,
 * HOGWILD_ABORTED.
 */
export async function loadModel(folder: string, options: LoadModelOptions = {}): Promise<Model> {
  checkFolder(folder, 'folder')
  checkOptions(options, 'options', LOAD_MODEL_OPTIONS)
  const dtype = checkOneOf(options.dtype ?? 'auto', 'options.dtype', ['auto', ...DTYPES])
  const onProgress = checkOptionalFunction(options.onProgress, 'options.onProgress')
  const signal = checkSignal(options.signal, 'options.signal')
  const ignoreFields = checkArray(
    options.ignoreFields === undefined ? [] : options.ignoreFields,
    'options.ignoreFields',
  ).map((field, i) => checkString(field, `options.ignoreFields[${i}]`))
  const warnings = new Warnings(options.onWarning)
  const found = await stat(folder).catch(() => undefined)
  if (!found?.isDirectory()) {
    throw new HogwildError(`no model folder at ${describe(folder)}`, 'HOGWILD_INVALID_MODEL')
  }
  const { config, tensors } = await readFolder(folder, { ignoreFields, signal, warnings })
  throwIfAborted(signal)
  const { device, owned } = useDevice(options.device, options.threads)
  try {
    const create = (progress: ProgressHandle | null, cancel: CancelHandle) =>
      native.createModel(
        device.handle,
        {
          vocabSize: config.vocabSize,
          hiddenSize: config.hiddenSize,
          intermediateSize: config.intermediateSize,
          layers: config.layers,
          queryHeads: config.queryHeads,
          kvHeads: config.kvHeads,
          headDim: config.headDim,
          rmsNormEps: config.rmsNormEps,
          normOffset: config.normOffset,
          embeddingScale: config.embeddingScale,
          attentionScale: 1 / Math.sqrt(config.headDim),
          activation: config.activation,
          ...ropeFrequencies(config.rope),
        },
        tensors,
        dtype === 'auto' ? null : dtype,
        progress,
        cancel,
      )
    const handle = await runTask([], signal, (cancel) =>
      reportProgress(
        tensors,
        onProgress,
        (progress) => create(progress, cancel),
        () => native.cancel(cancel),
      ),
    )
    const stored = tensors.find(({ name }) => name === 'embed')?.dtype as Dtype
    return new Model(handle, config, device, owned, dtype === 'auto' ? stored : dtype)
  } catch (error) {
    if (owned) device.close()
    throw error
  }
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
    (sum, { dtype, rows, cols }) => sum + rows * cols * (dtype === 'f32' ? 4 : 2),
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

/** A model, ready to run: read-only, so any number of caches may use it. Made by `loadModel`. */
export class Model {
  readonly config: Readonly<ModelConfig>
  readonly device: Device
  /** Of the matrices; with dtype 'auto' that of the embedding. */
  readonly dtype: Dtype
  /** Bytes of weights that one step reads, whatever the number of workers. */
  readonly weightBytes: number
  readonly #handle: ModelHandle
  readonly #tasks = new Tasks()
  readonly #ownsDevice: boolean
  #closing: Promise<void> | undefined

  /** @internal */
  constructor(
    handle: ModelHandle,
    config: ModelConfig,
    device: Device,
    ownsDevice: boolean,
    dtype: Dtype,
  ) {
    this.#handle = handle
    this.config = config
    this.device = device
    this.dtype = dtype
    this.weightBytes = native.modelWeightBytes(handle)
    this.#ownsDevice = ownsDevice
  }

  get closed(): boolean {
    return this.#closing !== undefined
  }

  /** A cache of this model's shape, on its device. `capacity` in tokens, default 8192; `dtype` default: the model's. */
  createCache(options: { capacity?: number | undefined; dtype?: Dtype | undefined } = {}): Cache {
    this.#open()
    checkObject(options, 'options')
    const { layers, kvHeads, headDim, rope } = this.config
    const dtype = checkOneOf(
      options.dtype ?? cacheDtype(this.device, this.dtype),
      'options.dtype',
      DTYPES,
    )
    const shape = { layers, kvHeads, headDim, dtype }
    const capacity = checkCapacity(options.capacity)
    return new Cache(this.device, false, shape, ropeFrequencies(rope), capacity)
  }

  /**
   * One forward pass of any number of workers with any number of new tokens each. In every layer all
   * workers write before any looks, so each sees the others' tokens of this very step. Blocks of all
   * views are of one cache. Results come in the order of `workers` and do not depend, to the last bit,
   * on which other workers take part.
   *
   * Rejects and leaves the cache as it was: HOGWILD_INVALID_ARGUMENT, HOGWILD_WRITE_CONFLICT (two workers
   * write to one block), HOGWILD_OUT_OF_PAGES, HOGWILD_BUSY (the cache is in use), HOGWILD_CLOSED,
   * HOGWILD_ABORTED.
   */
  async step(workers: readonly StepWorker[], options: StepOptions = {}): Promise<StepOutput[]> {
    const model = this.#open()
    const signal = checkSignal(checkObject(options, 'options').signal, 'options.signal')
    const list = checkArray(workers, 'workers') as StepWorker[]
    const cache = list[0]?.view?.blocks?.[0]?.cache
    if (cache === undefined) {
      throw invalid('workers', 'at least one worker with a block in its view', workers)
    }
    const natives = list.map((worker, i) => this.#nativeWorker(worker, `workers[${i}]`, cache))
    const samplers = list.flatMap(({ sampler }) => sampler ?? [])
    if (new Set(samplers).size < samplers.length) {
      throw invalid('workers', 'served by a sampler of its own each', 'a sampler that serves two')
    }
    const results = await runTask([this.#tasks, cache.tasks], signal, (cancel) =>
      native.step(model, cache.open(), natives, cancel),
    )
    for (const sampler of samplers) sampler.advance()
    return results.map(({ token, logprob, logits }, i) => ({
      token: token < 0 ? undefined : token,
      logprob: list[i]?.logprob && token >= 0 ? logprob : undefined,
      logits: logits.length > 0 ? logits : undefined,
    }))
  }

  /** A step of one worker with the view [block]: computes tokens on their own, without anything before the block. */
  async prefill(
    block: Block,
    tokens: ArrayLike<number>,
    options: PrefillOptions = {},
  ): Promise<StepOutput> {
    const { signal, ...wanted } = checkObject(options, 'options') as PrefillOptions
    const worker = { view: { blocks: [block] }, tokens, ...wanted }
    const outputs = await this.step([worker], signal === undefined ? {} : { signal })
    return outputs[0] as StepOutput
  }

  /** Aborts the steps under way, waits for them, and frees the weights. Idempotent. Close caches first. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#tasks.abort()
    native.modelClose(this.#handle)
    if (this.#ownsDevice) this.device.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #open(): ModelHandle {
    if (this.closed) throw new HogwildError('the model is closed', 'HOGWILD_CLOSED')
    return this.#handle
  }

  #nativeWorker(worker: StepWorker, name: string, cache: Cache): NativeStepWorker {
    const { view, tokens, sampler, logits, logprob } = checkObject(
      worker,
      name,
    ) as unknown as StepWorker
    return {
      ...nativeView(view, `${name}.view`, cache),
      tokens: checkTokens(tokens, `${name}.tokens`, this.config.vocabSize, 1),
      logits: checkOneOf(logits ?? 'none', `${name}.logits`, ['none', 'last', 'all']),
      sampler: nativeSampler(sampler, `${name}.sampler`),
      logprob: checkBoolean(logprob ?? false, `${name}.logprob`),
    }
  }
}

function nativeSampler(sampler: Sampler | null | undefined, name: string) {
  if (sampler === null) return null
  return sampler === undefined ? GREEDY : checkInstance(sampler, name, Sampler).next()
}
