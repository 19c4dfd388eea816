// What a model is and what it takes, told from the headers of its files: no weight is read.

import { bytesPerToken, type CacheShape } from './cache'
import type { HogwildErrorCode } from './errors'
import type { ModelConfig } from './families'
import {
  DTYPE_BYTES,
  DTYPES,
  type Dtype,
  FORMATS,
  KV_DTYPES,
  type KvDtype,
  storedBytes,
} from './formats'
import { checkDownload, findModel, type ModelDownloadOptions } from './hub/find'
import { DEFAULT_CAPACITY, MAX_CAPACITY, PAGE_TOKENS } from './limits'
import { availableMemory, type WeightMemory, weightMemory } from './memory'
import { inBytes } from './printable'
import { openSource, type SourceModel } from './sources/source'
import type { TokenizerKind } from './tokenizer/models/parse'
import { loadTokenizer } from './tokenizer/tokenizer'
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkOneOf,
  checkOptions,
  checkSignal,
  checkString,
  optionKeys,
} from './validate'
import { type Warning, Warnings } from './warnings'

/** Options of `inspectModel`. */
export interface InspectOptions {
  /** Tokens in the cache, those of all workers together; default: the model's context, at most 8192. */
  context?: number | undefined
  /** Workers that write at once; default 4. */
  workers?: number | undefined
  /** As of `loadModel`. */
  dtype?: 'auto' | Dtype | undefined
  /** As of `loadModel`. */
  mapped?: boolean | undefined
  /** As of `loadModel`. */
  repack?: boolean | undefined
  /** As of `loadModel`. */
  ignoreFields?: readonly string[] | undefined
  /** As of `loadModel`. */
  download?: ModelDownloadOptions | undefined
  /** Rejects with HOGWILD_ABORTED. */
  signal?: AbortSignal | undefined
}

/** Tensors that play the same role, whatever the layer, and are stored in the same format. */
export interface StoredRole {
  /** 'embed', 'q_proj', … */
  role: string
  /** GGUF's names in lower case; int4_g32, int4_g64 and int4_g128 of AWQ, GPTQ and compressed-tensors. */
  format: string
  /** How many there are. */
  tensors: number
  /** Of all of them, in the files. */
  bytes: number
}

/** Why a model cannot be loaded. */
export interface Refusal {
  /** Of what: `loadModel`, `loadTokenizer`, or, as things are now, the memory for both weights and cache. */
  part: 'model' | 'tokenizer' | 'memory'
  /** Of the error that would come. */
  code: HogwildErrorCode
  /** Of that error. */
  message: string
}

/** What a model is and what it takes. */
export interface InspectedModel {
  /** As `Model.config` would be. */
  config: ModelConfig
  /** Elements of the tensors that it computes with. */
  parameters: number
  /** Of them, in the files. */
  storedBytes: number
  /** Its tensors by what they do, and how they are stored. */
  roles: StoredRole[]
  /** Keys and values of all layers, by the cache's dtype. */
  cacheBytesPerToken: Record<KvDtype, number>
  /** What it takes on a CPU. */
  memory: ModelMemory
}

/** What a model takes on a CPU, in bytes. */
export interface ModelMemory {
  /** Tokens in the cache, of all workers together. */
  context: number
  /** Workers that write at once. */
  workers: number
  /** Of its weights. */
  weights: WeightMemory
  /** Of a cache in which `workers` blocks have room for `context` tokens in all, by its dtype. */
  cache: Record<KvDtype, number>
  /** That are free now. */
  available: number
}

/** What a tokenizer is. */
export interface InspectedTokenizer {
  /** How it cuts words. */
  kind: TokenizerKind
  /** Tokens that it knows. */
  tokens: number
  /** Names of its chat templates. */
  chatTemplates: string[]
}

/** What `inspectModel` finds. */
export interface ModelReport {
  /** What `loadModel` and `loadTokenizer` take. */
  path: string
  /** Undefined where `loadModel` would refuse it. */
  model: InspectedModel | undefined
  /** Undefined where `loadTokenizer` would refuse it. */
  tokenizer: InspectedTokenizer | undefined
  /** Why something would be refused; empty where nothing would. */
  refusals: Refusal[]
  /** Warnings that would come. */
  warnings: Warning[]
}

const KEYS = optionKeys<InspectOptions>()({
  context: true,
  workers: true,
  dtype: true,
  mapped: true,
  repack: true,
  ignoreFields: true,
  download: true,
  signal: true,
})

const MAX_WORKERS = 2 ** 20

/**
 * What a model is, what it takes, and what would be refused, without loading its weights. `model` is a path or a name
 * of the hub, as for `loadModel`; a model of the hub is downloaded first.
 *
 * What would be refused stands in `refusals`. Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_ABORTED, and where there is no
 * model at all as `findModel`.
 */
export async function inspectModel(
  model: string,
  options: InspectOptions = {},
): Promise<ModelReport> {
  const checked = checkOptions(options, 'options', KEYS)
  const { dtype = 'auto', mapped = true, repack = true, workers = 4, context } = checked
  checkOneOf(dtype, 'options.dtype', ['auto', ...DTYPES])
  checkBoolean(mapped, 'options.mapped')
  checkBoolean(repack, 'options.repack')
  checkInteger(workers, 'options.workers', 1, MAX_WORKERS)
  if (context !== undefined) checkInteger(context, 'options.context', 1, MAX_CAPACITY)
  const ignoreFields = checkArray(checked.ignoreFields ?? [], 'options.ignoreFields').map(
    (field, i) => checkString(field, `options.ignoreFields[${i}]`),
  )
  const signal = checkSignal(checked.signal, 'options.signal')
  const told: Warning[] = []
  const onWarning = (warning: Warning) => void told.push(warning)
  const path = await findModel(model, { ...checkDownload(checked.download), signal, onWarning })

  const refusals: Refusal[] = []
  /** What `read` gives; undefined, and a refusal, where it throws one. */
  const attempt = async <T>(part: Refusal['part'], read: () => Promise<T>) => {
    try {
      return await read()
    } catch (error) {
      const { name, code, message } = error as Error & { code: HogwildErrorCode }
      const isOfCaller = code === 'HOGWILD_ABORTED' || code === 'HOGWILD_INVALID_ARGUMENT'
      if (name !== 'HogwildError' || isOfCaller) throw error
      refusals.push({ part, code, message })
      return undefined
    }
  }
  const source = await openSource(path)
  const warnings = new Warnings(onWarning)
  const found = await attempt('model', () => source.model({ ignoreFields, signal, warnings }))
  const tokenizer = await attempt('tokenizer', async () => {
    await using loaded = await loadTokenizer(path, { signal, onWarning })
    const { kind, size, chatTemplates } = loaded
    return { kind, tokens: size, chatTemplates }
  })
  const report: ModelReport = { path, model: undefined, tokenizer, refusals, warnings: told }
  if (found === undefined) return report
  const inspected = modelReport(found, { dtype, mapped, repack, workers, context })
  const { context: tokens, weights, cache, available } = inspected.memory
  const least = Math.min(...Object.values(cache))
  if (weights.own + least > available) {
    const message = `weights take ${inBytes(weights.own)} and a cache of ${tokens} tokens at least ${inBytes(least)}, and ${inBytes(available)} of memory are free`
    refusals.push({ part: 'memory', code: 'HOGWILD_OUT_OF_MEMORY', message })
  }
  return { ...report, model: inspected }
}

function modelReport(
  { config, tensors }: SourceModel,
  use: {
    dtype: 'auto' | Dtype
    mapped: boolean
    repack: boolean
    workers: number
    context: number | undefined
  },
): InspectedModel {
  const { dtype, mapped, repack, workers } = use
  const context = use.context ?? Math.min(config.maxPositions ?? DEFAULT_CAPACITY, DEFAULT_CAPACITY)
  const perToken = byDtype((dtype) => bytesPerToken(cacheShape(config, dtype)))
  // Every worker's block may end in a page that is partly empty.
  const pages = Math.ceil(context / PAGE_TOKENS) + workers
  const roles = storedRoles(tensors)
  return {
    config,
    parameters: sum(tensors.map(({ rows, cols }) => rows * cols)),
    storedBytes: sum(roles.map(({ bytes }) => bytes)),
    roles,
    cacheBytesPerToken: perToken,
    memory: {
      context,
      workers,
      weights: weightMemory(tensors, { device: 'cpu', dtype, mapped, repack }),
      cache: byDtype((dtype) => pages * PAGE_TOKENS * perToken[dtype]),
      available: availableMemory(),
    },
  }
}

function cacheShape({ layers, kvHeads, headDim }: ModelConfig, dtype: KvDtype): CacheShape {
  return { layers: layers.length, kvHeads, headDim, dtype }
}

function byDtype(bytes: (dtype: KvDtype) => number): Record<KvDtype, number> {
  const entries = KV_DTYPES.map((dtype) => [dtype, bytes(dtype)])
  return Object.fromEntries(entries) as Record<KvDtype, number>
}

/** Layers, and experts, taken together. */
function storedRoles(tensors: SourceModel['tensors']): StoredRole[] {
  const roles = new Map<string, StoredRole>()
  for (const tensor of tensors) {
    const { name, format } = tensor
    const role = name.replace(/^layers\.\d+\./, '').replace(/\.\d+\./g, '.')
    const key = `${role} ${format}`
    const stored = roles.get(key) ?? { role, format, tensors: 0, bytes: 0 }
    stored.tensors++
    stored.bytes += bytesInFiles(tensor)
    roles.set(key, stored)
  }
  return [...roles.values()]
}

/** Without the order of columns, which some integers have. */
function bytesInFiles({ format, rows, cols, integers }: SourceModel['tensors'][number]): number {
  if (integers === undefined) return storedBytes(format, rows, cols)
  const { scales, zeros } = integers
  const ofGroup = DTYPE_BYTES[scales.dtype] + (zeros === undefined ? 0 : 0.5)
  return rows * (cols / 2 + (cols / FORMATS[format].elements) * ofGroup)
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
