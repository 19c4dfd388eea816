// A Hugging Face folder as a model: its configuration, and its tensors by role.

import { FAMILIES, type ModelConfig } from '../families'
import type { Format } from '../formats'
import type { NativeTensor } from '../native'
import type { Role } from '../roles'
import type { Warnings } from '../warnings'
import { type ConfigOptions, readConfig } from './huggingface-config'
import type { Int4 } from './int4'
import { readTensors } from './safetensors'
import type { Part } from './stored-tensor'
import {
  ROTATED_ROLES,
  type TensorEntry,
  type TensorNames,
  tensorsByRole,
  wantedTensors,
} from './tensors'

const STORED_FORMATS: Record<string, Format> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }

/**
 * Tensors that play no part: rotary buffers, which follow from config.json, and constants of masks, as older
 * versions of transformers wrote them.
 */
const HARMLESS_TENSOR =
  /^model\.(layers\.\d+\.self_attn\.)?(rotary_emb\.((original_)?inv_freq|cos_cached|sin_cached)|masked_bias)$/

/** Names in the files of what is not in a layer, by role. */
const MODEL_FILES: Readonly<Record<string, string>> = {
  embed: 'model.embed_tokens.weight',
  norm: 'model.norm.weight',
  lm_head: 'lm_head.weight',
}

/** Names in the files by role, behind `model.layers.i.`, where the family does not say otherwise. */
const LAYER_FILES: Readonly<Record<string, string>> = {
  input_norm: 'input_layernorm.weight',
  q_proj: 'self_attn.q_proj.weight',
  q_bias: 'self_attn.q_proj.bias',
  k_proj: 'self_attn.k_proj.weight',
  k_bias: 'self_attn.k_proj.bias',
  v_proj: 'self_attn.v_proj.weight',
  v_bias: 'self_attn.v_proj.bias',
  q_norm: 'self_attn.q_norm.weight',
  k_norm: 'self_attn.k_norm.weight',
  sinks: 'self_attn.sinks',
  o_proj: 'self_attn.o_proj.weight',
  o_bias: 'self_attn.o_proj.bias',
  mlp_norm: 'post_attention_layernorm.weight',
  gate_proj: 'mlp.gate_proj.weight',
  gate_bias: 'mlp.gate_proj.bias',
  up_proj: 'mlp.up_proj.weight',
  up_bias: 'mlp.up_proj.bias',
  down_proj: 'mlp.down_proj.weight',
  down_bias: 'mlp.down_proj.bias',
}

/** Reads config.json and the headers of the safetensors of a folder. Throws as `parseConfig` and `modelTensors`. */
export async function readFolder(
  folder: string,
  options: ConfigOptions & { signal?: AbortSignal | undefined; warnings?: Warnings } = {},
): Promise<{ config: ModelConfig; tensors: NativeTensor[] }> {
  const { config, int4 } = await readConfig(folder, options)
  const { signal } = options
  return { config, tensors: modelTensors(config, await readTensors(folder, { signal }), int4) }
}

/**
 * Every tensor that a model of this configuration computes with, among those of a folder. Vectors have rows = 1. Each
 * tensor is one of them or known to play no part. `int4`: how matrices may be kept. Throws as `tensorsByRole`.
 */
export function modelTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
  int4?: Int4,
): NativeTensor[] {
  return tensorsByRole(config, tensors, namesOf(config, int4))
}

/** The tensors of a folder of this configuration, as transformers writes them; the first role of each. */
export function folderTensors(
  config: ModelConfig,
): { name: string; shape: readonly number[]; role: Role }[] {
  const tensors = wantedTensors(config, new Map(), namesOf(config))
  return Array.from(tensors, ({ file, shape, parts }) => {
    const [{ role }] = parts as [Part]
    return { name: file, shape, role }
  })
}

function namesOf(config: ModelConfig, int4?: Int4): TensorNames {
  const { fused = {}, names = {}, experts, interleavedRope } = FAMILIES[config.architecture]
  return {
    model: MODEL_FILES,
    layer: (i) => `model.layers.${i}.`,
    layers: { ...LAYER_FILES, ...names },
    fused,
    experts: experts?.names,
    formats: STORED_FORMATS,
    int4,
    interleaved: interleavedRope ? ROTATED_ROLES : [],
    isHarmless: (name) => HARMLESS_TENSOR.test(name),
    described: 'config.json',
  }
}
