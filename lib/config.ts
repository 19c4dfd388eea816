// Reads the config.json of a Hugging Face folder. What it says and we do not compute is refused by
// name: a model is either computed exactly or not loaded.

import { join } from 'node:path'
import { HogwildError, type HogwildErrorCode } from './errors'
import { ROPE_TYPES, type RopeConfig } from './rope'
import { eosTokenIds, readEosTokenIds } from './sources/eos'
import { readJson } from './sources/files'
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkNumber,
  checkObject,
  checkString,
  invalid,
} from './validate'

const INVALID: HogwildErrorCode = 'HOGWILD_INVALID_MODEL'

/** Names as in `architectures` of config.json. */
export type Architecture =
  | 'LlamaForCausalLM'
  | 'MistralForCausalLM'
  | 'Qwen2ForCausalLM'
  | 'Qwen3ForCausalLM'
  | 'GemmaForCausalLM'
  | 'Phi3ForCausalLM'

/** A model's config.json, checked. Sizes in elements, counts in pieces. */
export interface ModelConfig {
  architecture: Architecture
  /** V */
  vocabSize: number
  hiddenSize: number
  intermediateSize: number
  layers: number
  /** Hq, a multiple of Hkv */
  queryHeads: number
  /** Hkv */
  kvHeads: number
  /** D: a multiple of 8, at most 256 */
  headDim: number
  rmsNormEps: number
  /** Added to every norm weight: 1 for Gemma, else 0. */
  normOffset: number
  /** Multiplies embeddings: sqrt(hiddenSize) for Gemma, else 1. */
  embeddingScale: number
  activation: 'silu' | 'gelu_tanh'
  /** The output matrix is the embedding matrix. */
  tiedEmbeddings: boolean
  /** Which linear layers have a bias. */
  biases: { qkv: boolean; o: boolean; mlp: boolean }
  /** RMS norms on the heads of q and k (Qwen3). */
  qkNorm: boolean
  /** q, k, v and gate, up stored as one matrix each (Phi-3). */
  fusedProjections: boolean
  rope: RopeConfig
  /** Positions that the model was made for; hogwild does not enforce it. */
  maxPositions: number | undefined
  /** Tokens that end a text, from generation_config.json or else config.json. */
  eosTokenIds: readonly number[]
}

interface Family {
  /** `model_type` of config.json. */
  modelType: string
  /** What transformers assumes where config.json does not have the field at all. */
  defaults?: { kvHeads?: number; headDim?: number; tied?: boolean; slidingWindow?: number }
  /** Biases of q, k, v that no field speaks of. */
  qkvBias?: boolean
  /** Whether the family knows `attention_bias` and `mlp_bias`. */
  attentionBiasOption?: boolean
  mlpBiasOption?: boolean
  qkNorm?: boolean
  gemma?: boolean
  fused?: boolean
  /** Where it knows fewer RoPE types than others. */
  ropeTypes?: readonly RopeConfig['type'][]
}

const FAMILIES: Record<Architecture, Family> = {
  LlamaForCausalLM: { modelType: 'llama', attentionBiasOption: true, mlpBiasOption: true },
  MistralForCausalLM: { modelType: 'mistral', defaults: { kvHeads: 8, slidingWindow: 4096 } },
  Qwen2ForCausalLM: { modelType: 'qwen2', defaults: { kvHeads: 32 }, qkvBias: true },
  Qwen3ForCausalLM: {
    modelType: 'qwen3',
    defaults: { kvHeads: 32, headDim: 128 },
    attentionBiasOption: true,
    qkNorm: true,
  },
  GemmaForCausalLM: {
    modelType: 'gemma',
    defaults: { kvHeads: 16, headDim: 256, tied: true },
    attentionBiasOption: true,
    gemma: true,
  },
  Phi3ForCausalLM: { modelType: 'phi3', fused: true, ropeTypes: ['default'] },
}

const ACTIVATIONS: Record<string, ModelConfig['activation']> = {
  silu: 'silu',
  gelu_pytorch_tanh: 'gelu_tanh',
}

/** Fields that change what is computed, in a way that hogwild does not; present and not off: refused. */
const UNSUPPORTED_FIELDS = [
  'quantization_config',
  'num_experts',
  'num_local_experts',
  'attn_logit_softcapping',
  'final_logit_softcapping',
  'rope_interleaved',
  'rope_interleave',
  'use_bidirectional_attention',
  'attention_chunk_size',
]

function unsupported(what: string, supported: string): HogwildError {
  return new HogwildError(
    `${what} is not supported; supported: ${supported}`,
    'HOGWILD_UNSUPPORTED',
  )
}

/** Fields of one JSON object; messages name file and field. `null` counts as absent. */
class Fields {
  constructor(
    private readonly json: Record<string, unknown>,
    readonly where: string,
  ) {}

  name(field: string): string {
    return `"${field}" of ${this.where}`
  }

  get(field: string): unknown {
    return Object.hasOwn(this.json, field) ? (this.json[field] ?? undefined) : undefined
  }

  /** Says 0 or false, or nothing. */
  isOff(field: string): boolean {
    const value = this.get(field)
    return value === undefined || value === false || value === 0
  }

  /** Whether the field is written down, be it as null. */
  has(field: string): boolean {
    return Object.hasOwn(this.json, field)
  }

  count(field: string, fallback?: number): number {
    return checkInteger(this.get(field) ?? fallback, this.name(field), 1, 2 ** 31 - 1, INVALID)
  }

  optionalCount(field: string): number | undefined {
    return this.get(field) === undefined ? undefined : this.count(field)
  }

  greater(field: string, bound: number, fallback?: number): number {
    const value = this.get(field) ?? fallback
    return checkNumber(value, this.name(field), `a number > ${bound}`, (x) => x > bound, INVALID)
  }

  positive(field: string, fallback?: number): number {
    return this.greater(field, 0, fallback)
  }

  optionalPositive(field: string): number | undefined {
    return this.get(field) === undefined ? undefined : this.positive(field)
  }

  /** 0 counts as absent, as it does in transformers. */
  optionalWeight(field: string): number | undefined {
    return this.isOff(field) ? undefined : this.positive(field)
  }

  boolean(field: string, fallback: boolean): boolean {
    return checkBoolean(this.get(field) ?? fallback, this.name(field), INVALID)
  }

  string(field: string): string {
    return checkString(this.get(field), this.name(field), INVALID)
  }

  /** An object within; absent: an empty one. */
  child(field: string): Fields {
    const name = this.name(field)
    return new Fields(checkObject(this.get(field) ?? {}, name, INVALID), name)
  }

  list(field: string): unknown[] {
    return checkArray(this.get(field) ?? [], this.name(field), INVALID)
  }
}

/** Reads and checks config.json of a model folder. */
export async function readConfig(
  folder: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<ModelConfig> {
  const path = join(folder, 'config.json')
  const config = parseConfig(await readJson(path, options), path)
  return { ...config, eosTokenIds: await readEosTokenIds(folder, options) }
}

/**
 * Checks the content of a config.json, in the form of transformers 4 (`rope_theta`, `rope_scaling`)
 * or 5 (`rope_parameters`). `file` is for messages.
 *
 * Throws HOGWILD_INVALID_MODEL for missing or contradictory fields, HOGWILD_UNSUPPORTED for what
 * hogwild does not compute, naming the field and what is supported.
 */
export function parseConfig(json: unknown, file = 'config.json'): ModelConfig {
  const fields = new Fields(checkObject(json, file, INVALID), file)
  const architecture = readArchitecture(fields)
  const family = FAMILIES[architecture]
  refuseUnsupported(fields, family)

  const hiddenSize = fields.count('hidden_size')
  const queryHeads = fields.count('num_attention_heads')
  const kvHeads = fields.count(
    'num_key_value_heads',
    (fields.has('num_key_value_heads') ? undefined : family.defaults?.kvHeads) ?? queryHeads,
  )
  if (queryHeads % kvHeads !== 0) {
    throw unsupported(
      `${fields.name('num_attention_heads')} = ${queryHeads} with num_key_value_heads = ${kvHeads}`,
      'a multiple of num_key_value_heads',
    )
  }
  const headDim = fields.count('head_dim', family.defaults?.headDim ?? hiddenSize / queryHeads)
  if (headDim % 8 !== 0 || headDim > 256) {
    throw unsupported(`${fields.name('head_dim')} = ${headDim}`, 'multiples of 8 up to 256')
  }
  refuseSlidingWindow(fields, family)

  const attentionBias =
    family.attentionBiasOption === true && fields.boolean('attention_bias', false)
  return {
    architecture,
    vocabSize: fields.count('vocab_size'),
    hiddenSize,
    intermediateSize: fields.count('intermediate_size'),
    layers: fields.count('num_hidden_layers'),
    queryHeads,
    kvHeads,
    headDim,
    rmsNormEps: fields.positive('rms_norm_eps'),
    normOffset: family.gemma ? 1 : 0,
    embeddingScale: family.gemma ? Math.sqrt(hiddenSize) : 1,
    activation: readActivation(fields),
    tiedEmbeddings: fields.boolean('tie_word_embeddings', family.defaults?.tied ?? false),
    biases: {
      qkv: family.qkvBias ?? attentionBias,
      o: attentionBias,
      mlp: family.mlpBiasOption === true && fields.boolean('mlp_bias', false),
    },
    qkNorm: family.qkNorm ?? false,
    fusedProjections: family.fused ?? false,
    rope: readRope(fields, headDim, family.ropeTypes ?? ROPE_TYPES),
    maxPositions: fields.optionalCount('max_position_embeddings'),
    eosTokenIds: eosTokenIds(checkObject(json, file, INVALID), file),
  }
}

function readArchitecture(fields: Fields): Architecture {
  const supported = Object.keys(FAMILIES) as Architecture[]
  const list = fields.list('architectures')
  if (list.length === 0) {
    const modelType = fields.string('model_type')
    const found = supported.find((name) => FAMILIES[name].modelType === modelType)
    if (found === undefined) {
      const known = supported.map((name) => FAMILIES[name].modelType).join(', ')
      throw unsupported(`${fields.name('model_type')} = "${modelType}"`, known)
    }
    return found
  }
  const name = list[0]
  if (list.length > 1 || !supported.includes(name as Architecture)) {
    throw unsupported(
      `${fields.name('architectures')} = ${JSON.stringify(list)}`,
      supported.join(', '),
    )
  }
  return name as Architecture
}

function refuseUnsupported(fields: Fields, family: Family): void {
  for (const field of UNSUPPORTED_FIELDS) {
    if (!fields.isOff(field)) {
      throw unsupported(fields.name(field), 'models without it')
    }
  }
  for (const [field, known] of [
    ['attention_bias', family.attentionBiasOption],
    ['mlp_bias', family.mlpBiasOption],
  ] as const) {
    if (!known && fields.get(field) === true) {
      throw unsupported(`${fields.name(field)} = true`, `false for ${family.modelType}`)
    }
  }
}

// Mistral and Phi-3 use a window wherever they name one, Qwen only with use_sliding_window.
function refuseSlidingWindow(fields: Fields, family: Family): void {
  const other = fields.list('layer_types').find((type) => type !== 'full_attention')
  if (other !== undefined) {
    throw unsupported(
      `${JSON.stringify(other)} in ${fields.name('layer_types')}`,
      '"full_attention"',
    )
  }
  if (fields.boolean('use_sliding_window', false)) {
    throw unsupported(`${fields.name('use_sliding_window')} = true`, 'full attention (false)')
  }
  if (family.modelType.startsWith('qwen')) return
  const implied = fields.has('sliding_window') ? undefined : family.defaults?.slidingWindow
  const window = fields.get('sliding_window') ?? implied
  if (window !== undefined) {
    const origin = implied === undefined ? '' : ', which its absence means,'
    throw unsupported(
      `${fields.name('sliding_window')} = ${JSON.stringify(window)}${origin}`,
      'full attention (null)',
    )
  }
}

function readActivation(fields: Fields): ModelConfig['activation'] {
  const name = fields.string('hidden_act')
  const activation = Object.hasOwn(ACTIVATIONS, name) ? ACTIVATIONS[name] : undefined
  if (activation === undefined) {
    const supported = Object.keys(ACTIVATIONS).join(', ')
    throw unsupported(`${fields.name('hidden_act')} = "${name}"`, supported)
  }
  return activation
}

function readRope(
  fields: Fields,
  headDim: number,
  supportedTypes: readonly RopeConfig['type'][],
): RopeConfig {
  // transformers 4 keeps the type and its numbers in rope_scaling, 5 everything in rope_parameters.
  const rope = fields.child(
    fields.get('rope_scaling') === undefined ? 'rope_parameters' : 'rope_scaling',
  )
  const type = rope.get('rope_type') ?? rope.get('type') ?? 'default'
  if (!supportedTypes.includes(type as RopeConfig['type'])) {
    const what = `RoPE type ${JSON.stringify(type)} of ${rope.where}`
    throw unsupported(what, supportedTypes.join(', '))
  }
  if (rope.get('full_attention') !== undefined || rope.get('sliding_attention') !== undefined) {
    throw unsupported(`RoPE by layer type in ${rope.where}`, 'one RoPE for all layers')
  }
  if (type === 'default' && rope.get('factor') !== undefined) {
    throw invalid(rope.name('rope_type'), 'given where there is a factor', type, INVALID)
  }
  const at = (field: string) => (rope.get(field) === undefined ? fields : rope)
  const theta = at('rope_theta').greater('rope_theta', 1, 10000)
  const share = at('partial_rotary_factor').positive('partial_rotary_factor', 1)
  const rotaryDim = Math.trunc(headDim * share)
  if (share > 1 || rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw invalid(
      at('partial_rotary_factor').name('partial_rotary_factor'),
      `such that an even number of the ${headDim} dimensions is rotated`,
      share,
      INVALID,
    )
  }
  const base = { rotaryDim, theta }
  switch (type as RopeConfig['type']) {
    case 'default':
      return { type: 'default', ...base }
    case 'linear':
      return { type: 'linear', ...base, factor: rope.positive('factor') }
    case 'llama3': {
      const lowFreqFactor = rope.positive('low_freq_factor')
      return {
        type: 'llama3',
        ...base,
        factor: rope.positive('factor'),
        lowFreqFactor,
        highFreqFactor: rope.greater('high_freq_factor', lowFreqFactor),
        originalMaxPositions: originalMaxPositions(fields, rope),
      }
    }
    case 'yarn': {
      const original = originalMaxPositions(fields, rope)
      const stretch = () => fields.count('max_position_embeddings') / original
      return {
        type: 'yarn',
        ...base,
        factor: rope.optionalPositive('factor') ?? stretch(),
        originalMaxPositions: original,
        betaFast: rope.optionalWeight('beta_fast'),
        betaSlow: rope.optionalWeight('beta_slow'),
        attentionFactor: rope.optionalPositive('attention_factor'),
        mscale: rope.optionalWeight('mscale'),
        mscaleAllDim: rope.optionalWeight('mscale_all_dim'),
        truncate: rope.boolean('truncate', true),
      }
    }
  }
}

function originalMaxPositions(fields: Fields, rope: Fields): number {
  const field = 'original_max_position_embeddings'
  if (fields.get(field) !== undefined) return fields.count(field)
  return rope.count(field, fields.optionalCount('max_position_embeddings'))
}
