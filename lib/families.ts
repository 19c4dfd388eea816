// The families of models that hogwild computes: data only. What their members may differ in is read from
// config.json by sources/huggingface-config.ts; tensors by role and shape are in roles.ts.

import type { RopeConfig } from './rope'

/** Names as in `architectures` of config.json. */
export type Architecture =
  | 'LlamaForCausalLM'
  | 'MistralForCausalLM'
  | 'Qwen2ForCausalLM'
  | 'Qwen3ForCausalLM'
  | 'GemmaForCausalLM'
  | 'Phi3ForCausalLM'

/** What one layer computes. Roles and shapes of its tensors follow from it: `layerRoles`. */
export interface LayerSpec {
  /** Which RMS norms [H] there are: before attention and the MLP, and of what they add to the residual stream. */
  norms: { input: boolean; attentionOutput: boolean; mlp: boolean; mlpOutput: boolean }
  /** RMS norms of q and k before RoPE: of each head (Qwen3), of the whole row, or none. */
  qkNorm: 'none' | 'head' | 'row'
  /** Which linear layers have a bias. */
  biases: { qkv: boolean; o: boolean; mlp: boolean }
  /** Which of `ModelConfig.ropes` turns q and k; -1: they are not turned. */
  rope: number
  /** A token at view position p sees positions > p - window; 0: all up to p. */
  window: number
  /** Scores become softcap * tanh(score / softcap); 0: as they are. */
  softcap: number
  /** One more term exp(sink) per query head in the denominator of the softmax. */
  sinks: boolean
  mlp: DenseMlp
}

/** down(activation(gate(x)) * up(x)) */
export interface DenseMlp {
  type: 'dense'
  /** F */
  intermediateSize: number
}

/** A model's configuration, checked. Sizes in elements, counts in pieces. */
export interface ModelConfig {
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
  rmsNormEps: number
  /** Added to every norm weight: 1 for Gemma, else 0. */
  normOffset: number
  activation: 'silu' | 'gelu_tanh'
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

/** One family, as transformers 5 computes it. Absent: no, none, or what a Llama has. */
export interface Family {
  /** `model_type` of config.json. */
  modelType: string
  /** What is assumed where config.json does not have the field at all. */
  defaults?: { kvHeads?: number; headDim?: number; tied?: boolean; slidingWindow?: number }
  /** Options: `attention_bias` for qkv and o, `mlp_bias`. */
  biases?: { qkv?: Bias; o?: Bias; mlp?: Bias }
  /** Whether a window is used only with `use_sliding_window`, from layer `max_window_layers` on. */
  windowOption?: boolean
  /** Whether `partial_rotary_factor` counts. */
  partialRotary?: boolean
  qkNorm?: LayerSpec['qkNorm']
  gemma?: boolean
  /** Where it knows fewer RoPE types than others. */
  ropeTypes?: readonly RopeConfig['type'][]
  /** Names of a folder's tensors by role, behind `model.layers.i.`, that differ from a Llama's. */
  names?: Readonly<Record<string, string>>
  /** Tensors that hold several roles, top to bottom. */
  fused?: Readonly<Record<string, readonly string[]>>
}

export const FAMILIES: Record<Architecture, Family> = {
  LlamaForCausalLM: {
    modelType: 'llama',
    biases: { qkv: 'option', o: 'option', mlp: 'option' },
  },
  MistralForCausalLM: { modelType: 'mistral', defaults: { kvHeads: 8, slidingWindow: 4096 } },
  Qwen2ForCausalLM: {
    modelType: 'qwen2',
    defaults: { kvHeads: 32 },
    biases: { qkv: true },
    windowOption: true,
  },
  Qwen3ForCausalLM: {
    modelType: 'qwen3',
    defaults: { kvHeads: 32, headDim: 128 },
    biases: { qkv: 'option', o: 'option' },
    windowOption: true,
    qkNorm: 'head',
  },
  GemmaForCausalLM: {
    modelType: 'gemma',
    defaults: { kvHeads: 16, headDim: 256, tied: true },
    biases: { qkv: 'option', o: 'option' },
    gemma: true,
  },
  Phi3ForCausalLM: {
    modelType: 'phi3',
    partialRotary: true,
    ropeTypes: ['default'],
    fused: {
      'self_attn.qkv_proj.weight': ['q_proj', 'k_proj', 'v_proj'],
      'mlp.gate_up_proj.weight': ['gate_proj', 'up_proj'],
    },
  },
}
