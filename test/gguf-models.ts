// Models of Hugging Face folders as GGUF files, in the order and with the names of llama.cpp's converter. Written apart from
// lib/sources/gguf-families.ts, which reads such files.

import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { readTensors } from '../lib/sources/safetensors'
import type { TensorEntry } from '../lib/sources/tensors'
import {
  bool,
  float32,
  type GgufOptions,
  type GgufWriterTensor,
  type Metadata,
  string,
  uint32,
  type Value,
  writeGgufFile,
} from './gguf-writer'

type Json = Record<string, unknown>

export interface GgufModelOptions extends GgufOptions {
  /** Of matrices: 'stored' as they are in the folder, or converted without loss; default 'stored'. Vectors are F32. */
  type?: 'stored' | 'F32'
  /** Further metadata; in place of what has the same key. */
  metadata?: Metadata
  /** Changes the tensors, e.g. leaves some out. */
  tensors?(tensors: GgufWriterTensor[]): GgufWriterTensor[]
}

/** ggml's numbers. */
const TYPES: Record<string, number> = { F32: 0, F16: 1, BF16: 30 }

interface Converter {
  /** `general.architecture` */
  name: string
  /** Rows of q and k of a head are put in the order of RoPE pairs that are neighbours. */
  permutes?: boolean
  /** `partial_rotary_factor` counts. */
  partial?: boolean
  /** 1 is added to norms. */
  addsOne?: boolean
  /** Names of a layer's tensors that differ from LAYER. */
  layer?: Record<string, string>
  values?(config: Json): Record<string, Value>
}

const MODEL: Record<string, string> = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  lm_head: 'output',
}

const LAYER: Record<string, string> = {
  input_layernorm: 'attn_norm',
  post_attention_layernorm: 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'self_attn.qkv_proj': 'attn_qkv',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.gate_up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}

/** Four norms in a layer: before and behind attention and MLP. */
const FOUR_NORMS = {
  post_attention_layernorm: 'post_attention_norm',
  pre_feedforward_layernorm: 'ffn_norm',
  post_feedforward_layernorm: 'post_ffw_norm',
}

/** Numbers of config.json as float32, those that are there. */
const numbers = (config: Json, keys: Record<string, string>): Record<string, Value> =>
  Object.fromEntries(
    Object.entries(keys)
      .filter(([, field]) => typeof config[field] === 'number')
      .map(([key, field]) => [key, float32(config[field] as number)]),
  )

const windowOf = (config: Json): Record<string, Value> =>
  typeof config.sliding_window === 'number'
    ? { 'attention.sliding_window': uint32(config.sliding_window) }
    : {}

function localTheta(config: Json): number {
  const { sliding_attention: sliding } = (config.rope_parameters ?? {}) as Record<string, Json>
  return (sliding?.rope_theta ?? config.rope_local_base_freq ?? 10000) as number
}

const CONVERTERS: Record<string, Converter> = {
  llama: { name: 'llama', permutes: true },
  // The converter leaves its window out; files that have it are of others.
  mistral: { name: 'llama', permutes: true, values: windowOf },
  qwen2: { name: 'qwen2' },
  qwen3: { name: 'qwen3' },
  gemma: { name: 'gemma', addsOne: true },
  gemma2: {
    name: 'gemma2',
    addsOne: true,
    layer: FOUR_NORMS,
    values: (config) => ({
      ...windowOf(config),
      ...numbers(config, {
        attn_logit_softcapping: 'attn_logit_softcapping',
        final_logit_softcapping: 'final_logit_softcapping',
      }),
    }),
  },
  gemma3_text: {
    name: 'gemma3',
    addsOne: true,
    layer: FOUR_NORMS,
    values: (config) => ({
      ...windowOf(config),
      ...numbers(config, { final_logit_softcapping: 'final_logit_softcapping' }),
      ...(typeof config.sliding_window_pattern === 'number' && {
        'attention.sliding_window_pattern': uint32(config.sliding_window_pattern),
      }),
      'rope.freq_base_swa': float32(localTheta(config)),
    }),
  },
  // The converter writes 0 for no window.
  phi3: {
    name: 'phi3',
    partial: true,
    values: (config) => ({ 'attention.sliding_window': uint32(0), ...windowOf(config) }),
  },
  olmo2: { name: 'olmo2', layer: { ...FOUR_NORMS } },
  granite: {
    name: 'granite',
    permutes: true,
    values: (config) =>
      numbers(config, {
        'attention.scale': 'attention_multiplier',
        embedding_scale: 'embedding_multiplier',
        residual_scale: 'residual_multiplier',
        logit_scale: 'logits_scaling',
      }),
  },
  glm: { name: 'chatglm', partial: true },
  glm4: {
    name: 'glm4',
    partial: true,
    layer: { post_self_attn_layernorm: 'post_attention_norm', post_mlp_layernorm: 'post_ffw_norm' },
  },
  smollm3: { name: 'smollm3', permutes: true },
  mixtral: {
    name: 'llama',
    permutes: true,
    layer: { 'block_sparse_moe.gate': 'ffn_gate_inp' },
    values: (config) => ({ ...windowOf(config), ...expertsOf(config) }),
  },
  qwen3_moe: {
    name: 'qwen3moe',
    layer: { 'mlp.gate': 'ffn_gate_inp' },
    values: (config) => ({
      ...expertsOf(config, 'moe_intermediate_size'),
      expert_weights_norm: bool(config.norm_topk_prob as boolean),
    }),
  },
  gpt_oss: {
    name: 'gpt-oss',
    layer: {
      'mlp.router': 'ffn_gate_inp',
      post_attention_layernorm: 'post_attention_norm',
      'self_attn.sinks': 'attn_sinks',
    },
    values: (config) => ({
      ...windowOf(config),
      ...expertsOf(config, 'intermediate_size'),
    }),
  },
}

function expertsOf(config: Json, size?: string): Record<string, Value> {
  return {
    expert_count: uint32((config.num_local_experts ?? config.num_experts) as number),
    expert_used_count: uint32(config.num_experts_per_tok as number),
    ...(size !== undefined && { expert_feed_forward_length: uint32(config[size] as number) }),
  }
}

/** The families that can be written, as `model_type` names them. */
export const CONVERTED_FAMILIES = Object.keys(CONVERTERS)

/** Writes `folder` to the file `path`. */
export async function writeGgufModel(
  folder: string,
  path: string,
  options: GgufModelOptions = {},
): Promise<void> {
  const config: Json = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))
  const converter = CONVERTERS[config.model_type as string]
  if (converter === undefined) throw new Error(`${folder}: no converter for ${config.model_type}`)
  const entries = [...(await readTensors(folder)).values()]
  const tensors = entries
    .filter(({ name }) => !/rotary_emb|masked_bias/.test(name))
    .flatMap((entry) => toTensors(entry, converter, headDimOf(config), options.type ?? 'stored'))
  const all = [...stacked(tensors), ...ropeTensors(config)]
  const metadata = new Map([...metadataOf(config, converter), ...(options.metadata ?? [])])
  await writeGgufFile(path, [...metadata], options.tensors?.(all) ?? all, options)
}

/** Where config.json has no head_dim at all. */
const HEAD_DIMS: Record<string, number> = { gemma: 256, gemma2: 256, gemma3_text: 256, qwen3: 128 }

function headDimOf(config: Json): number {
  const implied = (config.hidden_size as number) / (config.num_attention_heads as number)
  const byDefault = 'head_dim' in config ? undefined : HEAD_DIMS[config.model_type as string]
  return (config.head_dim as number | undefined | null) ?? byDefault ?? implied
}

/** What config.json says of RoPE, in the form of transformers 4 or 5; of layers without a window. */
function ropeOf(config: Json): Json {
  const parameters = (config.rope_parameters ?? {}) as Json
  const full = (parameters.full_attention ?? parameters) as Json
  return { ...config, ...(config.rope_scaling as object), ...full }
}

/** Where config.json does not say. */
const THETAS: Record<string, number> = { gemma3_text: 1e6, mixtral: 1e6, smollm3: 2e6 }
const KV_HEADS: Record<string, number> = { gemma2: 4, gemma3_text: 4, smollm3: 4 }

function metadataOf(
  config: Json,
  { name, values, partial: isPartial }: Converter,
): [string, Value][] {
  const number = (field: string) => config[field] as number
  const headDim = headDimOf(config)
  const rope = ropeOf(config)
  const theta = (rope.rope_theta ?? THETAS[config.model_type as string] ?? 10000) as number
  const partial = (rope.partial_rotary_factor ?? (/glm/.test(name) ? 0.5 : 1)) as number
  const share = isPartial ? partial : 1
  const own: Record<string, Value> = {
    context_length: uint32(number('max_position_embeddings')),
    embedding_length: uint32(number('hidden_size')),
    block_count: uint32(number('num_hidden_layers')),
    feed_forward_length: uint32(number('intermediate_size')),
    'attention.head_count': uint32(number('num_attention_heads')),
    'attention.head_count_kv': uint32(
      number('num_key_value_heads') ??
        KV_HEADS[config.model_type as string] ??
        number('num_attention_heads'),
    ),
    'attention.key_length': uint32(headDim),
    'attention.value_length': uint32(headDim),
    'attention.layer_norm_rms_epsilon': float32(number('rms_norm_eps')),
    'rope.dimension_count': uint32(Math.trunc(headDim * share)),
    'rope.freq_base': float32(theta),
    vocab_size: uint32(number('vocab_size')),
    ...scalingOf(rope),
    ...values?.(config),
  }
  return [
    ['general.architecture', string(name)],
    ['general.type', string('model')],
    ...Object.entries(own).map(([key, value]): [string, Value] => [`${name}.${key}`, value]),
  ]
}

function scalingOf(rope: Json): Record<string, Value> {
  const type = rope.rope_type ?? rope.type ?? 'default'
  const number = (key: string, field: string): Record<string, Value> =>
    typeof rope[field] === 'number' ? { [`rope.scaling.${key}`]: float32(rope[field]) } : {}
  if (type === 'linear') {
    return { 'rope.scaling.type': string('linear'), ...number('factor', 'factor') }
  }
  if (Array.isArray(rope.short_factor)) {
    const [whole, original] = ['max_position_embeddings', 'original_max_position_embeddings'].map(
      (field) => rope[field] as number,
    ) as [number, number]
    const stretch = (rope.factor as number | undefined) ?? whole / original
    const implied = Math.sqrt(1 + Math.log(stretch) / Math.log(original))
    return {
      'rope.scaling.original_context_length': uint32(original),
      'rope.scaling.attn_factor': float32(
        (rope.attention_factor as number) ?? (stretch > 1 ? implied : 1),
      ),
    }
  }
  if (type !== 'yarn') return {}
  return {
    'rope.scaling.type': string('yarn'),
    ...number('factor', 'factor'),
    'rope.scaling.original_context_length': uint32(rope.original_max_position_embeddings as number),
    'rope.scaling.finetuned': bool(true),
    ...number('yarn_beta_fast', 'beta_fast'),
    ...number('yarn_beta_slow', 'beta_slow'),
    ...number('yarn_attn_factor', 'attention_factor'),
  }
}

/** Llama 3's scaling as factors that divide the frequencies, in f32. */
function ropeTensors(config: Json): GgufWriterTensor[] {
  const rope = ropeOf(config)
  if (Array.isArray(rope.short_factor)) {
    return (['short', 'long'] as const).map((kind) => {
      const factors = rope[`${kind}_factor`] as number[]
      return f32Tensor(`rope_factors_${kind}.weight`, [factors.length], factors)
    })
  }
  if (rope.rope_type !== 'llama3') return []
  const number = (field: string) => rope[field] as number
  const dim = headDimOf(config)
  const theta = (rope.rope_theta ?? config.rope_theta) as number
  const context = number('original_max_position_embeddings')
  const [low, high] = [number('low_freq_factor'), number('high_freq_factor')]
  const factors = Float32Array.from({ length: dim / 2 }, (_, u) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * u) / dim)
    if (wavelength < context / high) return 1
    if (wavelength > context / low) return number('factor')
    const smooth = (context / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / number('factor') + smooth)
  })
  return [f32Tensor('rope_freqs.weight', [dim / 2], factors)]
}

export function f32Tensor(
  name: string,
  shape: readonly number[],
  values: ArrayLike<number>,
): GgufWriterTensor {
  const bytes = new Uint8Array(Float32Array.from(values).buffer)
  return { name, shape, type: TYPES.F32 as number, bytes: bytes.length, read: () => bytes }
}

/** Experts as they are in gpt-oss: [E, H, 2 F] and [E, F, H], gate and up by turns, biases [E, 2 F] and [E, H]. */
function gptOssExperts(entry: TensorEntry): GgufWriterTensor[] | undefined {
  const [, layer, part, bias] =
    /layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?$/.exec(entry.name) ?? []
  if (part === undefined) return undefined
  if (entry.dtype !== 'F32') throw new Error(`${entry.name}: ${entry.dtype}`)
  const [experts, ...rest] = entry.shape as [number, number, number?]
  const [inner, outer] = rest.length === 1 ? [1, rest[0]] : (rest as [number, number])
  const turns = part === 'down' ? ['down'] : ['gate', 'up']
  return turns.map((kind, turn) => {
    const rows = outer / turns.length
    const count = experts * rows * inner
    return {
      name: `blk.${layer}.ffn_${kind}_exps.${bias === undefined ? 'weight' : 'bias'}`,
      shape: bias === undefined ? [experts, rows, inner] : [experts, rows],
      type: TYPES.F32 as number,
      bytes: 4 * count,
      async read() {
        const data = await readData(entry, 4 * experts * inner * outer)
        const found = Buffer.alloc(4 * count)
        for (let i = 0; i < count; i++) {
          const [e, row, col] = [
            Math.floor(i / (rows * inner)),
            Math.floor(i / inner) % rows,
            i % inner,
          ]
          const from = (e * inner + col) * outer + row * turns.length + turn
          found.writeFloatLE(data.readFloatLE(4 * from), 4 * i)
        }
        return found
      },
    }
  })
}

/** Tensors `blk.N.ffn_KIND_exps.weight`, one for each expert behind a colon, as one [E, n, k]. */
function stacked(tensors: readonly GgufWriterTensor[]): GgufWriterTensor[] {
  const groups = new Map<string, Map<number, GgufWriterTensor>>()
  for (const tensor of tensors) {
    const [name, expert = '0'] = tensor.name.split(':') as [string, string?]
    groups.set(name, (groups.get(name) ?? new Map()).set(Number(expert), tensor))
  }
  return Array.from(groups, ([name, members]) => {
    const [first] = members.values() as Iterable<GgufWriterTensor> as unknown as [GgufWriterTensor]
    if (!first.name.includes(':')) return first
    const slices = Array.from(
      { length: members.size },
      (_, e) => members.get(e) as GgufWriterTensor,
    )
    return {
      ...first,
      name,
      shape: [slices.length, ...first.shape],
      bytes: first.bytes * slices.length,
      read: async () => Buffer.concat(await Promise.all(slices.map((slice) => slice.read()))),
    }
  })
}

const EXPERT_PARTS: Record<string, string> = {
  w1: 'gate',
  w2: 'down',
  w3: 'up',
  gate_proj: 'gate',
  up_proj: 'up',
  down_proj: 'down',
}

function toTensors(...parameters: Parameters<typeof toTensor>): GgufWriterTensor[] {
  return gptOssExperts(parameters[0]) ?? [toTensor(...parameters)]
}

function toTensor(
  entry: TensorEntry,
  { permutes = false, addsOne = false, layer: own = {} }: Converter,
  headDim: number,
  wanted: 'stored' | 'F32',
): GgufWriterTensor {
  const { shape, dtype: stored } = entry
  const [, layer, part = '', kind = 'weight'] =
    /^(?:model\.layers\.(\d+)\.)?(.+?)(?:\.(weight|bias))?$/.exec(entry.name) ?? []
  const [, expert, expertPart = ''] = /\.experts\.(\d+)\.(\w+)$/.exec(part) ?? []
  const name =
    expert !== undefined
      ? `ffn_${EXPERT_PARTS[expertPart]}_exps`
      : layer === undefined
        ? MODEL[part]
        : (own[part] ?? LAYER[part])
  const suffix = expert === undefined ? kind : `${kind}:${expert}`
  if (name === undefined) throw new Error(`${entry.name}: what is it called?`)
  const isVector = shape.length === 1
  const dtype = isVector ? 'F32' : wanted === 'F32' ? 'F32' : stored
  const elements = shape.reduce((product, size) => product * size, 1)
  return {
    name: layer === undefined ? `${name}.${kind}` : `blk.${layer}.${name}.${suffix}`,
    shape,
    type: TYPES[dtype] as number,
    bytes: elements * (dtype === 'F32' ? 4 : 2),
    async read() {
      const raw = await readData(entry, elements * (stored === 'F32' ? 4 : 2))
      const data = dtype === stored ? raw : toFloat32(raw, stored)
      if (addsOne && name.endsWith('norm')) return addOne(data)
      const rotates = permutes && (name === 'attn_q' || name === 'attn_k')
      return rotates ? interleave(data, shape[0] as number, headDim) : data
    },
  }
}

async function readData({ path, offset }: TensorEntry, bytes: number): Promise<Buffer> {
  const file = await open(path)
  try {
    return (await file.read(Buffer.alloc(bytes), 0, bytes, offset)).buffer
  } finally {
    await file.close()
  }
}

/**
 * The rows of a projection, head by head, in the order of llama.cpp's rotary embedding, whose pairs are
 * (0, 1), (2, 3), ...; in the Hugging Face format they are (0, D / 2), (1, D / 2 + 1), ...
 */
function interleave(data: Buffer, rows: number, headDim: number): Buffer {
  const bytes = data.length / rows
  const row = (index: number) => data.subarray(index * bytes, (index + 1) * bytes)
  return Buffer.concat(
    Array.from({ length: rows }, (_, index) => {
      const place = index % headDim
      return row(index - place + (place % 2) * (headDim / 2) + Math.floor(place / 2))
    }),
  )
}

function addOne(data: Buffer): Buffer {
  const sums = Buffer.alloc(data.length)
  for (let at = 0; at < data.length; at += 4) sums.writeFloatLE(data.readFloatLE(at) + 1, at)
  return sums
}

function toFloat32(data: Buffer, dtype: string): Buffer {
  const wide = Buffer.alloc(2 * data.length)
  for (let at = 0; at < data.length; at += 2) {
    // bf16 is the upper half of a float32.
    if (dtype === 'BF16') data.copy(wide, 2 * at + 2, at, at + 2)
    else wide.writeFloatLE(halfValue(data.readUInt16LE(at)), 2 * at)
  }
  return wide
}

function halfValue(bits: number): number {
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  const magnitude =
    exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15)
  return bits & 0x8000 ? -magnitude : magnitude
}
