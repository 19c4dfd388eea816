// What tests share: seeded random numbers, tiny random models as Hugging Face folders, safetensors,
// the oracle's goldens, and comparisons that name their seed.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type * as hogwild from '../lib'
import type { Dtype, SimdLevel } from '../lib/native'
import type { ReplayOp } from '../lib/replay/script'
import {
  type Block,
  type HuggingFaceConfig,
  ReferenceModel,
  type RopeScaling,
  type Worker,
} from './reference'

// The inner loops' own: a global is slow to reach from inside a test.
const { cos, imul, log, sqrt } = Math
const finite = Number.isFinite
const turn = 2 * Math.PI

// ---- random numbers -------------------------------------------------------------------------------

/** mulberry32: a test prints its seed and can be run again with it. */
export class Random {
  private state: number

  constructor(readonly seed: number) {
    this.state = seed >>> 0
  }

  /** In [0, 1). */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0
    let t = this.state
    t = imul(t ^ (t >>> 15), t | 1)
    t ^= t + imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  /** An integer in [low, high]. */
  int(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1))
  }

  chance(probability: number): boolean {
    return this.next() < probability
  }

  normal(): number {
    return sqrt(-2 * log(1 - this.next())) * cos(turn * this.next())
  }

  normals(length: number, deviation = 1): Float64Array {
    return Float64Array.from({ length }, () => deviation * this.normal())
  }

  /** Rounded to float32, so that both sides of a comparison start from the same numbers. */
  floats(length: number, deviation = 1): Float32Array {
    return Float32Array.from({ length }, () => deviation * this.normal())
  }

  pick<T>(items: readonly T[]): T {
    return items[this.int(0, items.length - 1)]!
  }

  shuffle<T>(items: readonly T[]): T[] {
    const out = [...items]
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.int(0, i)
      ;[out[i], out[j]] = [out[j]!, out[i]!]
    }
    return out
  }

  tokens(length: number, vocabSize: number): number[] {
    return Array.from({ length }, () => this.int(0, vocabSize - 1))
  }
}

// ---- files ----------------------------------------------------------------------------------------

let temporary: string | undefined

/** A new folder that is gone after the test file. */
export function temporaryFolder(): string {
  temporary ??= mkdtempSync(join(tmpdir(), 'hogwild-test-'))
  return mkdtempSync(join(temporary, 'model-'))
}

afterAll(() => {
  if (temporary) rmSync(temporary, { recursive: true, force: true })
})

export interface Tensor {
  shape: readonly number[]
  data: Float64Array
}

const dtypeNames = { f32: 'F32', f16: 'F16', bf16: 'BF16' } as const

/** Raw little-endian elements, rounded to nearest even. */
export function encode(values: ArrayLike<number>, dtype: Dtype): Uint8Array {
  const floats = Float32Array.from(values)
  if (dtype === 'f32') return new Uint8Array(floats.buffer)
  const bits = new Uint32Array(floats.buffer)
  const halves =
    dtype === 'bf16'
      ? Uint16Array.from(bits, (b) => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16)
      : Uint16Array.from(floats, halfBits)
  return new Uint8Array(halves.buffer)
}

export function decode(bytes: Uint8Array, dtype: Dtype): Float64Array {
  const copy = new Uint8Array(bytes).buffer
  if (dtype === 'f32') return Float64Array.from(new Float32Array(copy))
  const halves = new Uint16Array(copy)
  if (dtype === 'f16') return Float64Array.from(halves, halfValue)
  return Float64Array.from(new Float32Array(Uint32Array.from(halves, (h) => h << 16).buffer))
}

/** Whether bf16 weights meet activations in bf16 at this level. */
export function roundsActivations(simd: SimdLevel | undefined): boolean {
  return simd === 'avx512bf16' || simd === 'amx'
}

export function rounded(values: ArrayLike<number>, dtype: Dtype): Float64Array {
  return decode(encode(values, dtype), dtype)
}

function halfBits(value: number): number {
  const sign = value < 0 ? 0x8000 : 0
  const magnitude = Math.abs(value)
  if (magnitude >= 65520) return sign | 0x7c00
  const exponent = Math.max(Math.floor(Math.log2(magnitude || 1e-30)), -14)
  // In units of the last place; a carry into the next exponent comes out right by itself.
  const units = roundToEven(magnitude / 2 ** (exponent - 10))
  return sign | (exponent === -14 ? units : ((exponent + 15) << 10) + (units - 1024))
}

function halfValue(bits: number): number {
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 31) throw new Error('the fixtures use finite numbers only')
  const magnitude =
    exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15)
  return bits & 0x8000 ? -magnitude : magnitude
}

function roundToEven(x: number): number {
  const floor = Math.floor(x)
  if (x - floor !== 0.5) return Math.round(x)
  return floor % 2 === 0 ? floor : floor + 1
}

export function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  dtype: Dtype,
): void {
  const header: Record<string, unknown> = {}
  const parts: Uint8Array[] = []
  let offset = 0
  for (const [name, { shape, data }] of tensors) {
    const bytes = encode(data, dtype)
    header[name] = {
      dtype: dtypeNames[dtype],
      shape,
      data_offsets: [offset, offset + bytes.length],
    }
    parts.push(bytes)
    offset += bytes.length
  }
  const text = JSON.stringify(header)
  const json = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  writeFileSync(path, Buffer.concat([length, json, ...parts]))
}

export function readSafetensors(path: string): Map<string, Tensor> {
  const file = readFileSync(path)
  const begin = 8 + Number(file.readBigUInt64LE())
  const header = JSON.parse(file.toString('utf8', 8, begin)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >
  const tensors = new Map<string, Tensor>()
  for (const [name, { dtype, shape, data_offsets: at }] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const known = (Object.keys(dtypeNames) as Dtype[]).find((key) => dtypeNames[key] === dtype)
    if (!known) throw new Error(`${path}: dtype ${dtype}`)
    tensors.set(name, { shape, data: decode(file.subarray(begin + at[0], begin + at[1]), known) })
  }
  return tensors
}

// ---- tiny models ----------------------------------------------------------------------------------

export interface TinyModelOptions {
  family?: 'llama' | 'qwen2' | 'qwen3'
  seed?: number
  dtype?: Dtype
  layers?: number
  hiddenSize?: number
  intermediateSize?: number
  queryHeads?: number
  kvHeads?: number
  headDim?: number
  vocabSize?: number
  ropeTheta?: number
  ropeScaling?: RopeScaling
  maxPositions?: number
  /** transformers 5's form of config.json. */
  ropeParameters?: boolean
  tied?: boolean
  shards?: number
}

/**
 * A random model as a Hugging Face folder. Its logits have a standard deviation near 4 and its
 * attention is peaked, so that a wrong position or mask shows.
 */
export function writeModel({
  family = 'llama',
  seed = 1,
  dtype = 'f32',
  layers = 2,
  hiddenSize = 24,
  intermediateSize = 40,
  queryHeads = 4,
  kvHeads = 2,
  headDim = 8,
  vocabSize = 53,
  ropeTheta = 10000,
  ropeScaling,
  maxPositions = 4096,
  ropeParameters = false,
  tied = family !== 'llama',
  shards = 1,
}: TinyModelOptions = {}): string {
  const random = new Random(seed)
  const tensors = new Map<string, Tensor>()
  const matrix = (name: string, rows: number, cols: number, gain = 1): void => {
    const data = random.normals(rows * cols, gain / Math.sqrt(cols))
    tensors.set(`${name}.weight`, { shape: [rows, cols], data })
  }
  const vector = (name: string, size: number, mean: number, deviation: number): void => {
    const data = random.normals(size, deviation).map((x) => mean + x)
    tensors.set(name, { shape: [size], data })
  }
  const queryGain = family === 'qwen3' ? 1 : 1.5

  matrix('model.embed_tokens', vocabSize, hiddenSize, 4)
  for (let layer = 0; layer < layers; layer++) {
    const name = `model.layers.${layer}`
    vector(`${name}.input_layernorm.weight`, hiddenSize, 1, 0.2)
    vector(`${name}.post_attention_layernorm.weight`, hiddenSize, 1, 0.2)
    for (const [part, heads, gain] of [
      ['q_proj', queryHeads, queryGain],
      ['k_proj', kvHeads, queryGain],
      ['v_proj', kvHeads, 1],
    ] as const) {
      matrix(`${name}.self_attn.${part}`, heads * headDim, hiddenSize, gain)
      if (family === 'qwen2') vector(`${name}.self_attn.${part}.bias`, heads * headDim, 0, 0.5)
    }
    if (family === 'qwen3') {
      vector(`${name}.self_attn.q_norm.weight`, headDim, 1.5, 0.3)
      vector(`${name}.self_attn.k_norm.weight`, headDim, 1.5, 0.3)
    }
    matrix(`${name}.self_attn.o_proj`, hiddenSize, queryHeads * headDim)
    matrix(`${name}.mlp.gate_proj`, intermediateSize, hiddenSize)
    matrix(`${name}.mlp.up_proj`, intermediateSize, hiddenSize)
    matrix(`${name}.mlp.down_proj`, hiddenSize, intermediateSize)
  }
  vector('model.norm.weight', hiddenSize, 1, 0.2)
  if (!tied) matrix('lm_head', vocabSize, hiddenSize, 4)

  const rope = ropeParameters
    ? { rope_parameters: { rope_theta: ropeTheta, rope_type: 'default', ...ropeScaling } }
    : { rope_theta: ropeTheta, rope_scaling: ropeScaling ?? null }
  const architecture = { llama: 'Llama', qwen2: 'Qwen2', qwen3: 'Qwen3' }[family]
  const config = {
    architectures: [`${architecture}ForCausalLM`],
    model_type: family,
    vocab_size: vocabSize,
    hidden_size: hiddenSize,
    intermediate_size: intermediateSize,
    num_hidden_layers: layers,
    num_attention_heads: queryHeads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    hidden_act: 'silu',
    max_position_embeddings: maxPositions,
    rms_norm_eps: 1e-5,
    ...rope,
    tie_word_embeddings: tied,
    torch_dtype: { f32: 'float32', f16: 'float16', bf16: 'bfloat16' }[dtype],
  }
  return writeModelFolder(config, tensors, dtype, shards)
}

export function writeModelFolder(
  config: Record<string, unknown>,
  tensors: ReadonlyMap<string, Tensor>,
  dtype: Dtype,
  shards = 1,
): string {
  const folder = temporaryFolder()
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config))
  if (shards === 1) {
    writeSafetensors(join(folder, 'model.safetensors'), tensors, dtype)
    return folder
  }
  const weightMap: Record<string, string> = {}
  const names = [...tensors.keys()]
  for (let shard = 0; shard < shards; shard++) {
    const number = (n: number): string => String(n).padStart(5, '0')
    const file = `model-${number(shard + 1)}-of-${number(shards)}.safetensors`
    const own = names.filter((_, i) => i % shards === shard)
    for (const name of own) weightMap[name] = file
    writeSafetensors(join(folder, file), new Map(own.map((n) => [n, tensors.get(n)!])), dtype)
  }
  writeFileSync(
    join(folder, 'model.safetensors.index.json'),
    JSON.stringify({ metadata: {}, weight_map: weightMap }),
  )
  return folder
}

/**
 * The float64 model with the weights as they are stored, or as `change` makes them. `context`: tokens of the
 * longest view.
 */
export function loadReference(
  folder: string,
  change: (name: string, values: Float64Array) => Float64Array = (_, values) => values,
  context = 1,
): ReferenceModel {
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as HuggingFaceConfig
  let files = ['model.safetensors']
  try {
    const index = readFileSync(join(folder, 'model.safetensors.index.json'), 'utf8')
    files = [...new Set(Object.values<string>(JSON.parse(index).weight_map))]
  } catch {
    // One file: there is no index.
  }
  const weights = new Map<string, Float64Array>()
  for (const file of files) {
    for (const [name, { data }] of readSafetensors(join(folder, file))) {
      weights.set(name, change(name, data))
    }
  }
  return new ReferenceModel(config, weights, context)
}

// ---- the oracle -----------------------------------------------------------------------------------

export const oracleModels = ['llama', 'llama_yarn', 'qwen2', 'qwen3'] as const
export const oracleFolder = (model: string): string => join(__dirname, 'oracle', 'models', model)

export interface Scenario {
  ops: ReplayOp[]
  /** By number of the op: [workers] of [V]. */
  exact: Map<string, Float64Array[]>
}

export function readScenario(model: string, name: string): Scenario {
  const path = join(__dirname, 'oracle', 'goldens', model, name)
  const { ops } = JSON.parse(readFileSync(`${path}.json`, 'utf8')) as { ops: ReplayOp[] }
  const exact = new Map<string, Float64Array[]>()
  for (const [tensor, { shape, data }] of readSafetensors(`${path}.safetensors`)) {
    if (tensor.startsWith('exact.')) exact.set(tensor.slice(6), rowsOf(data, shape[1]!))
  }
  return { ops, exact }
}

/** An ordinary single sequence: 40 tokens, 24 more chosen greedily, logits after each but the last. */
export function readPlain(model: string): {
  tokens: number[]
  greedy: number[]
  exact: Float64Array[]
} {
  const path = join(__dirname, 'oracle', 'goldens', model, 'plain')
  const { tokens, greedy } = JSON.parse(readFileSync(`${path}.json`, 'utf8'))
  const { shape, data } = readSafetensors(`${path}.safetensors`).get('exact')!
  return { tokens, greedy, exact: rowsOf(data, shape[1]!) }
}

export function rowsOf(data: Float64Array, width: number): Float64Array[] {
  return Array.from({ length: data.length / width }, (_, row) =>
    data.subarray(row * width, (row + 1) * width),
  )
}

/**
 * Runs a script on the float64 reference, where blocks are lists of tokens: number of each prefill and step (`007`) ->
 * logits of each worker's last token.
 */
export function replayOnReference(
  model: ReferenceModel,
  ops: readonly ReplayOp[],
): Map<string, Float64Array[]> {
  const blocks = new Map<string, Block>()
  const workers = new Map<string, Omit<Worker, 'tokens'>>()
  const block = (name: string): Block => blocks.get(name)!
  const logits = new Map<string, Float64Array[]>()
  const step = (op: number, parts: Worker[]): void => {
    const last = model.step(parts).map((rows) => rows.at(-1)!)
    logits.set(String(op).padStart(3, '0'), last)
  }
  for (const [index, op] of ops.entries()) {
    if (op.op === 'block') blocks.set(op.name, [])
    else if (op.op === 'fork') blocks.set(op.name, [...block(op.block)])
    else if (op.op === 'clear') block(op.block).length = 0
    else if (op.op === 'truncate') block(op.block).length = op.length
    else if (op.op === 'forget') block(op.block).splice(op.begin, op.end - op.begin)
    else if (op.op === 'insert') block(op.target).splice(op.at, 0, ...block(op.source))
    else if (op.op === 'append_from') {
      block(op.target).push(...block(op.source))
      if (op.clear_source) block(op.source).length = 0
    } else if (op.op === 'worker') {
      const view = op.view.map((entry) =>
        typeof entry === 'string' ? block(entry) : { ...entry, block: block(entry.block) },
      )
      workers.set(op.name, {
        view,
        ...(op.write_to !== undefined && { target: block(op.write_to) }),
      })
    } else if (op.op === 'prefill') {
      step(index, [{ view: [block(op.block)], tokens: op.tokens }])
    } else if (op.op === 'step') {
      step(
        index,
        op.workers.map((name, i) => ({ ...workers.get(name)!, tokens: op.inputs[i]! })),
      )
    }
  }
  return logits
}

// ---- the package and the reference side by side -----------------------------------------------------

/** A block of the package's cache and what it must hold. */
export interface Twin {
  block: hogwild.Block
  expected: Block
}

/** A twin in a view. */
export type TwinEntry = Omit<hogwild.ViewEntry, 'block'> & { twin: Twin }

export interface TwinWorker {
  view: readonly (Twin | TwinEntry)[]
  /** Default: the last of the view. */
  writeTo?: Twin
  tokens: readonly number[]
}

const entryOf = (entry: Twin | TwinEntry): TwinEntry => ('twin' in entry ? entry : { twin: entry })

export const twin = (cache: hogwild.Cache): Twin => ({ block: cache.createBlock(), expected: [] })

export const viewOfTwins = ({ view, writeTo }: Omit<TwinWorker, 'tokens'>): hogwild.View => ({
  blocks: view.map((entry) => {
    const { twin, ...fields } = entryOf(entry)
    return Object.keys(fields).length === 0 ? twin.block : { block: twin.block, ...fields }
  }),
  ...(writeTo && { writeTo: writeTo.block }),
})

/** One step on both sides; returns all logits, [worker][token] of [V], of each. */
export async function stepTwins(
  model: hogwild.Model,
  reference: ReferenceModel,
  workers: readonly TwinWorker[],
): Promise<{ actual: Float64Array[][]; expected: Float64Array[][] }> {
  const outputs = await model.step(
    workers.map((worker) => ({
      view: viewOfTwins(worker),
      tokens: worker.tokens,
      logits: 'all' as const,
      sampler: null,
    })),
  )
  const expected = reference.step(
    workers.map(({ view, writeTo, tokens }) => ({
      view: view.map((each) => {
        const { twin, ...fields } = entryOf(each)
        return { block: twin.expected, ...fields }
      }),
      ...(writeTo && { target: writeTo.expected }),
      tokens,
    })),
  )
  const actual = outputs.map(({ logits }) =>
    rowsOf(Float64Array.from(logits!), reference.vocabSize),
  )
  return { actual, expected }
}

/** The same, compared: fails with `what` unless every logit is within `tolerance`. Returns the largest error. */
export async function expectTwinStep(
  model: hogwild.Model,
  reference: ReferenceModel,
  workers: readonly TwinWorker[],
  tolerance: number,
  what: string,
): Promise<number> {
  const { actual, expected } = await stepTwins(model, reference, workers)
  let worst = 0
  expected.forEach((rows, worker) => {
    if (actual[worker]!.length !== rows.length)
      throw new Error(`${what}: ${rows.length} rows wanted`)
    rows.forEach((row, i) => {
      const place = `${what}, worker ${worker}, token ${i} of ${rows.length}`
      worst = Math.max(worst, expectClose(actual[worker]![i]!, row, tolerance, place).max)
    })
  })
  return worst
}

// ---- comparisons ----------------------------------------------------------------------------------

export interface Difference {
  /** Largest absolute difference; NaN where one side is not finite and the other not equal to it. */
  max: number
  /** Squared error over squared norm of what was expected. */
  nmse: number
}

export function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): Difference {
  if (actual.length !== expected.length) return { max: Number.NaN, nmse: Number.NaN }
  let max = 0
  let error = 0
  let norm = 0
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i]!
    const b = expected[i]!
    if (finite(b)) norm += b * b
    if (a === b) continue
    const gap = a > b ? a - b : b - a
    if (gap > max) max = gap
    error += gap * gap
  }
  // A comparison with NaN is false, a sum with it is NaN.
  if (Number.isNaN(error)) max = Number.NaN
  return { max, nmse: error === 0 ? 0 : error / norm }
}

/** Fails with `what` (which names the seed) unless the largest difference is within `tolerance`. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
  what: string,
): Difference {
  const found = difference(actual, expected)
  if (!(found.max <= tolerance)) {
    const sizes = `${actual.length} values, ${expected.length} expected`
    throw new Error(
      `${what}: max error ${found.max} (allowed ${tolerance}), nmse ${found.nmse}; ${sizes}`,
    )
  }
  return found
}

/** Fails unless both hold the same bits. */
export function expectSameBits(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  what: string,
): void {
  const [a, b] = [actual, expected].map((x) => new Uint32Array(Float32Array.from(x).buffer))
  const at = a!.findIndex((bits, i) => bits !== b![i])
  if (at >= 0 || a!.length !== b!.length) {
    throw new Error(
      `${what}: element ${at} is ${actual[at]}, not ${expected[at]} (${a!.length} and ${b!.length} elements)`,
    )
  }
}

/** The `code` of what `call` throws or rejects with; a native error is no `instanceof` ours in jest. */
export async function codeOf(call: () => unknown): Promise<string> {
  try {
    await call()
  } catch (error) {
    return (error as { code?: string }).code ?? `no code: ${error}`
  }
  return 'nothing was thrown'
}
