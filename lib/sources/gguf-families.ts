// The families of models in GGUF's spelling: for each architecture its name in config.json, what its files leave unsaid,
// and the Hugging Face names of its tensors. A family is known to hogwild by lib/families.ts; here it is only translated.

/** Values of the metadata as `gguf-config.ts` reads them. */
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
  /** Rows of q and k of a head are neighbours where they are a RoPE pair. */
  adjacentPairs?: true
  /** Norm weights have the 1 in them that the family adds. */
  normsHoldOne?: true
  activation?: 'gelu_pytorch_tanh'
  /** Keys, without the architecture, that are fields of config.json here. */
  fields?: Readonly<Record<string, string>>
  /** Fields of config.json that no key speaks of. */
  unsaid?(facts: GgufFacts): Record<string, unknown>
  /** Parts of a layer that are named otherwise than in most families. */
  layer?: Readonly<Record<string, string>>
}

/** Parts of a layer: GGUF's name, behind `blk.N.`, to the one behind `model.layers.N.`. */
export const LAYER_PARTS: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
}

/** Tensors beside the layers. */
export const MODEL_PARTS: Readonly<Record<string, string>> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}

/** Four norms in a layer: before and behind attention and MLP. */
const FOUR_NORMS = {
  post_attention_norm: 'post_attention_layernorm',
  ffn_norm: 'pre_feedforward_layernorm',
  post_ffw_norm: 'post_feedforward_layernorm',
}

/** gate and up, and in Phi-3 also q, k and v, are one matrix. */
const FUSED = { attn_qkv: 'self_attn.qkv_proj', ffn_up: 'mlp.gate_up_proj' }

const WINDOW = { 'attention.sliding_window': 'sliding_window' }

const EXPERTS = { expert_used_count: 'num_experts_per_tok' }

/** llama.cpp's scale of attention: 1 / sqrt of the head size, or in the largest models of the width per head. */
const attentionScalar = (largest: number) => (facts: GgufFacts) => ({
  query_pre_attn_scalar:
    facts.layers === largest ? facts.hiddenSize / facts.queryHeads : facts.headDim,
})

const llama: GgufFamily = {
  architecture: 'LlamaForCausalLM',
  modelType: 'llama',
  adjacentPairs: true,
  unsaid: ({ has }) => ({
    attention_bias: has('blk.0.attn_q.bias'),
    mlp_bias: has('blk.0.ffn_gate.bias'),
  }),
}

/** Files with `expert_count` or a window are of other architectures than `llama`. */
export const LLAMA_KINDS: Readonly<Record<'window' | 'experts', GgufFamily>> = {
  window: {
    architecture: 'MistralForCausalLM',
    modelType: 'mistral',
    adjacentPairs: true,
    fields: WINDOW,
  },
  experts: {
    architecture: 'MixtralForCausalLM',
    modelType: 'mixtral',
    adjacentPairs: true,
    fields: { ...EXPERTS, expert_count: 'num_local_experts', ...WINDOW },
    layer: {
      ffn_gate_inp: 'block_sparse_moe.gate',
      ffn_gate_exps: 'block_sparse_moe.experts.*.w1',
      ffn_up_exps: 'block_sparse_moe.experts.*.w3',
      ffn_down_exps: 'block_sparse_moe.experts.*.w2',
    },
  },
}

/** By `general.architecture`. */
export const GGUF_FAMILIES: Readonly<Record<string, GgufFamily>> = {
  llama,
  qwen2: { architecture: 'Qwen2ForCausalLM', modelType: 'qwen2' },
  qwen3: {
    architecture: 'Qwen3ForCausalLM',
    modelType: 'qwen3',
    unsaid: ({ has }) => ({ attention_bias: has('blk.0.attn_q.bias') }),
  },
  qwen3moe: {
    architecture: 'Qwen3MoeForCausalLM',
    modelType: 'qwen3_moe',
    fields: {
      ...EXPERTS,
      expert_count: 'num_experts',
      expert_feed_forward_length: 'moe_intermediate_size',
    },
    unsaid: ({ has }) => ({
      attention_bias: has('blk.0.attn_q.bias'),
      norm_topk_prob: true,
      decoder_sparse_step: 1,
      mlp_only_layers: [],
    }),
    layer: {
      ffn_gate_inp: 'mlp.gate',
      ffn_gate_exps: 'mlp.experts.*.gate_proj',
      ffn_up_exps: 'mlp.experts.*.up_proj',
      ffn_down_exps: 'mlp.experts.*.down_proj',
    },
  },
  gemma: {
    architecture: 'GemmaForCausalLM',
    modelType: 'gemma',
    normsHoldOne: true,
    activation: 'gelu_pytorch_tanh',
    unsaid: ({ has }) => ({ attention_bias: has('blk.0.attn_q.bias') }),
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
    unsaid: attentionScalar(46),
    layer: FOUR_NORMS,
  },
  gemma3: {
    architecture: 'Gemma3ForCausalLM',
    modelType: 'gemma3_text',
    normsHoldOne: true,
    activation: 'gelu_pytorch_tanh',
    fields: {
      ...WINDOW,
      'rope.freq_base_swa': 'rope_local_base_freq',
      final_logit_softcapping: 'final_logit_softcapping',
    },
    unsaid: attentionScalar(62),
    layer: FOUR_NORMS,
  },
  phi3: {
    architecture: 'Phi3ForCausalLM',
    modelType: 'phi3',
    fields: WINDOW,
    layer: FUSED,
  },
  olmo2: {
    architecture: 'Olmo2ForCausalLM',
    modelType: 'olmo2',
    layer: {
      post_attention_norm: 'post_attention_layernorm',
      post_ffw_norm: 'post_feedforward_layernorm',
    },
  },
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
    unsaid: ({ has }) => ({
      attention_bias: has('blk.0.attn_q.bias'),
      mlp_bias: has('blk.0.ffn_gate.bias'),
    }),
  },
  glm4: {
    architecture: 'Glm4ForCausalLM',
    modelType: 'glm4',
    unsaid: ({ has }) => ({ attention_bias: has('blk.0.attn_q.bias') }),
    layer: {
      ffn_up: FUSED.ffn_up,
      post_attention_norm: 'post_self_attn_layernorm',
      post_ffw_norm: 'post_mlp_layernorm',
    },
  },
  smollm3: {
    architecture: 'SmolLM3ForCausalLM',
    modelType: 'smollm3',
    adjacentPairs: true,
    unsaid: ({ has }) => ({
      attention_bias: has('blk.0.attn_q.bias'),
      mlp_bias: has('blk.0.ffn_gate.bias'),
      no_rope_layer_interval: 4,
    }),
  },
  'gpt-oss': {
    architecture: 'GptOssForCausalLM',
    modelType: 'gpt_oss',
    fields: { ...EXPERTS, ...WINDOW, expert_count: 'num_local_experts' },
    unsaid: ({ has }) => ({ attention_bias: has('blk.0.attn_q.bias') }),
    layer: {
      post_attention_norm: 'post_attention_layernorm',
      attn_sinks: 'self_attn.sinks',
      ffn_gate_inp: 'mlp.router',
      ffn_gate_exps: 'mlp.experts.*.gate_proj',
      ffn_up_exps: 'mlp.experts.*.up_proj',
      ffn_down_exps: 'mlp.experts.*.down_proj',
    },
  },
}
