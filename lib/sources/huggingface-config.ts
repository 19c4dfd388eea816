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
import { describe } from '../validate'
import type { Warnings } from '../warnings'
import { eosTokenIds, readEosTokenIds, withinVocabulary } from './eos'
import { Fields, isOff, unsupported } from './fields'
import { readJson } from './files'
import { readRope } from './huggingface-rope'

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
  ...['quantization_config', 'per_layer_config', 'pruned_heads'],
  ...['is_encoder_decoder', 'add_cross_attention', 'cross_attention_hidden_size'],
  ...['tie_encoder_decoder', 'num_experts', 'num_local_experts', 'attn_logit_softcapping'],
  ...['final_logit_softcapping', 'rope_interleaved', 'rope_interleave', 'use_mrope'],
  ...['use_bidirectional_attention', 'attention_chunk_size', 'lm_head_bias'],
]

export interface ConfigOptions {
  /** Names of fields that are treated as if they were not there; of an object within: "rope_scaling.field". */
  ignoreFields?: readonly string[]
}

/** Reads and checks config.json and the ends of text in generation_config.json. Throws as `parseConfig`. */
export async function readConfig(
  folder: string,
  options: ConfigOptions & { signal?: AbortSignal | undefined; warnings?: Warnings } = {},
): Promise<ModelConfig> {
  const { signal, warnings } = options
  const path = join(folder, 'config.json')
  const config = parseConfig(await readJson(path, { signal }), path, options)
  const ids = await readEosTokenIds(folder, { signal })
  return { ...config, eosTokenIds: withinVocabulary(ids, config.vocabSize, warnings) }
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
  const fields = new Fields(json, file, new Set(options.ignoreFields))
  const architecture = readArchitecture(fields)
  const family = FAMILIES[architecture]
  judge(fields, family)

  const heads = readHeads(fields, family)
  const ropes = [readRope(fields, heads.headDim, family)]
  const config: ModelConfig = {
    architecture,
    vocabSize: fields.count('vocab_size'),
    ...heads,
    rmsNormEps: fields.number('rms_norm_eps', { min: 0, max: 1, open: true }),
    normOffset: family.gemma ? 1 : 0,
    activation: readActivation(fields, family),
    embeddingScale: family.gemma ? Math.sqrt(heads.hiddenSize) : 1,
    attentionScale: 1 / Math.sqrt(heads.headDim),
    residualScale: 1,
    logitScale: 1,
    logitSoftcap: 0,
    tiedEmbeddings: fields.boolean('tie_word_embeddings', family.defaults?.tied ?? false),
    ropes,
    layers: readLayers(fields, family),
    maxPositions: fields.optionalCount('max_position_embeddings'),
    eosTokenIds: eosTokenIds(fields.get('eos_token_id'), file),
  }
  fields.refuseUnknown(family.modelType)
  return config
}

function readLayers(fields: Fields, family: Family): LayerSpec[] {
  const count = fields.count('num_hidden_layers', undefined, MAX_LAYERS)
  judgeWindow(fields, family, count)
  const { qkv, o, mlp } = family.biases ?? {}
  const has = (bias: Bias | undefined, field: string) =>
    bias === 'option' ? fields.boolean(field, false) : bias === true
  const layer: LayerSpec = {
    norms: { input: true, attentionOutput: false, mlp: true, mlpOutput: false },
    qkNorm: family.qkNorm ?? 'none',
    biases: {
      qkv: has(qkv, 'attention_bias'),
      o: has(o, 'attention_bias'),
      mlp: has(mlp, 'mlp_bias'),
    },
    rope: 0,
    window: 0,
    softcap: 0,
    sinks: false,
    mlp: { type: 'dense', intermediateSize: fields.count('intermediate_size') },
  }
  return Array<LayerSpec>(count).fill(layer)
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

function readHeads(fields: Fields, family: Family) {
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

/** Refuses windows of attention, wherever a layer would have one. */
function judgeWindow(fields: Fields, family: Family, layers: number): void {
  const full = 'full attention in all layers'
  const types = readLayerTypes(fields, layers)
  if (!family.windowOption) {
    fields.passOver(['use_sliding_window', 'max_window_layers'])
    fields.judge('sliding_window', (value) => value === null, `${full} (null)`)
    const implied = family.defaults?.slidingWindow
    if (implied !== undefined && !fields.has('sliding_window')) {
      if (fields.isIgnored('sliding_window')) return
      throw fields.refused(
        'sliding_window',
        `= ${implied}, which its absence means,`,
        `${full} (null)`,
      )
    }
    return
  }
  fields.passOver(['sliding_window', 'max_window_layers'])
  fields.judge(
    'use_sliding_window',
    (value) => {
      if (isOff(value) || types !== undefined) return true
      const window = fields.isGiven('sliding_window') ? fields.get('sliding_window') : 4096
      return window === undefined || fields.count('max_window_layers', 28) >= layers
    },
    `${full} (false)`,
  )
}

function readLayerTypes(fields: Fields, layers: number): unknown[] | undefined {
  const field = 'layer_types'
  fields.passOver([field])
  if (!fields.isGiven(field) || fields.get(field) === undefined) return undefined
  const types = fields.list(field)
  const other = types.find((type) => type !== 'full_attention')
  if (other !== undefined)
    throw fields.refused(field, `with ${describe(other)}`, '"full_attention"')
  if (types.length !== layers) {
    throw new HogwildError(
      `${fields.name(field)} has ${types.length} entries for ${layers} layers`,
      INVALID,
    )
  }
  return types
}

function readActivation(fields: Fields, family: Family): ModelConfig['activation'] {
  const name = fields.string('hidden_act')
  // Older files of Gemma name a second activation, which transformers 4 used and 5 does not.
  if (family.gemma) {
    fields.judge(
      'hidden_activation',
      (value) => value === null || value === name,
      `"hidden_act" (${describe(name)})`,
    )
  }
  const activation = Object.hasOwn(ACTIVATIONS, name) ? ACTIVATIONS[name] : undefined
  if (activation === undefined) {
    const supported = Object.keys(ACTIVATIONS).join(', ')
    throw unsupported(`${fields.name('hidden_act')} = ${describe(name)}`, supported)
  }
  return activation
}
