// The families of models that hogwild computes, and what their members may differ in.

import type { RopeConfig } from './rope'

/** Names as in `architectures` of config.json. */
export type Architecture =
  | 'LlamaForCausalLM'
  | 'MistralForCausalLM'
  | 'Qwen2ForCausalLM'
  | 'Qwen3ForCausalLM'
  | 'GemmaForCausalLM'
  | 'Phi3ForCausalLM'

/** A model's configuration, checked. Sizes in elements, counts in pieces. */
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
  /** The output matrix is the embedding matrix, unless the files hold an output matrix. */
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
  /** Tokens that end a text, from generation_config.json and config.json, within the vocabulary. */
  eosTokenIds: readonly number[]
}

/** One family, as transformers 5 computes it. */
export interface Family {
  /** `model_type` of config.json. */
  modelType: string
  /** What is assumed where config.json does not have the field at all. */
  defaults?: { kvHeads?: number; headDim?: number; tied?: boolean; slidingWindow?: number }
  /** Biases of q, k, v that no field speaks of. */
  qkvBias?: boolean
  /** Whether `attention_bias` and `mlp_bias` count. */
  attentionBiasOption?: boolean
  mlpBiasOption?: boolean
  /** Whether a window is used only with `use_sliding_window`, from layer `max_window_layers` on. */
  windowOption?: boolean
  /** Whether `partial_rotary_factor` counts. */
  partialRotary?: boolean
  qkNorm?: boolean
  gemma?: boolean
  fused?: boolean
  /** Where it knows fewer RoPE types than others. */
  ropeTypes?: readonly RopeConfig['type'][]
}

export const FAMILIES: Record<Architecture, Family> = {
  LlamaForCausalLM: { modelType: 'llama', attentionBiasOption: true, mlpBiasOption: true },
  MistralForCausalLM: { modelType: 'mistral', defaults: { kvHeads: 8, slidingWindow: 4096 } },
  Qwen2ForCausalLM: {
    modelType: 'qwen2',
    defaults: { kvHeads: 32 },
    qkvBias: true,
    windowOption: true,
  },
  Qwen3ForCausalLM: {
    modelType: 'qwen3',
    defaults: { kvHeads: 32, headDim: 128 },
    attentionBiasOption: true,
    windowOption: true,
    qkNorm: true,
  },
  GemmaForCausalLM: {
    modelType: 'gemma',
    defaults: { kvHeads: 16, headDim: 256, tied: true },
    attentionBiasOption: true,
    gemma: true,
  },
  Phi3ForCausalLM: {
    modelType: 'phi3',
    fused: true,
    partialRotary: true,
    ropeTypes: ['default'],
  },
}
