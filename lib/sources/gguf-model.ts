// A GGUF file as a model: its configuration, and its tensors by role.

import type { ModelConfig } from '../families'
import { GGUF_FORMATS } from '../formats'
import type { NativeTensor } from '../native'
import type { Warnings } from '../warnings'
import type { Gguf } from './gguf'
import { ggufConfig, ggufFamily, ROPE_TENSORS } from './gguf-config'
import { EXPERT_FILES, type GgufFamily, LAYER_FILES, MODEL_FILES } from './gguf-families'
import type { ConfigOptions } from './huggingface-config'
import { ROTATED_ROLES, type TensorEntry, type TensorNames, tensorsByRole } from './tensors'

/** Follows from the metadata; old files hold it. */
const ROTARY_BUFFER = /^blk\.\d+\.attn_rot_embd\.weight$/

const STORED_FORMATS = Object.fromEntries(
  GGUF_FORMATS.map((format) => [format.toUpperCase(), format]),
)

/** Throws as `parseConfig` and `tensorsByRole`. */
export async function readGgufModel(
  gguf: Gguf,
  options: ConfigOptions & {
    warnings?: Warnings | undefined
    signal?: AbortSignal | undefined
  } = {},
): Promise<{ config: ModelConfig; tensors: NativeTensor[] }> {
  const family = ggufFamily(gguf)
  const config = await ggufConfig(gguf, family, options)
  const entries = new Map<string, TensorEntry>()
  for (const { name, path, offset, format, shape } of gguf.tensors.values()) {
    entries.set(name, { name, path, offset, dtype: format.toUpperCase(), shape })
  }
  return { config, tensors: tensorsByRole(config, entries, namesOf(family)) }
}

function namesOf({ names = {}, fused = {}, adjacentPairs }: GgufFamily): TensorNames {
  return {
    model: MODEL_FILES,
    layer: (i) => `blk.${i}.`,
    layers: { ...LAYER_FILES, ...names },
    fused,
    experts: EXPERT_FILES,
    formats: STORED_FORMATS,
    interleaved: adjacentPairs ? ROTATED_ROLES : [],
    isHarmless: (name) =>
      Object.values<string>(ROPE_TENSORS).includes(name) || ROTARY_BUFFER.test(name),
    described: 'its metadata',
  }
}
