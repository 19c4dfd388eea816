// A Hugging Face folder as a model: its configuration, and its tensors by role, with the shapes that the roles
// have; fused matrices are cut into slices of rows.

import { HogwildError } from '../errors'
import { FAMILIES, type Family, type ModelConfig } from '../families'
import { type Format, storedBytes } from '../formats'
import type { NativeTensor } from '../native'
import { layerRoles, modelRoles, type Role } from '../roles'
import { describe } from '../validate'
import type { Warnings } from '../warnings'
import { type ConfigOptions, readConfig } from './huggingface-config'
import { readTensors, type TensorEntry } from './safetensors'

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

/** How many unknown tensors a message names. */
const MAX_NAMED = 10

export interface FolderModel {
  config: ModelConfig
  tensors: NativeTensor[]
}

/** Reads config.json and the headers of the safetensors of a folder. Throws as `parseConfig` and `modelTensors`. */
export async function readFolder(
  folder: string,
  options: ConfigOptions & { signal?: AbortSignal | undefined; warnings?: Warnings } = {},
): Promise<FolderModel> {
  const config = await readConfig(folder, options)
  const { signal } = options
  return { config, tensors: modelTensors(config, await readTensors(folder, { signal })) }
}

/** One tensor of the files: the name there, and the roles it fills, top to bottom. */
interface Wanted {
  file: string
  roles: readonly Role[]
}

/**
 * Every tensor that a model of this configuration computes with. Vectors have rows = 1. Each tensor of the files
 * is one of them or known to play no part.
 *
 * Throws HOGWILD_INVALID_MODEL for a tensor that is missing, has another shape, is neither F32, F16 nor BF16,
 * or has no place in the model.
 */
export function modelTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
): NativeTensor[] {
  const used = new Set<string>()
  const found: NativeTensor[] = []
  for (const wanted of wantedTensors(config, tensors)) {
    found.push(...locate(wanted, tensors))
    used.add(wanted.file)
  }
  refuseUnknown(config, used, tensors)
  return found
}

function* wantedTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
): Generator<Wanted> {
  for (const role of modelRoles(config)) {
    const file = MODEL_FILES[role.name] as string
    // A stored output matrix counts, even where the configuration calls it tied: it may be another one.
    if (role.name === 'lm_head' && config.tiedEmbeddings && !tensors.has(file)) continue
    yield { file, roles: [role] }
  }
  const family = FAMILIES[config.architecture]
  for (const [i, layer] of config.layers.entries()) {
    const prefixed = (role: Role) => ({ ...role, name: `layers.${i}.${role.name}` })
    for (const { file, roles } of layerFiles(family, layerRoles(config, layer))) {
      yield { file: `model.layers.${i}.${file}`, roles: roles.map(prefixed) }
    }
  }
}

/** The files' tensors of one layer, without what comes before their names. */
function layerFiles(family: Family, roles: readonly Role[]): Wanted[] {
  const files = new Map<string, Role[]>()
  for (const role of roles) {
    const file = layerFile(family, role.name)
    files.set(file, [...(files.get(file) ?? []), role])
  }
  return Array.from(files, ([file, parts]) => ({ file, roles: parts }))
}

function layerFile({ fused = {}, names = {} }: Family, role: string): string {
  for (const [file, roles] of Object.entries(fused)) if (roles.includes(role)) return file
  return (names[role] ?? LAYER_FILES[role]) as string
}

function locate(wanted: Wanted, tensors: ReadonlyMap<string, TensorEntry>): NativeTensor[] {
  const { file, roles } = wanted
  const [{ cols, isVector }] = roles as [Role]
  const entry = tensors.get(file)
  if (entry === undefined)
    throw new HogwildError(`tensor "${file}" is missing`, 'HOGWILD_INVALID_MODEL')
  const { path, offset, dtype: stored, shape } = entry
  const format = Object.hasOwn(STORED_FORMATS, stored) ? STORED_FORMATS[stored] : undefined
  if (format === undefined) {
    const supported = Object.keys(STORED_FORMATS).join(', ')
    throw new HogwildError(
      `${path}: tensor "${file}" is ${describe(stored)}; supported: ${supported}`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  const rows = roles.reduce((sum, role) => sum + role.rows, 0)
  const expected = isVector ? [cols] : [rows, cols]
  if (shape.length !== expected.length || shape.some((size, i) => size !== expected[i])) {
    throw new HogwildError(
      `${path}: tensor "${file}" is [${shape}], and [${expected}] by config.json`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  let row = 0
  return roles.map((role) => {
    const start = offset + storedBytes(format, row, cols)
    row += role.rows
    return { name: role.name, path, offset: start, format, rows: role.rows, cols }
  })
}

function refuseUnknown(
  config: ModelConfig,
  used: ReadonlySet<string>,
  tensors: ReadonlyMap<string, TensorEntry>,
): void {
  const unknown = [...tensors.values()].filter(
    ({ name }) => !used.has(name) && !HARMLESS_TENSOR.test(name),
  )
  const [first] = unknown
  if (first === undefined) return
  const named = unknown.slice(0, MAX_NAMED).map(({ name }) => describe(name))
  const more = unknown.length > named.length ? ` and ${unknown.length - named.length} more` : ''
  const have = unknown.length > 1 ? 'have' : 'has'
  throw new HogwildError(
    `${first.path}: ${named.join(', ')}${more} ${have} no place in a ${config.architecture} as config.json describes it, and may change what the model computes`,
    'HOGWILD_INVALID_MODEL',
  )
}
