// From the tensors of a Hugging Face folder to those that native/model/transformer.cc asks for: the
// names, the expected shapes, and fused matrices cut into slices of rows.

import type { ModelConfig } from './config'
import { HogwildError } from './errors'
import type { Dtype, NativeTensor } from './native'
import type { TensorEntry } from './sources/safetensors'

const DTYPES: Record<string, Dtype> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }
const DTYPE_BYTES: Record<Dtype, number> = { f32: 4, f16: 2, bf16: 2 }

/** One tensor of the files: the name there, its shape, and the roles it fills, top to bottom. */
interface Wanted {
  file: string
  cols: number
  roles: readonly { name: string; rows: number }[]
  vector?: boolean
}

/**
 * Every tensor that a model of this configuration computes with. Vectors have rows = 1. Tensors that
 * play no part (rotary buffers, an output matrix that is tied) are left out.
 *
 * Throws HOGWILD_INVALID_MODEL for a tensor that is missing, has another shape, or contradicts the
 * configuration, or is neither F32, F16 nor BF16.
 */
export function modelTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
): NativeTensor[] {
  const wanted = wantedTensors(config)
  refuseContradictions(config, wanted, tensors)
  return wanted.flatMap((tensor) => locate(tensor, tensors))
}

function wantedTensors(config: ModelConfig): Wanted[] {
  const { vocabSize, hiddenSize, intermediateSize, headDim, biases } = config
  const q = config.queryHeads * headDim
  const kv = config.kvHeads * headDim
  const matrix = (file: string, name: string, rows: number, cols: number): Wanted => ({
    file: `${file}.weight`,
    cols,
    roles: [{ name, rows }],
  })
  const vector = (file: string, name: string, cols: number): Wanted => ({
    file,
    cols,
    roles: [{ name, rows: 1 }],
    vector: true,
  })

  const wanted = [matrix('model.embed_tokens', 'embed', vocabSize, hiddenSize)]
  for (let i = 0; i < config.layers; i++) {
    const from = `model.layers.${i}`
    const to = `layers.${i}`
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

    wanted.push(
      norm('input_layernorm', 'input', hiddenSize),
      norm('post_attention_layernorm', 'post_attention', hiddenSize),
      ...linear('self_attn.o', 'o', hiddenSize, q, biases.o),
      ...linear('mlp.down', 'down', hiddenSize, intermediateSize, biases.mlp),
    )
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
  }
  wanted.push(vector('model.norm.weight', 'norm', hiddenSize))
  if (!config.tiedEmbeddings) wanted.push(matrix('lm_head', 'lm_head', vocabSize, hiddenSize))
  return wanted
}

function locate(wanted: Wanted, tensors: ReadonlyMap<string, TensorEntry>): NativeTensor[] {
  const { file, cols, roles } = wanted
  const entry = tensors.get(file)
  if (entry === undefined)
    throw new HogwildError(`tensor "${file}" is missing`, 'HOGWILD_INVALID_MODEL')
  const { path, offset, dtype: stored, shape } = entry
  const dtype = Object.hasOwn(DTYPES, stored) ? DTYPES[stored] : undefined
  if (dtype === undefined) {
    const supported = Object.keys(DTYPES).join(', ')
    throw new HogwildError(
      `${path}: tensor "${file}" is ${stored}; supported: ${supported}`,
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
    const start = offset + row * cols * DTYPE_BYTES[dtype]
    row += role.rows
    return { name: role.name, path, offset: start, dtype, rows: role.rows, cols }
  })
}

// A bias or a norm that lies in the files but not in the configuration would change what is computed.
function refuseContradictions(
  config: ModelConfig,
  wanted: readonly Wanted[],
  tensors: ReadonlyMap<string, TensorEntry>,
): void {
  const known = new Set(wanted.map(({ file }) => file))
  for (const [name, { path }] of tensors) {
    const part =
      /^model\.layers\.(\d+)\.(self_attn|mlp)\.\w+(_proj\.bias|_norm\.(weight|bias))$/.exec(name)
    if (part !== null && Number(part[1]) < config.layers && !known.has(name)) {
      throw new HogwildError(
        `${path}: tensor "${name}" has no place in a ${config.architecture} as config.json describes it`,
        'HOGWILD_INVALID_MODEL',
      )
    }
  }
}
