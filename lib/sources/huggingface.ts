// A Hugging Face folder as a model: its configuration, and its tensors by the names that
// native/model/transformer.cc asks for, with the expected shapes; fused matrices are cut into slices of rows.

import { HogwildError } from '../errors'
import type { ModelConfig } from '../families'
import { type Format, storedBytes } from '../formats'
import type { NativeTensor } from '../native'
import { describe } from '../validate'
import type { Warnings } from '../warnings'
import { type ConfigOptions, readConfig } from './huggingface-config'
import { readTensors, type TensorEntry } from './safetensors'

const STORED_FORMATS: Record<string, Format> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }

/**
 * Tensors that play no part: rotary buffers, which follow from config.json, and constants of masks, as older
 * versions of transformers wrote them.
 */
const HARMLESS_TENSOR =
  /^model\.(layers\.\d+\.self_attn\.)?(rotary_emb\.((original_)?inv_freq|cos_cached|sin_cached)|masked_bias)$/

/** How many unknown tensors a message names. */
const MAX_NAMED = 10

export interface FolderModel {
  config: ModelConfig
  tensors: NativeTensor[]
}

/** Reads config.json and the headers of the safetensors of a folder. Throws as `parseConfig` and `modelTensors`. */
export async function readFolder(
  folder: string,
  options: ConfigOptions & { signal?: AbortSignal | undefined; warnings?: Warnings } = {},
): Promise<FolderModel> {
  const config = await readConfig(folder, options)
  const { signal } = options
  return { config, tensors: modelTensors(config, await readTensors(folder, { signal })) }
}

/** One tensor of the files: the name there, its shape, and the roles it fills, top to bottom. */
interface Wanted {
  file: string
  cols: number
  roles: readonly { name: string; rows: number }[]
  vector?: boolean
}

/**
 * Every tensor that a model of this configuration computes with. Vectors have rows = 1. Each tensor of the files
 * is one of them or known to play no part.
 *
 * Throws HOGWILD_INVALID_MODEL for a tensor that is missing, has another shape, is neither F32, F16 nor BF16,
 * or has no place in the model.
 */
export function modelTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
): NativeTensor[] {
  const used = new Set<string>()
  const found: NativeTensor[] = []
  // One by one: the configuration may promise more layers than memory can list.
  for (const wanted of wantedTensors(config, tensors)) {
    found.push(...locate(wanted, tensors))
    used.add(wanted.file)
  }
  refuseUnknown(config, used, tensors)
  return found
}

function* wantedTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
): Generator<Wanted> {
  const { vocabSize, hiddenSize } = config
  yield matrix('model.embed_tokens', 'embed', vocabSize, hiddenSize)
  for (let i = 0; i < config.layers; i++) yield* layerTensors(config, i)
  yield vector('model.norm.weight', 'norm', hiddenSize)
  // A stored output matrix counts, even where the configuration calls it tied: it may be another one.
  if (!config.tiedEmbeddings || tensors.has('lm_head.weight')) {
    yield matrix('lm_head', 'lm_head', vocabSize, hiddenSize)
  }
}

function matrix(file: string, name: string, rows: number, cols: number): Wanted {
  return { file: `${file}.weight`, cols, roles: [{ name, rows }] }
}

function vector(file: string, name: string, cols: number): Wanted {
  return { file, cols, roles: [{ name, rows: 1 }], vector: true }
}

function layerTensors(config: ModelConfig, layer: number): Wanted[] {
  const { hiddenSize, intermediateSize, headDim, biases } = config
  const q = config.queryHeads * headDim
  const kv = config.kvHeads * headDim
  const from = `model.layers.${layer}`
  const to = `layers.${layer}`
  const linear = (file: string, name: string, rows: number, cols: number, bias: boolean) => [
    matrix(`${from}.${file}_proj`, `${to}.${name}_proj`, rows, cols),
    ...(bias ? [vector(`${from}.${file}_proj.bias`, `${to}.${name}_bias`, rows)] : []),
  ]
  const fused = (file: string, roles: [name: string, rows: number][]): Wanted => ({
    file: `${from}.${file}_proj.weight`,
    cols: hiddenSize,
    roles: roles.map(([name, rows]) => ({ name: `${to}.${name}_proj`, rows })),
  })
  const norm = (file: string, name: string, size: number) =>
    vector(`${from}.${file}.weight`, `${to}.${name}_norm`, size)

  const wanted = [
    norm('input_layernorm', 'input', hiddenSize),
    norm('post_attention_layernorm', 'post_attention', hiddenSize),
    ...linear('self_attn.o', 'o', hiddenSize, q, biases.o),
    ...linear('mlp.down', 'down', hiddenSize, intermediateSize, biases.mlp),
  ]
  if (config.fusedProjections) {
    wanted.push(
      fused('self_attn.qkv', [
        ['q', q],
        ['k', kv],
        ['v', kv],
      ]),
      fused('mlp.gate_up', [
        ['gate', intermediateSize],
        ['up', intermediateSize],
      ]),
    )
  } else {
    wanted.push(
      ...linear('self_attn.q', 'q', q, hiddenSize, biases.qkv),
      ...linear('self_attn.k', 'k', kv, hiddenSize, biases.qkv),
      ...linear('self_attn.v', 'v', kv, hiddenSize, biases.qkv),
      ...linear('mlp.gate', 'gate', intermediateSize, hiddenSize, biases.mlp),
      ...linear('mlp.up', 'up', intermediateSize, hiddenSize, biases.mlp),
    )
  }
  if (config.qkNorm) {
    wanted.push(norm('self_attn.q_norm', 'q', headDim), norm('self_attn.k_norm', 'k', headDim))
  }
  return wanted
}

function locate(wanted: Wanted, tensors: ReadonlyMap<string, TensorEntry>): NativeTensor[] {
  const { file, cols, roles } = wanted
  const entry = tensors.get(file)
  if (entry === undefined)
    throw new HogwildError(`tensor "${file}" is missing`, 'HOGWILD_INVALID_MODEL')
  const { path, offset, dtype: stored, shape } = entry
  const format = Object.hasOwn(STORED_FORMATS, stored) ? STORED_FORMATS[stored] : undefined
  if (format === undefined) {
    const supported = Object.keys(STORED_FORMATS).join(', ')
    throw new HogwildError(
      `${path}: tensor "${file}" is ${describe(stored)}; supported: ${supported}`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  const rows = roles.reduce((sum, role) => sum + role.rows, 0)
  const expected = wanted.vector ? [cols] : [rows, cols]
  if (shape.length !== expected.length || shape.some((size, i) => size !== expected[i])) {
    throw new HogwildError(
      `${path}: tensor "${file}" is [${shape}], and [${expected}] by config.json`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  let row = 0
  return roles.map((role) => {
    const start = offset + storedBytes(format, row, cols)
    row += role.rows
    return { name: role.name, path, offset: start, format, rows: role.rows, cols }
  })
}

function refuseUnknown(
  config: ModelConfig,
  used: ReadonlySet<string>,
  tensors: ReadonlyMap<string, TensorEntry>,
): void {
  const unknown = [...tensors.values()].filter(
    ({ name }) => !used.has(name) && !HARMLESS_TENSOR.test(name),
  )
  const [first] = unknown
  if (first === undefined) return
  const named = unknown.slice(0, MAX_NAMED).map(({ name }) => describe(name))
  const more = unknown.length > named.length ? ` and ${unknown.length - named.length} more` : ''
  const have = unknown.length > 1 ? 'have' : 'has'
  throw new HogwildError(
    `${first.path}: ${named.join(', ')}${more} ${have} no place in a ${config.architecture} as config.json describes it, and may change what the model computes`,
    'HOGWILD_INVALID_MODEL',
  )
}
