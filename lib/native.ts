// Loads the addon and types it. Nothing else in lib/ touches the addon itself; test/addon.test.ts
// compares this interface with what the binary exports.
//
// The binding is flat functions over opaque handles. Sync functions throw HogwildError; async ones
// reject with it. Arguments are checked again on the native side (types, ranges, handle kinds), so no
// call from JavaScript can crash the process.

import { explainAttempts, loadAddon } from './addon-file'
import type { Segment } from './block'
import type { CacheStats } from './cache'
import type { DeviceInfo, OpProfile, Probe } from './device'
import { HogwildError } from './errors'
import type { ModelConfig } from './families'
import type { Dtype, Format, KvDtype } from './formats'
import type { Rope } from './rope'

declare const kind: unique symbol
interface Handle<Kind extends string> {
  readonly [kind]: Kind
}
export type DeviceHandle = Handle<'device'>
export type ModelHandle = Handle<'model'>
export type CacheHandle = Handle<'cache'>
export type BlockHandle = Handle<'block'>
export type PassHandle = Handle<'pass'>
export type ExportHandle = Handle<'export'>
export type ImportHandle = Handle<'import'>
export type CancelHandle = Handle<'cancel'>
export type ProgressHandle = Handle<'progress'>
export type MemoryHandle = Handle<'memory'>
export type StepHandle = Handle<'step'>
export type EditsHandle = Handle<'edits'>

export type { Dtype, Format }
/** Instructions that the kernels of a CPU use: of x64, each with those before it, and of arm64. */
export type SimdLevel =
  | 'baseline'
  | 'avx2'
  | 'avxvnni'
  | 'avx512'
  | 'avx512vnni'
  | 'avx512bf16'
  | 'amx'
  | 'neon'
  | 'neondot'

/** See native/cache/kv_cache.h. */
export interface NativeCacheShape {
  layers: number
  kvHeads: number
  headDim: number
  keyFormat: KvDtype
  valueFormat: KvDtype
  /** Tokens, rounded up to pages. */
  capacity: number
  ropes: readonly Rope[]
  /** [layers]: which of `ropes` turns a layer's keys; -1: none. */
  layerRopes: Int32Array
}

/** See PagePool::Budget, native/cache/page_pool.h. */
export interface NativeBudgetStats {
  pages: number
  usedPages: number
  peakPages: number
}

/** See native/model/config.h. */
export type NativeModelConfig = Omit<
  ModelConfig,
  'architecture' | 'tiedEmbeddings' | 'ropes' | 'maxPositions' | 'eosTokenIds'
> & {
  /** Lists of one length; a cache has one of them. */
  ropes: readonly (readonly Rope[])[]
}

/** See native/model/weights.h. */
export interface NativeTensor {
  name: string
  path: string
  offset: number
  format: Format
  rows: number
  cols: number
  /**
   * Heads whose RoPE pairs are neighbours in the file: of each head's rows (a vector's elements), the first
   * `rotaryDim` are put into the engine's order, row 2u first and 2u + 1 half of `rotaryDim` behind it.
   */
  interleaved?: { headDim: number; rotaryDim: number }
  /**
   * Distances in the file between neighbours in a column and in a row, in elements of a plain format: of a matrix
   * that is stored transposed, or whose rows lie between another's. Default: rows lie one after the other.
   */
  strides?: { row: number; col: number }
  /**
   * mxfp4 in two tensors: the codes of a block, two neighbours in each byte, lie at `offset`, the exponents
   * [rows, cols / 32] here.
   */
  exponents?: NativePlace
  /** int4_gN in several tensors, the codes of which lie at `offset`. */
  integers?: NativeIntegers
}

export interface NativePlace {
  path: string
  offset: number
}

/** See native/core/int4.h. */
export interface NativeIntegers {
  layout: 'awq' | 'gptq' | 'compressed-tensors'
  /** Rows of the tensors, of which the matrix is those from `first` on: multiples of 8. */
  outputs: number
  first: number
  scales: NativePlace & { dtype: Dtype }
  /** Absent: each is 8. */
  zeros?: NativePlace & { rule: 'stored' | 'lessOne' | 'storedOr8' | 'lessOneOr8' }
  /** Which group each column belongs to. Absent: they are in order. */
  groups?: NativePlace
}

export interface NativeSampler {
  temperature: number
  topK: number
  topP: number
  minP: number
  repetitionPenalty: number
  presencePenalty: number
  frequencyPenalty: number
  /** Whose ids the penalties concern. */
  scope: 'view' | 'own'
  /** 0: all of them. */
  lastN: number
  forbidden: Int32Array
  seed: bigint
  draw: bigint
}

export interface NativeWorkerView {
  view: BlockHandle[]
  /**
   * Of each block of the view: its start (-1: where the block before ends), lag, temperature and bias; null where all
   * are -1, 0, 1 and 0.
   */
  fields: Float64Array | null
  target: BlockHandle
}

export interface NativeStepWorker extends NativeWorkerView {
  /** -1 each where there are embeddings. */
  tokens: Int32Array
  /** How many of the last tokens are drafts; default 0. See StepWorker, native/model/outputs.h. */
  drafts?: number | undefined
  /** Workers of one group keep as many drafts as all of them can; in [0, workers), default 0. */
  group?: number | undefined
  /** [tokens, H], as the first layer reads them. Default: those of the ids. */
  embeddings?: Float32Array | undefined
  logits: 'none' | 'last' | 'all'
  /** null: no token is sampled. */
  sampler: NativeSampler | null
  logprob: boolean
  /** At most 1024. */
  topLogprobs: number
  /** Added to the logits of these ids before all else; -Infinity: they never come out. Default: none. */
  logitBias?: { ids: Int32Array; values: Float32Array } | undefined
  /** Whether its token is chosen from edits of the caller's, and its logits come back before. Default 'no'. */
  held?: 'no' | 'yes' | 'with-logits' | undefined
  /** Whether the last layer's output comes back; default false. */
  hidden?: boolean | undefined
  /** Whether it comes back where the last new token looks; default false. */
  attentionMass?: boolean | undefined
}

/** What a worker gets beside its tokens, as far as it was asked for. */
export interface NativeExtras {
  /** 'last': [stages, V]; 'all': [new tokens, V]. */
  logits?: Float32Array
  /** The most likely tokens and their log-probabilities under the raw logits, [stages, as many as asked for but at most V]. */
  topTokens?: Int32Array
  topLogprobs?: Float32Array
  /** [H]. */
  hidden?: Float32Array
  /** [entries of the view]. */
  attentionMass?: Float32Array
}

/** A step that has computed all but the tokens of its held workers from some stage on, whose edits it waits for. */
export interface NativeHeldStep {
  step: StepHandle
  /** Number of drafts before it: those that were what the step chose. */
  stage: number
  /** By worker: whether its token of that stage is chosen from what `finishStep` brings. */
  waiting: boolean[]
  /**
   * Of `holdStep`, where they are wanted ('with-logits'), by worker: [stages, V] with the bias, or empty. Else there are
   * none.
   */
  logits: Float32Array[]
}

/** What a held worker's token is chosen from. */
export interface NativeLogitsEdit {
  /** [V], in the place of its own; null: those. */
  logits: Float32Array | null
  /** Bit id % 32 of element id / 32 is set where the id may be chosen; those beyond may not. null: all may. */
  allowed: Int32Array | null
}

/** Of all workers, one behind the other. "By stage": drafts + 1 of each worker. */
export interface NativeStepResults {
  /** By stage: those beyond `kept` are guesses; -1 where no sampler was given. */
  tokens: Int32Array
  /** By stage: log-probabilities of `tokens` under the raw logits, or NaN where not asked for. */
  logprobs: Float32Array
  /** By worker: drafts that stay. */
  kept: Int32Array
  /** By worker. */
  extras: NativeExtras[]
  /** What the step took on the runner's thread. Not enumerable: it is no result. */
  readonly seconds: number
}

export interface NativePassWorker extends NativeWorkerView {
  nTokens: number
  /** How many of the last of them are drafts; default 0. */
  drafts?: number | undefined
}

/** null: off. */
export interface NativeScoreOptions {
  scale: number
  softcap: number | null
  window: number | null
}

/** null: off, or not wanted. */
export interface NativeAttendOptions extends NativeScoreOptions {
  /** [Hq], finite or -Infinity. */
  sinks: Float32Array | null
  wantLse: boolean
  /** Arrays that take the results, filled when the promise resolves; null: new ones. */
  out: Float32Array | null
  lse: Float32Array | null
}

export interface NativeBinding {
  setErrorClass(errorClass: new (message: string, code: never) => Error): void
  probe(): Probe
  /** The table of native/core/format.h, and bytes of 64 elements on a card (native/core/fragments.h). */
  formats(): { name: string; elements: number; bytes: number; cardBytes: number }[]

  /** profile: the device measures its ops, for `deviceProfile`. */
  createDevice(options: {
    type: 'cpu' | 'cuda'
    /** Which card; 0 for a CPU. */
    index: number
    threads: number
    simd: string
    profile: boolean
    /** Of a card; a CPU always is. Default false. */
    deterministic?: boolean
  }): DeviceHandle
  deviceInfo(device: DeviceHandle): DeviceInfo
  /** Bytes of memory of its own that nobody uses now; 0 on a CPU, which computes in the host's. */
  deviceFreeMemory(device: DeviceHandle): number
  /** Bytes per second, all threads of the device, over a buffer of `bytes`. */
  deviceReadBandwidth(device: DeviceHandle, bytes: number): Promise<number>
  /** Since the last call, the most time first. Refused with HOGWILD_BUSY while the device computes. */
  deviceProfile(device: DeviceHandle): OpProfile[]
  deviceClose(device: DeviceHandle): void

  createModel(
    device: DeviceHandle,
    config: NativeModelConfig,
    tensors: NativeTensor[],
    convertTo: Dtype | null,
    progress: ProgressHandle | null,
    cancel: CancelHandle | null,
    mapped: boolean,
    /** Default true. See native/model/weights.h. */
    repack?: boolean,
  ): Promise<ModelHandle>
  modelWeightBytes(model: ModelHandle): number
  modelClose(model: ModelHandle): void

  /**
   * Takes microseconds. A CUDA device allocates the pool when it is first used, on its own thread: what uses
   * it then rejects with HOGWILD_OUT_OF_MEMORY, and may be tried again.
   */
  createCache(device: DeviceHandle, shape: NativeCacheShape): CacheHandle
  cacheStats(cache: CacheHandle): CacheStats
  /** Frees the pool, on the device's thread, once no step or pass uses it; its blocks are closed with it. */
  cacheClose(cache: CacheHandle): void

  /** How many pages the blocks of a group, and their forks, may have taken at once. Returns its number, from 1. */
  openBudget(cache: CacheHandle, pages: number): number
  budgetStats(cache: CacheHandle, budget: number): NativeBudgetStats
  /** No block is made with it any more. Its pages count as before until they are free. */
  closeBudget(cache: CacheHandle, budget: number): void
  /** Counts pages that somebody else has taken, until it is closed. */
  chargeBudget(cache: CacheHandle, budget: number, pages: number): void

  /** Default: no budget but the pool. */
  createBlock(cache: CacheHandle, budget?: number): BlockHandle
  /** While a step runs, this and `blockTokens` answer as before it; all else on the cache is refused. */
  blockLength(block: BlockHandle): number
  blockTokens(block: BlockHandle): Int32Array
  blockSegments(block: BlockHandle): Segment[]
  blockAppendFrom(target: BlockHandle, source: BlockHandle): void
  blockInsert(target: BlockHandle, at: number, source: BlockHandle): void
  blockTruncate(block: BlockHandle, length: number): void
  blockForget(block: BlockHandle, begin: number, end: number): void
  blockClear(block: BlockHandle): void
  /** Default: of all its tokens. */
  blockFork(block: BlockHandle, begin?: number, end?: number): BlockHandle
  blockCompact(
    block: BlockHandle,
  ): Promise<{ segmentsBefore: number; segmentsAfter: number; tokensMoved: number }>
  /**
   * Keys as stored, values, and the position each key was rotated at. Runs at once, so it is refused with
   * HOGWILD_BUSY while the device computes, for whatever cache.
   */
  blockRead(
    block: BlockHandle,
    layer: number,
  ): { k: Float32Array; v: Float32Array; rotatedAt: Float64Array }
  blockClose(block: BlockHandle): void

  /** Counts the bytes of tensors that `createModel` has dealt with. */
  createProgress(): ProgressHandle
  progressBytes(progress: ProgressHandle): number
  createCancel(): CancelHandle
  cancel(handle: CancelHandle): void

  /**
   * One forward pass. Refused with HOGWILD_BUSY while another step, pass or compaction uses the cache. `seconds`
   * is the time that it took, without its waiting for other tasks.
   */
  step(
    model: ModelHandle,
    cache: CacheHandle,
    workers: NativeStepWorker[],
    cancel: CancelHandle | null,
  ): Promise<NativeStepResults>
  /** For one step. */
  createEdits(): EditsHandle
  /**
   * Brings a step the edits of its first stage, one for each worker, while it computes: then it does not wait there. They
   * are for nothing where it waits already.
   */
  bringEdits(edits: EditsHandle, list: NativeLogitsEdit[]): void
  /**
   * A step some of whose workers are held. Where it waits for them, one of `finishStep` and `abortStep` must follow, until
   * then the cache is busy. A step whose handle is collected is aborted.
   */
  holdStep(
    model: ModelHandle,
    cache: CacheHandle,
    workers: NativeStepWorker[],
    cancel: CancelHandle | null,
    edits: EditsHandle,
  ): Promise<NativeHeldStep | NativeStepResults>
  /** `edits`: one for each worker of the step, for the stage at which it waits. What fails aborts the step. */
  finishStep(
    step: StepHandle,
    edits: NativeLogitsEdit[],
    cancel: CancelHandle | null,
  ): Promise<NativeHeldStep | NativeStepResults>
  abortStep(step: StepHandle): Promise<void>

  /** Reserves room for the new tokens and plans the step; the cache is busy until commit or abort. */
  beginPass(cache: CacheHandle, workers: NativePassWorker[]): PassHandle
  /**
   * k, v: [T, Hkv, D], keys before RoPE; T: new tokens of all workers, worker after worker. Calls of a pass
   * run in the order in which they were made; `passAttend` expects its layer to be appended.
   */
  passAppend(pass: PassHandle, layer: number, k: Float32Array, v: Float32Array): Promise<void>
  /** q: [T, Hq, D] before RoPE. Resolves to out [T, Hq, D] and, if asked for, lse [T, Hq]. */
  passAttend(
    pass: PassHandle,
    layer: number,
    q: Float32Array,
    queryHeads: number,
    options: NativeAttendOptions,
  ): Promise<{ out: Float32Array; lse: Float32Array | null }>
  /**
   * The same on buffers of the engine's own on the device: addresses, multiples of 16. Resolves once the work is
   * enqueued on the stream (a cudaStream_t, 0n or 1n: the legacy default stream), or is done where there is none.
   */
  passAppendDevice(
    pass: PassHandle,
    layer: number,
    buffers: { k: bigint; v: bigint; dtype: Dtype; stream: bigint | null },
  ): Promise<void>
  /** `lse`, `sinks`: 0n where there is none. */
  passAttendDevice(
    pass: PassHandle,
    layer: number,
    buffers: {
      q: bigint
      out: bigint
      lse: bigint
      sinks: bigint
      dtype: Dtype
      stream: bigint | null
    },
    queryHeads: number,
    options: NativeScoreOptions,
  ): Promise<void>
  /** `kept`: how many tokens of each worker; default: all. Refused with HOGWILD_BUSY while calls of the pass are under way. */
  passCommit(pass: PassHandle, kept?: Int32Array): void
  /** Takes effect once the calls under way have ended. A pass that is collected is aborted. */
  passAbort(pass: PassHandle): void

  /**
   * Blocks as bytes: an index of how they lie in pages, and their keys and values in pieces (native/cache/snapshot.h).
   * The cache is busy from beginning to end; what is collected is ended. The blocks are of `cache`, none twice.
   */
  beginExport(cache: CacheHandle, blocks: readonly BlockHandle[]): ExportHandle
  exportIndex(handle: ExportHandle): Uint8Array
  /** Bytes of each piece. */
  exportPieces(handle: ExportHandle): Float64Array
  exportRead(handle: ExportHandle, piece: number): Promise<Uint8Array>
  /** Takes effect once the calls under way have ended. */
  exportEnd(handle: ExportHandle): void
  /**
   * Takes the pages. `budgets`: those of the blocks, and last that of pages which none of them took; 0 and an empty list:
   * nobody's. Refused with HOGWILD_INVALID_SESSION where the index is damaged.
   */
  beginImport(cache: CacheHandle, index: Uint8Array, budgets: readonly number[]): ImportHandle
  importPieces(handle: ImportHandle): Float64Array
  /** Pieces in order, each once. */
  importWrite(handle: ImportHandle, piece: number, bytes: Uint8Array): Promise<void>
  /** After all pieces: the blocks, in the order in which they were exported. Ends the import. */
  importCommit(handle: ImportHandle): BlockHandle[]
  /** Gives the pages back. Takes effect once the calls under way have ended. */
  importAbort(handle: ImportHandle): void

  /**
   * Locks an open file (flock) until it is closed; false where somebody else has it locked. `file`: a descriptor.
   * Throws HOGWILD_UNSUPPORTED where the file's system has no locks.
   */
  tryLock(file: number): boolean

  /** Single ops on host arrays, for tests and benchmarks. See native/addon/ops.cc. */
  ops: NativeOps
}

/** Each runs at once and returns fresh arrays; refused with HOGWILD_BUSY while the device computes. */
export interface NativeOps {
  /** Memory of the device that holds `bytes`, for as long as its handle lives. */
  deviceMemory(device: DeviceHandle, bytes: Uint8Array): { address: bigint; memory: MemoryHandle }
  readMemory(memory: MemoryHandle): Uint8Array
  /** table: raw little-endian elements of `format`, [rows, cols]. */
  embedding(
    device: DeviceHandle,
    tokens: Int32Array,
    table: Uint8Array,
    format: Format,
    cols: number,
    scale: number,
  ): Float32Array
  rmsNorm(device: DeviceHandle, x: Float32Array, weight: Float32Array, eps: number): Float32Array
  /** weights: one to three of [n_i, k] as raw bytes of `format`; x: [rows, k]. */
  matmul(
    device: DeviceHandle,
    x: Float32Array,
    rows: number,
    weights: { data: Uint8Array; format: Format; bias: Float32Array | null }[],
  ): Float32Array[]
  gatedActivation(
    device: DeviceHandle,
    gate: Float32Array,
    up: Float32Array,
    activation: 'silu' | 'gelu_tanh' | 'clamped_swiglu',
  ): Float32Array
  sample(
    device: DeviceHandle,
    logits: Float32Array,
    vocab: number,
    rows: (NativeSampler & { seen: Int32Array; counts: Int32Array })[],
  ): { tokens: Int32Array; logprobs: Float32Array }
}

function load(): NativeBinding {
  const loaded = loadAddon()
  if (loaded.addon === undefined) {
    throw new HogwildError(explainAttempts(loaded.tried), 'HOGWILD_UNSUPPORTED')
  }
  return loaded.addon as NativeBinding
}

export const native = load()
native.setErrorClass(HogwildError)
