// The families of models in GGUF's spelling: for each architecture its name in config.json, what its files leave unsaid, and
// what they call tensors. A family is known to hogwild by lib/families.ts; here it is only translated.

import type { ExpertNames } from '../families'

/** What `unsaid` goes by. */
export interface GgufFacts {
  hiddenSize: number
  headDim: number
  queryHeads: number
  layers: number
  /** Whether the file has a tensor. */
  has(tensor: string): boolean
}

export interface GgufFamily {
  /** `architectures` and `model_type` of config.json. */
  architecture: string
  modelType: string
  /** Rows of q and k are neighbours where they are a RoPE pair. */
  adjacentPairs?: true
  /** Norm weights have the 1 in them that the family adds. */
  normsHoldOne?: true
  activation?: 'gelu_pytorch_tanh'
  /** Keys, without the architecture, that are fields of config.json here. */
  fields?: Readonly<Record<string, string>>
  /** YaRN's bounds are not rounded to whole pairs. */
  untruncatedYarn?: true
  /** Fields of config.json where no key speaks of them. */
  unsaid?(facts: GgufFacts): Record<string, unknown>
  /** Names of a layer's tensors by role that differ from most families'. */
  names?: Readonly<Record<string, string>>
  /** Tensors that hold several roles, top to bottom. */
  fused?: Readonly<Record<string, readonly string[]>>
}

/** Names of what is not in a layer, by role. */
export const MODEL_FILES: Readonly<Record<string, string>> = {
  embed: 'token_embd.weight',
  norm: 'output_norm.weight',
  lm_head: 'output.weight',
}

/** Names by role, behind `blk.i.`. */
export const LAYER_FILES: Readonly<Record<string, string>> = {
  input_norm: 'attn_norm.weight',
  q_proj: 'attn_q.weight',
  q_bias: 'attn_q.bias',
  k_proj: 'attn_k.weight',
  k_bias: 'attn_k.bias',
  v_proj: 'attn_v.weight',
  v_bias: 'attn_v.bias',
  q_norm: 'attn_q_norm.weight',
  k_norm: 'attn_k_norm.weight',
  sinks: 'attn_sinks.weight',
  o_proj: 'attn_output.weight',
  o_bias: 'attn_output.bias',
  attention_output_norm: 'post_attention_norm.weight',
  mlp_norm: 'ffn_norm.weight',
  gate_proj: 'ffn_gate.weight',
  gate_bias: 'ffn_gate.bias',
  up_proj: 'ffn_up.weight',
  up_bias: 'ffn_up.bias',
  down_proj: 'ffn_down.weight',
  down_bias: 'ffn_down.bias',
  mlp_output_norm: 'post_ffw_norm.weight',
}

/** Experts, which old files hold one by one. */
export const EXPERT_FILES: ExpertNames = {
  separate: {
    router: 'ffn_gate_inp.weight',
    gate_proj: 'ffn_gate.*.weight',
    up_proj: 'ffn_up.*.weight',
    down_proj: 'ffn_down.*.weight',
  },
  stacked: {
    'ffn_gate_inp.weight': ['router'],
    'ffn_gate_inp.bias': ['router_bias'],
    'ffn_gate_exps.weight': ['gate_proj'],
    'ffn_gate_exps.bias': ['gate_bias'],
    'ffn_up_exps.weight': ['up_proj'],
    'ffn_up_exps.bias': ['up_bias'],
    'ffn_down_exps.weight': ['down_proj'],
    'ffn_down_exps.bias': ['down_bias'],
  },
}

const QKV = { 'attn_qkv.weight': ['q_proj', 'k_proj', 'v_proj'] }
const QKV_BIASES = { 'attn_qkv.bias': ['q_bias', 'k_bias', 'v_bias'] }
const GATE_AND_UP = { 'ffn_up.weight': ['gate_proj', 'up_proj'] }

const WINDOW = { 'attention.sliding_window': 'sliding_window' }

const EXPERTS_USED = { expert_used_count: 'num_experts_per_tok' }

const attentionBias = ({ has }: GgufFacts) => ({
  attention_bias: has('blk.0.attn_q.bias') || has('blk.0.attn_qkv.bias'),
})

const bothBiases = (facts: GgufFacts) => ({
  ...attentionBias(facts),
  mlp_bias: facts.has('blk.0.ffn_gate.bias'),
})

/** Gemma divides scores by the root of the head size, in its largest models of the width per head. */
const attentionScalar = (largest: number) => (facts: GgufFacts) => ({
  query_pre_attn_scalar:
    facts.layers === largest ? facts.hiddenSize / facts.queryHeads : facts.headDim,
})

/** Of `llama`: Llama, and by what their files say Mistral with a window and Mixtral. */
const LLAMA: GgufFamily = {
  architecture: 'LlamaForCausalLM',
  modelType: 'llama',
  adjacentPairs: true,
  unsaid: bothBiases,
}
const MISTRAL: GgufFamily = {
  architecture: 'MistralForCausalLM',
  modelType: 'mistral',
  adjacentPairs: true,
  fields: WINDOW,
}
const MIXTRAL: GgufFamily = {
  architecture: 'MixtralForCausalLM',
  modelType: 'mixtral',
  adjacentPairs: true,
  fields: { ...WINDOW, ...EXPERTS_USED, expert_count: 'num_local_experts' },
}

/** By `general.architecture`. */
export const GGUF_FAMILIES: Readonly<Record<string, GgufFamily>> = {
  llama: LLAMA,
  qwen2: { architecture: 'Qwen2ForCausalLM', modelType: 'qwen2' },
  qwen3: { architecture: 'Qwen3ForCausalLM', modelType: 'qwen3', unsaid: attentionBias },
  qwen3moe: {
    architecture: 'Qwen3MoeForCausalLM',
    modelType: 'qwen3_moe',
    fields: {
      ...EXPERTS_USED,
      expert_count: 'num_experts',
      expert_feed_forward_length: 'moe_intermediate_size',
      expert_weights_norm: 'norm_topk_prob',
    },
    unsaid: (facts) => ({ ...attentionBias(facts), norm_topk_prob: true }),
  },
  gemma: {
    architecture: 'GemmaForCausalLM',
    modelType: 'gemma',
    normsHoldOne: true,
    activation: 'gelu_pytorch_tanh',
    unsaid: attentionBias,
  },
  gemma2: {
    architecture: 'Gemma2ForCausalLM',
    modelType: 'gemma2',
    normsHoldOne: true,
    activation: 'gelu_pytorch_tanh',
    fields: {
      ...WINDOW,
      attn_logit_softcapping: 'attn_logit_softcapping',
      final_logit_softcapping: 'final_logit_softcapping',
    },
    unsaid: (facts) => ({ ...attentionBias(facts), ...attentionScalar(46)(facts) }),
  },
  gemma3: {
    architecture: 'Gemma3ForCausalLM',
    modelType: 'gemma3_text',
    normsHoldOne: true,
    activation: 'gelu_pytorch_tanh',
    fields: {
      ...WINDOW,
      'attention.sliding_window_pattern': 'sliding_window_pattern',
      'rope.freq_base_swa': 'rope_local_base_freq',
      final_logit_softcapping: 'final_logit_softcapping',
    },
    unsaid: (facts) => ({ ...attentionBias(facts), ...attentionScalar(62)(facts) }),
  },
  phi3: {
    architecture: 'Phi3ForCausalLM',
    modelType: 'phi3',
    fields: WINDOW,
    fused: { ...QKV, ...GATE_AND_UP },
  },
  olmo2: { architecture: 'Olmo2ForCausalLM', modelType: 'olmo2', unsaid: attentionBias },
  granite: {
    architecture: 'GraniteForCausalLM',
    modelType: 'granite',
    adjacentPairs: true,
    fields: {
      'attention.scale': 'attention_multiplier',
      embedding_scale: 'embedding_multiplier',
      residual_scale: 'residual_multiplier',
      logit_scale: 'logits_scaling',
    },
    unsaid: bothBiases,
  },
  // GLM-4 of 2024, and ChatGLM, whose files have q, k and v in one.
  chatglm: {
    architecture: 'GlmForCausalLM',
    modelType: 'glm',
    adjacentPairs: true,
    unsaid: attentionBias,
    fused: { ...QKV, ...QKV_BIASES, ...GATE_AND_UP },
  },
  glm4: {
    architecture: 'Glm4ForCausalLM',
    modelType: 'glm4',
    adjacentPairs: true,
    unsaid: attentionBias,
    fused: GATE_AND_UP,
  },
  smollm3: {
    architecture: 'SmolLM3ForCausalLM',
    modelType: 'smollm3',
    adjacentPairs: true,
    unsaid: (facts) => ({ ...bothBiases(facts), no_rope_layer_interval: 4 }),
  },
  'gpt-oss': {
    architecture: 'GptOssForCausalLM',
    modelType: 'gpt_oss',
    fields: {
      ...WINDOW,
      ...EXPERTS_USED,
      expert_count: 'num_local_experts',
      expert_feed_forward_length: 'intermediate_size',
    },
    untruncatedYarn: true,
    unsaid: attentionBias,
    names: { mlp_norm: 'post_attention_norm.weight' },
  },
}

/** The family of an architecture's file; `isOn` tells of a key without the architecture whether it says anything. */
export function familyOf(
  architecture: string,
  isOn: (key: string) => boolean,
): GgufFamily | undefined {
  if (architecture === 'llama') {
    if (isOn('expert_count')) return MIXTRAL
    if (isOn('attention.sliding_window')) return MISTRAL
  }
  return Object.hasOwn(GGUF_FAMILIES, architecture) ? GGUF_FAMILIES[architecture] : undefined
}
