// GGUF's metadata as a config.json, which then goes through the same checks as one of a Hugging Face folder. Keys that are
// not known are refused by name, like fields there.

import { HogwildError } from '../errors'
import type { ModelConfig } from '../families'
import { describe } from '../validate'
import type { Warnings } from '../warnings'
import { withinVocabulary } from './eos'
import { Fields, isOff, unsupported } from './fields'
import { damaged } from './files'
import type { Gguf } from './gguf'
import { GGUF_FAMILIES, type GgufFacts, type GgufFamily, LLAMA_KINDS } from './gguf-families'
import { ggufEosTokenIds } from './gguf-tokenizer'
import { type ConfigOptions, parseConfig } from './huggingface-config'

/** Keys of every architecture, without its name: fields of config.json. */
const COMMON_FIELDS = {
  context_length: 'max_position_embeddings',
  embedding_length: 'hidden_size',
  block_count: 'num_hidden_layers',
  feed_forward_length: 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
}

/** Keys that change no logits, whatever they say. */
const HARMLESS_KEYS = ['tensor_data_layout', 'rope.scaling.finetuned', 'interleave_moe_layer_step']

/** Keys of what hogwild does not compute, harmless only while they are off. */
const OFF_KEYS = [
  ...['use_parallel_residual', 'expert_count', 'expert_used_count', 'attention.clamp_kqv'],
  ...['attention.max_alibi_bias', 'attn_logit_softcapping', 'final_logit_softcapping'],
  ...['expert_shared_count', 'expert_shared_feed_forward_length', 'nextn_predict_layers'],
  ...['leading_dense_block_count', 'n_deepstack_layers', 'pooling_type'],
  // Mistral-like files of `qwen2` and others name a window that their models do not use.
  ...['attention.sliding_window'],
]

/** The family of a file. Throws HOGWILD_INVALID_MODEL, HOGWILD_UNSUPPORTED. */
export function ggufFamily(gguf: Gguf): GgufFamily {
  const architecture = gguf.metadata.get('general.architecture')
  if (typeof architecture !== 'string') {
    throw damaged(gguf.path, 'has no "general.architecture"')
  }
  const type = gguf.metadata.get('general.type') ?? 'model'
  if (type !== 'model') {
    throw unsupported(`"general.type" = ${describe(type)} of ${gguf.path}`, 'model')
  }
  const family = Object.hasOwn(GGUF_FAMILIES, architecture) ? GGUF_FAMILIES[architecture] : undefined
  if (family === undefined) {
    throw unsupported(
      `"general.architecture" = ${describe(architecture)} of ${gguf.path}`,
      Object.keys(GGUF_FAMILIES).join(', '),
    )
  }
  if (architecture !== 'llama') return family
  if (!isOff(gguf.metadata.get('llama.expert_count'))) return LLAMA_KINDS.experts
  return isOff(gguf.metadata.get('llama.attention.sliding_window')) ? family : LLAMA_KINDS.window
}
