// GGUF's metadata as a config.json, which then goes through the same checks as one of a Hugging Face folder. Keys that are
// not known are refused by name, as fields are there.

import type { ModelConfig } from '../families'
import { HEAD_DIM } from '../limits'
import { ROPE_LIMITS, type RopeConfig } from '../rope'
import { describe } from '../validate'
import type { Warnings } from '../warnings'
import { withinVocabulary } from './eos'
import { Fields, isOff, unsupported } from './fields'
import { damaged, withFile } from './files'
import type { Gguf } from './gguf'
import { familyOf, GGUF_FAMILIES, type GgufFamily, MODEL_FILES } from './gguf-families'
import { ggufEosTokenIds } from './gguf-tokenizer'
import { type ConfigOptions, parseConfig } from './huggingface-config'

/** Keys of every architecture, without its name, that are fields of config.json. */
const COMMON_FIELDS: Readonly<Record<string, string>> = {
  context_length: 'max_position_embeddings',
  embedding_length: 'hidden_size',
  block_count: 'num_hidden_layers',
  feed_forward_length: 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
}

/** Keys that change no logits, whatever they say. */
const HARMLESS_KEYS = ['tensor_data_layout', 'rope.scaling.finetuned']

/** Keys of what hogwild does not compute, harmless only while they are off. */
const OFF_KEYS = [
  ...['use_parallel_residual', 'expert_count', 'expert_used_count', 'expert_shared_count'],
  ...['expert_shared_feed_forward_length', 'attention.sliding_window', 'attention.clamp_kqv'],
  ...['attention.max_alibi_bias', 'attn_logit_softcapping', 'final_logit_softcapping'],
  ...['nextn_predict_layers', 'leading_dense_block_count', 'n_deepstack_layers', 'pooling_type'],
]

/** The family of a file. Throws HOGWILD_INVALID_MODEL, HOGWILD_UNSUPPORTED. */
export function ggufFamily({ path, metadata }: Gguf): GgufFamily {
  const architecture = metadata.get('general.architecture')
  if (typeof architecture !== 'string') throw damaged(path, 'has no "general.architecture"')
  const type = metadata.get('general.type') ?? 'model'
  if (type !== 'model') throw unsupported(`"general.type" = ${describe(type)} of ${path}`, 'model')
  const family = familyOf(architecture, (key) => !isOff(metadata.get(`${architecture}.${key}`)))
  if (family !== undefined) return family
  throw unsupported(
    `"general.architecture" = ${describe(architecture)} of ${path}`,
    Object.keys(GGUF_FAMILIES).join(', '),
  )
}

/** Factors of RoPE's frequencies, which are tensors in GGUF. */
export const ROPE_TENSORS = {
  all: 'rope_freqs.weight',
  short: 'rope_factors_short.weight',
  long: 'rope_factors_long.weight',
} as const

type RopeFactors = Partial<Record<keyof typeof ROPE_TENSORS, number[]>>

/**
 * The configuration of a file. `ignoreFields` are keys, e.g. "llama.expert_weights_scale". Throws as `parseConfig`, and
 * HOGWILD_ABORTED.
 */
export async function ggufConfig(
  gguf: Gguf,
  family: GgufFamily,
  options: ConfigOptions & { warnings?: Warnings | undefined; signal?: AbortSignal | undefined },
): Promise<ModelConfig> {
  const factors = await readRopeFactors(gguf, options.signal)
  const config = parseConfig(configJson(gguf, family, factors, options), gguf.path)
  return {
    ...config,
    normOffset: family.normsHoldOne ? 0 : config.normOffset,
    ropes: config.ropes.map((rope) => withFactors(rope, factors.all, gguf.path)),
    eosTokenIds: withinVocabulary(ggufEosTokenIds(gguf), config.vocabSize, options.warnings),
  }
}

async function readRopeFactors(
  { tensors }: Gguf,
  signal: AbortSignal | undefined,
): Promise<RopeFactors> {
  const factors: RopeFactors = {}
  for (const [kind, name] of Object.entries(ROPE_TENSORS)) {
    const tensor = tensors.get(name)
    if (tensor === undefined) continue
    const { path, offset, bytes, format, shape } = tensor
    if (format !== 'f32' || shape.length !== 1 || (shape[0] as number) > HEAD_DIM.max) {
      throw damaged(
        path,
        `: tensor "${name}" is ${format} [${shape}], and not f32 of each RoPE pair`,
      )
    }
    const data = await withFile(path, (file) => file.read(offset, bytes, signal))
    factors[kind as keyof RopeFactors] = Array.from({ length: shape[0] as number }, (_, u) =>
      data.readFloatLE(4 * u),
    )
  }
  return factors
}

/** `rope` with its frequencies divided by factors, which only one without a scaling of its own may have. */
function withFactors(rope: RopeConfig, factors: number[] | undefined, path: string): RopeConfig {
  if (factors === undefined) return rope
  const { type, rotaryDim, theta } = rope
  if (type !== 'default') {
    throw damaged(path, `has both "${ROPE_TENSORS.all}" and "rope.scaling.type" = "${type}"`)
  }
  const { min, max } = ROPE_LIMITS.factor
  if (factors.length !== rotaryDim / 2 || !factors.every((one) => one >= min && one <= max)) {
    throw damaged(
      path,
      `: tensor "${ROPE_TENSORS.all}" has ${factors.length} factors; expected ${rotaryDim / 2}, each from ${min} to ${max}`,
    )
  }
  return { type: 'factors', rotaryDim, theta, factors }
}

/** What config.json would say. */
function configJson(
  gguf: Gguf,
  family: GgufFamily,
  factors: RopeFactors,
  options: ConfigOptions,
): object {
  const { path, tensors } = gguf
  const architecture = gguf.metadata.get('general.architecture') as string
  const keys = keysOf(gguf, architecture, options)
  const json: Record<string, unknown> = {
    architectures: [family.architecture],
    model_type: family.modelType,
    hidden_act: family.activation ?? 'silu',
    tie_word_embeddings: !tensors.has(MODEL_FILES.lm_head as string),
    vocab_size: vocabSize(gguf, keys),
  }
  for (const [key, field] of Object.entries({ ...COMMON_FIELDS, ...family.fields })) {
    const value = keys.get(key)
    // Files of Phi-4 say so that there is no window.
    if (value !== undefined) json[field] = field === 'sliding_window' && value === 0 ? null : value
  }
  const [hiddenSize, queryHeads, layers] = [
    keys.count('embedding_length'),
    keys.count('attention.head_count'),
    keys.count('block_count'),
  ]
  const headDim = readHeadDim(keys, hiddenSize / queryHeads)
  json.head_dim = headDim
  Object.assign(json, readRope(keys, headDim, factors, family))
  const facts = {
    hiddenSize,
    headDim,
    queryHeads,
    layers,
    has: (name: string) => tensors.has(name),
  }
  for (const [field, value] of Object.entries(family.unsaid?.(facts) ?? {})) json[field] ??= value
  keys.passOver(HARMLESS_KEYS)
  for (const key of OFF_KEYS) {
    if (family.fields?.[key] === undefined) keys.judge(key, isOff, 'models without it')
  }
  keys.judge('attention.causal', (value) => value === true, 'causal attention (true)')
  keys.refuseUnknown(`the architecture ${architecture} (${path})`)
  return json
}

/** The values whose keys begin with the architecture's name, without it. */
function keysOf({ path, metadata }: Gguf, architecture: string, options: ConfigOptions): Fields {
  const prefix = `${architecture}.`
  const own = [...metadata].filter(([key]) => key.startsWith(prefix))
  const values = Object.fromEntries(own.map(([key, value]) => [key.slice(prefix.length), value]))
  return new Fields(values, path, new Set(options.ignoreFields), prefix)
}

/** Rows of the embedding, which may be more than there are tokens. */
function vocabSize({ path, tensors }: Gguf, keys: Fields): number {
  const embedding = tensors.get(MODEL_FILES.embed as string)
  if (embedding === undefined) throw damaged(path, `: tensor "${MODEL_FILES.embed}" is missing`)
  const rows = embedding.shape.length === 2 ? (embedding.shape[0] as number) : 0
  const stated = keys.optionalCount('vocab_size') ?? rows
  if (stated === rows) return rows
  throw damaged(
    path,
    `has a vocabulary of ${stated}, and "${embedding.name}" is [${embedding.shape}]`,
  )
}

function readHeadDim(keys: Fields, otherwise: number): number {
  const key = keys.count('attention.key_length', otherwise)
  const value = keys.count('attention.value_length', key)
  if (key === value) return key
  throw unsupported(
    `${keys.name('attention.value_length')} = ${value} with keys of ${key}`,
    'the same for both',
  )
}

function readRope(keys: Fields, headDim: number, factors: RopeFactors, family: GgufFamily): object {
  const rotaryDim = keys.count('rope.dimension_count', headDim)
  return {
    // transformers cuts the product with the head size off: it must not come out below.
    partial_rotary_factor: rotaryDim === headDim ? 1 : (rotaryDim + 0.5) / headDim,
    rope_theta: keys.get('rope.freq_base'),
    rope_scaling: readScaling(keys, factors, family),
  }
}

function readScaling(
  keys: Fields,
  { short, long }: RopeFactors,
  { untruncatedYarn }: GgufFamily,
): object | null {
  // Files of LongRoPE say `longrope` or nothing.
  const type = keys.get('rope.scaling.type') ?? (long === undefined ? 'none' : 'longrope')
  const value = (name: string) => keys.get(`rope.scaling.${name}`)
  const factor = value('factor')
  const original = { original_max_position_embeddings: value('original_context_length') }
  const attention = { attention_factor: value('yarn_attn_factor') ?? value('attn_factor') }
  const betas = { beta_fast: value('yarn_beta_fast'), beta_slow: value('yarn_beta_slow') }
  switch (type) {
    case 'none':
      return null
    case 'linear':
      return { rope_type: 'linear', factor }
    case 'yarn':
      return {
        rope_type: 'yarn',
        factor,
        ...original,
        ...attention,
        ...betas,
        ...(untruncatedYarn && { truncate: false }),
      }
    case 'longrope':
      return {
        rope_type: 'longrope',
        short_factor: short,
        long_factor: long,
        ...original,
        ...attention,
      }
    default:
      throw unsupported(
        `${keys.name('rope.scaling.type')} = ${describe(type)}`,
        'none, linear, yarn, longrope',
      )
  }
}
