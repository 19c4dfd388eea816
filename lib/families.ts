// The families of models that hogwild computes: data only. What their members may differ in is read from
// config.json by sources/huggingface-config.ts; tensors by role and shape are in roles.ts.

import type { RopeConfig } from './rope'

/** Names as in `architectures` of config.json. */
export type Architecture =
  | 'LlamaForCausalLM'
  | 'MistralForCausalLM'
  | 'MixtralForCausalLM'
  | 'Qwen2ForCausalLM'
  | 'Qwen3ForCausalLM'
  | 'Qwen3MoeForCausalLM'
  | 'Phi3ForCausalLM'
  | 'GemmaForCausalLM'
  | 'Gemma2ForCausalLM'
  | 'Gemma3ForCausalLM'
  | 'SmolLM3ForCausalLM'
  | 'Olmo2ForCausalLM'
  | 'GraniteForCausalLM'
  | 'GlmForCausalLM'
  | 'Glm4ForCausalLM'
  | 'GptOssForCausalLM'

/** Which RMS norms [H] a layer has. */
export interface LayerNorms {
  /** Before attention. */
  input: boolean
  /** Of what attention adds to the residual stream. */
  attentionOutput: boolean
  /** Before the MLP. */
  mlp: boolean
  /** Of what the MLP adds to the residual stream. */
  mlpOutput: boolean
}

/** Which linear layers of a layer have a bias. */
export interface LayerBiases {
  /** Those of queries, keys and values. */
  qkv: boolean
  /** That of attention's output. */
  o: boolean
  /** Those of the MLP. */
  mlp: boolean
}

/** What one layer computes. Roles and shapes of its tensors follow from it: `layerRoles`. */
export interface LayerSpec {
  /** Which RMS norms [H] there are: before attention and the MLP, and of what they add to the residual stream. */
  norms: LayerNorms
  /** RMS norms of q and k before RoPE: of each head (Qwen3), of the whole row, or none. */
  qkNorm: 'none' | 'head' | 'row'
  /** Which linear layers have a bias. */
  biases: LayerBiases
  /** Which of `ModelConfig.ropes` turns q and k; -1: they are not turned. */
  rope: number
  /** A token at view position p sees positions > p - window; 0: all up to p. */
  window: number
  /** Scores become softcap * tanh(score / softcap); 0: as they are. */
  softcap: number
  /** One more term exp(sink) per query head in the denominator of the softmax. */
  sinks: boolean
  /** The feed-forward network. */
  mlp: DenseMlp | ExpertsMlp
}

/** down(activation(gate(x)) * up(x)) */
export interface DenseMlp {
  /** One network for all tokens. */
  type: 'dense'
  /** F */
  intermediateSize: number
}

/** Each token goes to the `used` experts, each a dense MLP, whose router logits are greatest. */
export interface ExpertsMlp {
  /** A router chooses a few of many for each token. */
  type: 'experts'
  /** F of each expert */
  intermediateSize: number
  /** E, at least 2 */
  count: number
  /** Experts that each token takes. */
  used: number
  /** Whether the weights of a token's experts sum to 1: the softmax is over those used, else over all. */
  normalized: boolean
  /** Whether the router has a bias. */
  routerBias: boolean
}

/** A model's configuration, checked. Sizes in elements, counts in pieces. */
export interface ModelConfig {
  /** Of the family. */
  architecture: Architecture
  /** V */
  vocabSize: number
  /** H */
  hiddenSize: number
  /** Hq, a multiple of Hkv */
  queryHeads: number
  /** Hkv */
  kvHeads: number
  /** D: a multiple of 8, at most 256 */
  headDim: number
  /** Added to the mean square in every norm. */
  rmsNormEps: number
  /** Added to every norm weight: 1 for Gemma, else 0. */
  normOffset: number
  /** gpt-oss has the clamped one, of gate and up: see native/device/ops.h. */
  activation: 'silu' | 'gelu_tanh' | 'clamped_swiglu'
  /** Multiplies embeddings: sqrt(hiddenSize) for Gemma, else 1. */
  embeddingScale: number
  /** Multiplies scores: normally 1 / sqrt(headDim). */
  attentionScale: number
  /** Multiplies what attention and MLP add to the residual stream. */
  residualScale: number
  /** Multiplies logits. */
  logitScale: number
  /** Logits become softcap * tanh(logit / softcap); 0: as they are. */
  logitSoftcap: number
  /** The output matrix is the embedding matrix, unless the files hold an output matrix. */
  tiedEmbeddings: boolean
  /** Those that `LayerSpec.rope` names. */
  ropes: readonly RopeConfig[]
  /** Layer after layer. */
  layers: readonly LayerSpec[]
  /** Positions that the model was made for; hogwild does not enforce it. */
  maxPositions: number | undefined
  /** Tokens that end a text, from generation_config.json and config.json, within the vocabulary. */
  eosTokenIds: readonly number[]
}

/** A bias that the family always has, or that a field of config.json gives it ('option'). */
export type Bias = true | 'option'

/** How files name the roles of a mixture of experts. Roles of an expert are written without `experts.e.`. */
export interface ExpertNames {
  /** The tensor of each role; `*` stands for the expert. Absent: they are always stacked. */
  readonly separate?: Readonly<Record<string, string>>
  /** Tensors of all experts [E, ...], and the roles of which each slice consists, top to bottom. */
  readonly stacked: Readonly<Record<string, readonly string[]>>
  /** The slices of matrices are transposed, and rows of their roles (elements of vectors) take turns. */
  readonly transposed?: boolean
}

/** What is a family's own of its mixture of experts. */
export interface ExpertsFamily {
  /** Where config.json says nothing. */
  defaults: { count: number; used: number; size?: number }
  /** The field with F of an expert; default: `intermediate_size`. */
  sizeField?: string
  /** Whether the weights of a token's experts sum to 1 by `norm_topk_prob`; absent: always. */
  normalizedOption?: boolean
  routerBias?: boolean
  /** Whether `mlp_only_layers` and `decoder_sparse_step` give some layers a dense MLP. */
  denseLayers?: boolean
  /** Whether there is a field `router_jitter_noise`. */
  jitter?: boolean
  /** Of a folder's tensors, behind `model.layers.i.`. */
  names: ExpertNames
}

/** One family, as transformers 5 computes it. Absent: no, none, or what a Llama has. */
export interface Family {
  /** `model_type` of config.json. */
  modelType: string
  /** What is assumed where config.json does not have the field at all. */
  defaults?: {
    kvHeads?: number
    headDim?: number
    tied?: boolean
    attentionBias?: boolean
    /** `partial_rotary_factor` */
    rotaryShare?: number
    theta?: number
    /** `rope_local_base_freq` */
    localTheta?: number
    slidingWindow?: number
    /** `sliding_window_pattern`: of so many layers the last has no window. */
    windowPattern?: number
    activation?: string
    queryScalar?: number
    softcaps?: { attention?: number; logits?: number }
  }
  norms?: Partial<LayerSpec['norms']>
  qkNorm?: LayerSpec['qkNorm']
  /** Options: `attention_bias` for qkv and o, `mlp_bias`. */
  biases?: { qkv?: Bias; o?: Bias; mlp?: Bias }
  /**
   * Which layers have the window `sliding_window`: all; those that `layer_types` says, else from `max_window_layers`
   * on, if `use_sliding_window` ('option'); else by `windowPattern` ('pattern'); else those without RoPE
   * ('unrotated'), again with `use_sliding_window`.
   */
  windows?: 'all' | 'option' | 'pattern' | 'unrotated'
  /** Whether `partial_rotary_factor` counts. */
  partialRotary?: boolean
  /** Layers with and without a window have a RoPE each. */
  ropeByWindow?: boolean
  /** `no_rope_layers`, else each `no_rope_layer_interval`-th layer, has no RoPE. */
  unrotatedLayers?: boolean
  /** The rows of q and k alternate between the halves that RoPE turns together. */
  interleavedRope?: boolean
  /** Where it does not know the RoPE types that all others do. */
  ropeTypes?: readonly RopeConfig['type'][]
  /** Norm weights are stored less 1. */
  normOffset?: 1
  /** Embeddings are multiplied by sqrt(hiddenSize). */
  scaledEmbeddings?: boolean
  /** The field that names the activation. */
  activationField?: 'hidden_act' | 'hidden_activation'
  /** `query_pre_attn_scalar` takes the place of head_dim in the scale of scores. */
  queryScalar?: boolean
  /** `attn_logit_softcapping` and `final_logit_softcapping`. */
  softcaps?: { attention?: boolean; logits?: boolean }
  /** `embedding_multiplier`, `attention_multiplier`, `residual_multiplier`, `logits_scaling`. */
  multipliers?: boolean
  experts?: ExpertsFamily
  sinks?: boolean
  /** Of the MLP, whatever the field says. */
  activation?: ModelConfig['activation']
  /** Fields of what is fixed, and the only value that they may have. */
  fixedFields?: Readonly<Record<string, unknown>>
  /** Names of a folder's tensors by role, behind `model.layers.i.`, that differ from a Llama's. */
  names?: Readonly<Record<string, string>>
  /** Tensors that hold several roles, top to bottom. */
  fused?: Readonly<Record<string, readonly string[]>>
}

const FUSED_QKV = { 'self_attn.qkv_proj.weight': ['q_proj', 'k_proj', 'v_proj'] }
const FUSED_GATE_UP = { 'mlp.gate_up_proj.weight': ['gate_proj', 'up_proj'] }

const GEMMA_NORMS = {
  norms: { attentionOutput: true, mlpOutput: true },
  names: {
    attention_output_norm: 'post_attention_layernorm.weight',
    mlp_norm: 'pre_feedforward_layernorm.weight',
    mlp_output_norm: 'post_feedforward_layernorm.weight',
  },
} as const

const GLM: Family = {
  modelType: 'glm',
  defaults: { kvHeads: 2, headDim: 128, attentionBias: true, rotaryShare: 0.5 },
  biases: { qkv: 'option' },
  partialRotary: true,
  interleavedRope: true,
  fused: FUSED_GATE_UP,
}

/** As transformers 5 has experts in memory. */
const STACKED_EXPERTS = {
  'mlp.gate.weight': ['router'],
  'mlp.experts.gate_up_proj': ['gate_proj', 'up_proj'],
  'mlp.experts.down_proj': ['down_proj'],
}

export const FAMILIES: Record<Architecture, Family> = {
  LlamaForCausalLM: {
    modelType: 'llama',
    biases: { qkv: 'option', o: 'option', mlp: 'option' },
  },
  MistralForCausalLM: {
    modelType: 'mistral',
    defaults: { kvHeads: 8, slidingWindow: 4096 },
    windows: 'all',
  },
  MixtralForCausalLM: {
    modelType: 'mixtral',
    defaults: { kvHeads: 8, theta: 1e6 },
    windows: 'all',
    experts: {
      defaults: { count: 8, used: 2 },
      jitter: true,
      names: {
        separate: {
          router: 'block_sparse_moe.gate.weight',
          gate_proj: 'block_sparse_moe.experts.*.w1.weight',
          up_proj: 'block_sparse_moe.experts.*.w3.weight',
          down_proj: 'block_sparse_moe.experts.*.w2.weight',
        },
        stacked: STACKED_EXPERTS,
      },
    },
  },
  Qwen2ForCausalLM: {
    modelType: 'qwen2',
    defaults: { kvHeads: 32, slidingWindow: 4096 },
    biases: { qkv: true },
    windows: 'option',
  },
  Qwen3ForCausalLM: {
    modelType: 'qwen3',
    defaults: { kvHeads: 32, headDim: 128, slidingWindow: 4096 },
    biases: { qkv: 'option', o: 'option' },
    windows: 'option',
    qkNorm: 'head',
  },
  Qwen3MoeForCausalLM: {
    modelType: 'qwen3_moe',
    defaults: { kvHeads: 4, slidingWindow: 4096 },
    biases: { qkv: 'option', o: 'option' },
    windows: 'option',
    qkNorm: 'head',
    experts: {
      defaults: { count: 128, used: 8, size: 768 },
      sizeField: 'moe_intermediate_size',
      normalizedOption: true,
      denseLayers: true,
      names: {
        separate: {
          router: 'mlp.gate.weight',
          gate_proj: 'mlp.experts.*.gate_proj.weight',
          up_proj: 'mlp.experts.*.up_proj.weight',
          down_proj: 'mlp.experts.*.down_proj.weight',
        },
        stacked: STACKED_EXPERTS,
      },
    },
  },
  Phi3ForCausalLM: {
    modelType: 'phi3',
    windows: 'all',
    partialRotary: true,
    ropeTypes: ['default', 'longrope'],
    fixedFields: { full_attn_mod: 1, interpolate_factor: 1 },
    fused: { ...FUSED_QKV, ...FUSED_GATE_UP },
  },
  GemmaForCausalLM: {
    modelType: 'gemma',
    defaults: { kvHeads: 16, headDim: 256, tied: true },
    biases: { qkv: 'option', o: 'option' },
    normOffset: 1,
    scaledEmbeddings: true,
  },
  Gemma2ForCausalLM: {
    modelType: 'gemma2',
    defaults: {
      kvHeads: 4,
      headDim: 256,
      tied: true,
      slidingWindow: 4096,
      windowPattern: 2,
      activation: 'gelu_pytorch_tanh',
      queryScalar: 256,
      softcaps: { attention: 50, logits: 30 },
    },
    ...GEMMA_NORMS,
    biases: { qkv: 'option', o: 'option' },
    windows: 'pattern',
    normOffset: 1,
    scaledEmbeddings: true,
    activationField: 'hidden_activation',
    queryScalar: true,
    softcaps: { attention: true, logits: true },
  },
  Gemma3ForCausalLM: {
    modelType: 'gemma3_text',
    defaults: {
      kvHeads: 4,
      headDim: 256,
      tied: true,
      theta: 1e6,
      localTheta: 1e4,
      slidingWindow: 4096,
      windowPattern: 6,
      activation: 'gelu_pytorch_tanh',
      queryScalar: 256,
    },
    ...GEMMA_NORMS,
    qkNorm: 'head',
    biases: { qkv: 'option', o: 'option' },
    windows: 'pattern',
    ropeByWindow: true,
    normOffset: 1,
    scaledEmbeddings: true,
    activationField: 'hidden_activation',
    queryScalar: true,
    softcaps: { logits: true },
  },
  SmolLM3ForCausalLM: {
    modelType: 'smollm3',
    defaults: { kvHeads: 4, tied: true, theta: 2e6 },
    biases: { qkv: 'option', o: 'option', mlp: 'option' },
    windows: 'unrotated',
    unrotatedLayers: true,
  },
  Olmo2ForCausalLM: {
    modelType: 'olmo2',
    norms: { input: false, attentionOutput: true, mlp: false, mlpOutput: true },
    qkNorm: 'row',
    biases: { qkv: 'option', o: 'option' },
    names: {
      attention_output_norm: 'post_attention_layernorm.weight',
      mlp_output_norm: 'post_feedforward_layernorm.weight',
    },
  },
  GraniteForCausalLM: {
    modelType: 'granite',
    biases: { qkv: 'option', o: 'option', mlp: 'option' },
    multipliers: true,
  },
  GlmForCausalLM: GLM,
  Glm4ForCausalLM: {
    ...GLM,
    modelType: 'glm4',
    norms: { attentionOutput: true, mlpOutput: true },
    names: {
      attention_output_norm: 'post_self_attn_layernorm.weight',
      mlp_output_norm: 'post_mlp_layernorm.weight',
    },
  },
  GptOssForCausalLM: {
    modelType: 'gpt_oss',
    defaults: {
      kvHeads: 8,
      headDim: 64,
      theta: 150000,
      slidingWindow: 128,
      windowPattern: 2,
      attentionBias: true,
    },
    biases: { qkv: 'option', o: 'option', mlp: true },
    windows: 'pattern',
    sinks: true,
    activation: 'clamped_swiglu',
    fixedFields: { swiglu_limit: 7, swiglu_alpha: 1.702 },
    experts: {
      defaults: { count: 128, used: 4 },
      routerBias: true,
      names: {
        stacked: {
          'mlp.router.weight': ['router'],
          'mlp.router.bias': ['router_bias'],
          'mlp.experts.gate_up_proj': ['gate_proj', 'up_proj'],
          'mlp.experts.gate_up_proj_bias': ['gate_bias', 'up_bias'],
          'mlp.experts.down_proj': ['down_proj'],
          'mlp.experts.down_proj_bias': ['down_bias'],
        },
        transposed: true,
      },
    },
  },
}
