// config.json of a small model of any family.

import { type Architecture, FAMILIES, type Family } from '../../families'
import { SPECIAL_TOKENS } from './tokenizer'

export interface RandomShape {
  /** `model_type` of the family. */
  family: string
  layers: number
  hidden: number
  vocabulary: number
}

const families = new Map(
  Object.entries(FAMILIES).map(([architecture, family]: [string, Family]) => [
    family.modelType,
    { architecture: architecture as Architecture, family },
  ]),
)

export const FAMILY_NAMES: readonly string[] = [...families.keys()]

/** What `hidden` must be a multiple of. */
export const HIDDEN_STEP = 16
const HEAD_DIMS = [64, 32, 16]
const LEAST_HEAD_DIM = 8
const FEW_HEADS = 4
const EXPERTS = 4
const CONTEXT = 8192

/** `family` is one of FAMILY_NAMES, `hidden` a multiple of HIDDEN_STEP. */
export function randomConfig(shape: RandomShape): Record<string, unknown> {
  const { architecture, family } = families.get(shape.family) as {
    architecture: Architecture
    family: Family
  }
  const { hidden } = shape
  const headDim =
    HEAD_DIMS.find((size) => hidden % size === 0 && hidden / size >= FEW_HEADS) ?? LEAST_HEAD_DIM
  const heads = hidden / headDim
  return {
    architectures: [architecture],
    model_type: family.modelType,
    vocab_size: shape.vocabulary,
    hidden_size: hidden,
    intermediate_size: 3 * hidden,
    num_hidden_layers: shape.layers,
    num_attention_heads: heads,
    num_key_value_heads: heads % 2 === 0 ? heads / 2 : heads,
    head_dim: headDim,
    [family.activationField ?? 'hidden_act']: family.scaledEmbeddings
      ? 'gelu_pytorch_tanh'
      : 'silu',
    max_position_embeddings: CONTEXT,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
    bos_token_id: null,
    eos_token_id: SPECIAL_TOKENS.indexOf('<|im_end|>'),
    pad_token_id: SPECIAL_TOKENS.indexOf('<|endoftext|>'),
    torch_dtype: 'bfloat16',
    ...(family.queryScalar && { query_pre_attn_scalar: headDim }),
    ...(family.experts && {
      num_local_experts: EXPERTS,
      num_experts: EXPERTS,
      num_experts_per_tok: 2,
      [family.experts.sizeField ?? 'intermediate_size']: hidden,
    }),
  }
}
