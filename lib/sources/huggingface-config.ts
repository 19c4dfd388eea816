// Reads the config.json of a Hugging Face folder as transformers 5 does. What it says and we do not compute is
// refused by name, and so is what we do not know: a model is either computed exactly or not loaded.

import { join } from 'node:path'
import { HogwildError, type HogwildErrorCode } from '../errors'
import {
  type Architecture,
  type Bias,
  FAMILIES,
  type Family,
  type LayerSpec,
  type ModelConfig,
} from '../families'
import { HEAD_DIM, MAX_LAYERS } from '../limits'
import { describe, invalid } from '../validate'
import type { Warnings } from '../warnings'
import { eosTokenIds, readEosTokenIds, withinVocabulary } from './eos'
import { Fields, isOff, unsupported } from './fields'
import { readJson } from './files'
import { readMlps } from './huggingface-experts'
import { readInt4 } from './huggingface-int4'
import { readRopes } from './huggingface-rope'
import type { Int4 } from './int4'

const INVALID: HogwildErrorCode = 'HOGWILD_INVALID_MODEL'

const ACTIVATIONS: Record<string, ModelConfig['activation']> = {
  silu: 'silu',
  gelu_pytorch_tanh: 'gelu_tanh',
  swish: 'silu',
}

/** Fields that change no logits, whatever they say. */
const HARMLESS_FIELDS = [
  // What wrote the file, and for what.
  ...['transformers_version', '_name_or_path', 'name_or_path', '_commit_hash', 'auto_map'],
  ...['custom_pipelines', 'tokenizer_class', 'prefix', 'finetuning_task', 'task_specific_params'],
  ...['transformers.js_config', 'is_llama_config', 'unsloth_fixed', 'unsloth_version'],
  ...['model_max_length', 'max_sequence_length', 'ignore_keys_at_rope_validation'],
  // How it is run there: types, kernels, outputs.
  ...['dtype', 'torch_dtype', 'use_bfloat16', 'torchscript', 'tf_legacy_loss', 'use_cache'],
  ...['_attn_implementation', 'attn_implementation', '_attn_implementation_autoset'],
  ...['_attn_implementation_internal', '_flash_attn_2_enabled', 'experts_implementation'],
  ...['_experts_implementation_internal', 'return_dict', 'use_return_dict', 'output_attentions'],
  ...['output_hidden_states', 'pretraining_tp', 'chunk_size_feed_forward', 'is_decoder'],
  // Training.
  ...['initializer_range', 'attention_dropout', 'hidden_dropout', 'embd_pdrop', 'resid_pdrop'],
  ...['gradient_checkpointing'],
  // The kind of cache that generation makes there.
  ...['cache_implementation'],
  // Classifiers made from the model.
  ...['id2label', 'label2id', 'num_labels', 'problem_type'],
  // Tokens, whose meaning the tokenizer's files give.
  ...['bos_token_id', 'pad_token_id', 'sep_token_id', 'cls_token_id', 'mask_token_id'],
  ...['unk_token_id', 'decoder_start_token_id'],
  // Sampling, which has moved to generation_config.json.
  ...['assistant_confidence_threshold', 'assistant_lookbehind', 'bad_words_ids'],
  ...['begin_suppress_tokens', 'diversity_penalty', 'do_sample', 'early_stopping'],
  ...['encoder_no_repeat_ngram_size', 'encoder_repetition_penalty', 'epsilon_cutoff'],
  ...['eta_cutoff', 'exponential_decay_length_penalty', 'forced_bos_token_id'],
  ...['forced_eos_token_id', 'length_penalty', 'max_length', 'min_length'],
  ...['no_repeat_ngram_size', 'num_assistant_tokens', 'num_assistant_tokens_schedule'],
  ...['num_beam_groups', 'num_beams', 'num_return_sequences', 'output_scores'],
  ...['remove_invalid_values', 'repetition_penalty', 'return_dict_in_generate'],
  ...['suppress_tokens', 'target_lookbehind', 'temperature', 'top_k', 'top_p', 'typical_p'],
]

/** Fields of what hogwild does not compute, harmless only while they are off. */
const OFF_FIELDS = [
  ...['per_layer_config', 'pruned_heads'],
  ...['is_encoder_decoder', 'add_cross_attention', 'cross_attention_hidden_size'],
  ...['tie_encoder_decoder', 'rope_interleaved', 'rope_interleave', 'use_mrope'],
  ...['use_bidirectional_attention', 'attention_chunk_size', 'lm_head_bias'],
]

export interface ConfigOptions {
  /** Names of fields that are treated as if they were not there; of an object within: "rope_scaling.field". */
  ignoreFields?: readonly string[]
}

/** What config.json says of a folder. */
export interface FolderConfig {
  config: ModelConfig
  /** How matrices are kept as integers, where some are. */
  int4: Int4 | undefined
}

/** Reads and checks config.json and the ends of text in generation_config.json. Throws as `parseConfig`. */
export async function readConfig(
  folder: string,
  options: ConfigOptions & { signal?: AbortSignal | undefined; warnings?: Warnings } = {},
): Promise<FolderConfig> {
  const { signal, warnings } = options
  const path = join(folder, 'config.json')
  const { config, int4 } = parseFolderConfig(await readJson(path, { signal }), path, options)
  const ids = await readEosTokenIds(folder, { signal })
  const eosTokenIds = withinVocabulary(ids, config.vocabSize, warnings)
  return { config: { ...config, eosTokenIds }, int4 }
}

/**
 * Checks the content of a config.json, in the form of transformers 4 (`rope_theta`, `rope_scaling`)
 * or 5 (`rope_parameters`). `file` is for messages.
 *
 * Throws HOGWILD_INVALID_MODEL for missing or contradictory fields, HOGWILD_UNSUPPORTED for what
 * hogwild does not compute or know, naming the field and what is supported, HOGWILD_INVALID_ARGUMENT where
 * a field is to be ignored that the model is computed from.
 */
export function parseConfig(
  json: unknown,
  file = 'config.json',
  options: ConfigOptions = {},
): ModelConfig {
  return parseFolderConfig(json, file, options).config
}

function parseFolderConfig(json: unknown, file: string, options: ConfigOptions): FolderConfig {
  const fields = new Fields(json, file, new Set(options.ignoreFields))
  const architecture = readArchitecture(fields)
  const family = FAMILIES[architecture]
  judge(fields, family)
  const int4 = readInt4(fields, family.sinks ?? false)

  const heads = readHeads(fields, family)
  const { layers, ropes } = readLayers(fields, family, heads.headDim)
  const config: ModelConfig = {
    architecture,
    vocabSize: fields.count('vocab_size'),
    ...heads,
    rmsNormEps: fields.number('rms_norm_eps', { min: 0, max: 1, open: true }),
    normOffset: family.normOffset ?? 0,
    activation: readActivation(fields, family),
    ...readScales(fields, family, heads),
    logitSoftcap: readSoftcap(fields, family, 'logits'),
    tiedEmbeddings: fields.boolean('tie_word_embeddings', family.defaults?.tied ?? false),
    ropes,
    layers,
    maxPositions: fields.optionalCount('max_position_embeddings'),
    eosTokenIds: eosTokenIds(fields.get('eos_token_id'), file),
  }
  fields.refuseUnknown(family.modelType)
  return { config, int4 }
}

function readLayers(fields: Fields, family: Family, headDim: number) {
  const count = fields.count('num_hidden_layers', undefined, MAX_LAYERS)
  const { defaults, biases = {} } = family
  const has = (bias: Bias | undefined, field: string, byDefault = false) =>
    bias === 'option' ? fields.boolean(field, byDefault) : bias === true
  const every: Omit<LayerSpec, 'rope' | 'window' | 'mlp'> = {
    norms: { input: true, attentionOutput: false, mlp: true, mlpOutput: false, ...family.norms },
    qkNorm: family.qkNorm ?? 'none',
    biases: {
      qkv: has(biases.qkv, 'attention_bias', defaults?.attentionBias),
      o: has(biases.o, 'attention_bias', defaults?.attentionBias),
      mlp: has(biases.mlp, 'mlp_bias'),
    },
    softcap: readSoftcap(fields, family, 'attention'),
    sinks: family.sinks ?? false,
  }
  const unrotated = readUnrotated(fields, family, count)
  const windows = readWindows(fields, family, count, unrotated)
  const layers = readMlps(fields, family, count).map((mlp, i): LayerSpec => {
    const window = windows[i] as number
    if (unrotated[i]) return { ...every, mlp, rope: -1, window }
    return { ...every, mlp, rope: family.ropeByWindow && window > 0 ? 1 : 0, window }
  })
  return { layers, ropes: readRopes(fields, headDim, family) }
}

function readScales(fields: Fields, family: Family, { hiddenSize, headDim }: Heads) {
  const positive = { min: 0, max: 1e6, open: true }
  const scales = {
    embeddingScale: family.scaledEmbeddings ? Math.sqrt(hiddenSize) : 1,
    attentionScale: 1 / Math.sqrt(headDim),
    residualScale: 1,
    logitScale: 1,
  }
  if (family.queryScalar) {
    const scalar = fields.number('query_pre_attn_scalar', positive, family.defaults?.queryScalar)
    return { ...scales, attentionScale: 1 / Math.sqrt(scalar) }
  }
  if (!family.multipliers) return scales
  return {
    embeddingScale: fields.number('embedding_multiplier', positive, 1),
    attentionScale: fields.number('attention_multiplier', positive, 1),
    residualScale: fields.number('residual_multiplier', positive, 1),
    logitScale: 1 / fields.number('logits_scaling', positive, 1),
  }
}

const SOFTCAP_FIELDS = {
  attention: 'attn_logit_softcapping',
  logits: 'final_logit_softcapping',
} as const

/** 0 where there is none. */
function readSoftcap(fields: Fields, family: Family, kind: keyof typeof SOFTCAP_FIELDS): number {
  const field = SOFTCAP_FIELDS[kind]
  if (!family.softcaps?.[kind]) {
    fields.judge(field, isOff, `models of ${family.modelType} without it`)
    return 0
  }
  const byDefault = fields.has(field) ? undefined : family.defaults?.softcaps?.[kind]
  const given = fields.get(field) ?? byDefault
  return given === undefined ? 0 : fields.number(field, { min: 0, max: 1e6, open: true }, byDefault)
}

function readArchitecture(fields: Fields): Architecture {
  const supported = Object.keys(FAMILIES) as Architecture[]
  const list = fields.list('architectures')
  const modelType = fields.get('model_type')
  if (list.length === 0) {
    const found = supported.find((name) => FAMILIES[name].modelType === fields.string('model_type'))
    if (found !== undefined) return found
    const known = supported.map((name) => FAMILIES[name].modelType).join(', ')
    throw unsupported(`${fields.name('model_type')} = ${describe(modelType)}`, known)
  }
  const name = supported.find((known) => known === list[0])
  if (list.length > 1 || name === undefined) {
    throw unsupported(`${fields.name('architectures')} = ${describe(list)}`, supported.join(', '))
  }
  if (modelType !== undefined && modelType !== FAMILIES[name].modelType) {
    throw new HogwildError(
      `${fields.name('architectures')} = ${describe(list)} contradicts "model_type" = ${describe(modelType)}`,
      INVALID,
    )
  }
  return name
}

/** What is not computed with: harmless, or refused. */
function judge(fields: Fields, family: Family): void {
  fields.passOver(HARMLESS_FIELDS)
  for (const field of OFF_FIELDS) fields.judge(field, isOff, 'models without it')
  for (const [field, value] of Object.entries(family.fixedFields ?? {})) {
    fields.judge(field, (given) => given === value, describe(value))
  }
  if (family.experts === undefined) {
    for (const field of ['num_experts', 'num_local_experts']) {
      fields.judge(field, isOff, 'models without it')
    }
  }
  // transformers reads it by its truth: null turns the causal mask off.
  fields.judge('is_causal', (value) => value === true, 'causal attention (true)')
  const { qkv, o, mlp } = family.biases ?? {}
  for (const [field, counts] of [
    ['attention_bias', qkv === 'option' || o === 'option'],
    ['mlp_bias', mlp === 'option'],
  ] as const) {
    if (!counts) fields.judge(field, isOff, `false for ${family.modelType}`)
  }
}

type Heads = Pick<ModelConfig, 'hiddenSize' | 'queryHeads' | 'kvHeads' | 'headDim'>

function readHeads(fields: Fields, family: Family): Heads {
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
  const { step, max } = HEAD_DIM
  if (headDim % step !== 0 || headDim > max) {
    throw unsupported(
      `${fields.name('head_dim')} = ${headDim}`,
      `multiples of ${step} up to ${max}`,
    )
  }
  return { hiddenSize, queryHeads, kvHeads, headDim }
}

/** Which layers turn neither q nor k. */
function readUnrotated(fields: Fields, family: Family, count: number): boolean[] {
  if (!family.unrotatedLayers) return Array<boolean>(count).fill(false)
  const field = 'no_rope_layers'
  const interval = fields.count('no_rope_layer_interval', 4)
  if (fields.get(field) === undefined) {
    return Array.from({ length: count }, (_, i) => (i + 1) % interval === 0)
  }
  const list = fields.list(field)
  const other = list.find((rotated) => rotated !== 0 && rotated !== 1)
  if (other !== undefined || list.length < count) {
    throw invalid(fields.name(field), `a list of ${count} times 0 or 1`, other ?? list, INVALID)
  }
  return list.slice(0, count).map((rotated) => rotated === 0)
}

/** The window of each layer, 0 where it has none. */
function readWindows(
  fields: Fields,
  family: Family,
  count: number,
  unrotated: readonly boolean[],
): number[] {
  const types = readLayerTypes(fields, count)
  const field = 'sliding_window'
  const byDefault = fields.has(field) ? undefined : family.defaults?.slidingWindow
  const window = () =>
    fields.get(field) === undefined && byDefault === undefined ? 0 : fields.count(field, byDefault)
  const optional = family.windows === 'option' || family.windows === 'unrotated'
  const usesOption = optional && fields.boolean('use_sliding_window', false)
  fields.passOver(['use_sliding_window', 'max_window_layers', field])
  fields.passOver(['sliding_window_pattern', '_sliding_window_pattern'])

  const sized = (has: (i: number) => boolean) => {
    const size = optional && !usesOption ? 0 : window()
    return Array.from({ length: count }, (_, i) => (has(i) ? size : 0))
  }
  const windows = (kind: Family['windows']): number[] => {
    switch (kind) {
      case undefined:
        fields.judge(field, (value) => value === null, 'full attention in all layers (null)')
        return Array<number>(count).fill(0)
      case 'all':
        return sized(() => true)
      case 'option': {
        const first = usesOption ? fields.count('max_window_layers', 28) : count
        return sized((i) => (types ? types[i] === SLIDING : i >= first))
      }
      case 'pattern': {
        const pattern = fields.count('sliding_window_pattern', family.defaults?.windowPattern)
        return sized((i) => (types ? types[i] === SLIDING : (i + 1) % pattern !== 0))
      }
      case 'unrotated':
        return sized((i) => (types ? types[i] === SLIDING : unrotated[i] === true))
    }
  }
  const found = windows(family.windows)
  const wrong = found.findIndex((size, i) => types && size > 0 !== (types[i] === SLIDING))
  if (wrong >= 0) {
    const [what, supported] = found[wrong]
      ? [`with a window of ${found[wrong]}`, SLIDING]
      : ['without a window', 'full_attention']
    throw fields.refused(
      'layer_types',
      `with ${describe(types?.[wrong])} for a layer ${what}`,
      `"${supported}" there`,
    )
  }
  return found
}

const SLIDING = 'sliding_attention'

function readLayerTypes(fields: Fields, layers: number): unknown[] | undefined {
  const field = 'layer_types'
  fields.passOver([field])
  if (!fields.isGiven(field) || fields.get(field) === undefined) return undefined
  const types = fields.list(field)
  const other = types.find((type) => type !== 'full_attention' && type !== SLIDING)
  if (other !== undefined) {
    throw fields.refused(field, `with ${describe(other)}`, `"full_attention", "${SLIDING}"`)
  }
  if (types.length !== layers) {
    throw new HogwildError(
      `${fields.name(field)} has ${types.length} entries for ${layers} layers`,
      INVALID,
    )
  }
  return types
}

function readActivation(fields: Fields, family: Family): ModelConfig['activation'] {
  const field = family.activationField ?? 'hidden_act'
  const name = fields.string(field, family.defaults?.activation)
  // Files of Gemma name a second activation, which transformers does not use.
  if (family.scaledEmbeddings) {
    fields.judge(
      field === 'hidden_act' ? 'hidden_activation' : 'hidden_act',
      (value) => value === null || value === name,
      `${describe(field)} (${describe(name)})`,
    )
  }
  const activation = Object.hasOwn(ACTIVATIONS, name) ? ACTIVATIONS[name] : undefined
  if (activation === undefined) {
    const supported = Object.keys(ACTIVATIONS).join(', ')
    throw unsupported(`${fields.name(field)} = ${describe(name)}`, supported)
  }
  return family.activation ?? activation
}
