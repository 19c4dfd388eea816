// The tensors of a model's files by role, with the shapes that the roles have; matrices that hold several roles are cut into
// slices of rows. What files call them is a table of each kind of source.

import { HogwildError } from '../errors'
import type { ExpertNames, ModelConfig } from '../families'
import { FORMATS, type Format, storedBytes } from '../formats'
import type { NativeTensor } from '../native'
import { layerRoles, modelRoles, type Role } from '../roles'
import { describe } from '../validate'
import { expertTensors, isOfExperts } from './experts'
import { type Find, type Int4, type Int4Names, int4Names, locateInt4 } from './int4'
import { rowsOf, type StoredTensor } from './stored-tensor'

/** Where one tensor lies and what it is. */
export interface TensorEntry {
  name: string
  /** The file that holds it. */
  path: string
  /** Bytes from the start of the file. */
  offset: number
  /** As the file names it, e.g. "BF16". */
  dtype: string
  /** The fastest index last. */
  shape: readonly number[]
}

/** How a kind of files names tensors. */
export interface TensorNames {
  /** Roles outside the layers. */
  model: Readonly<Record<string, string>>
  /** What comes before the names of a layer's tensors. */
  layer(index: number): string
  /** Roles of a layer. */
  layers: Readonly<Record<string, string>>
  /** Tensors of a layer that hold several roles, top to bottom, where it has none for each. */
  fused: Readonly<Record<string, readonly string[]>>
  /** Where the family has a mixture of experts. */
  experts?: ExpertNames | undefined
  formats: Readonly<Record<string, Format>>
  /** How matrices may be kept in several tensors. */
  int4?: Int4 | undefined
  /** Roles of a layer whose heads have RoPE pairs as neighbours. */
  interleaved: readonly string[]
  /** Tensors that play no part. */
  isHarmless(name: string): boolean
  /** What says how large they must be, for messages. */
  described: string
}

/** Roles of a layer whose rows are reordered where a family's RoPE pairs are neighbours. */
export const ROTATED_ROLES = ['q_proj', 'q_bias', 'k_proj', 'k_bias']

/** How many unknown tensors a message names. */
const MAX_NAMED = 10

/**
 * Every tensor that a model of this configuration computes with. Vectors have rows = 1. Each tensor of the files
 * is one of them or known to play no part.
 *
 * Throws HOGWILD_INVALID_MODEL for a tensor that is missing, has another shape or has no place in the model,
 * HOGWILD_UNSUPPORTED for a format that is not computed with, naming those that are.
 */
export function tensorsByRole(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
  names: TensorNames,
): NativeTensor[] {
  const used = new Set<string>()
  const find: Find = (file, shape, types) => {
    used.add(file)
    return findTensor(file, shape, types, tensors, names)
  }
  const found: NativeTensor[] = []
  for (const wanted of wantedTensors(config, tensors, names)) {
    const isMatrix = wanted.shape.length === 2
    const parts = isMatrix ? partsOf(wanted.file, tensors, names) : undefined
    const has = (file: string) => tensors.has(file)
    if (parts && names.int4) found.push(...locateInt4(names.int4, parts, wanted, has, find))
    else found.push(...locate(wanted, names, find))
  }
  refuseUnknown(config, used, tensors, names)
  return found
}

/** The names of the tensors in which a matrix is kept, where it is kept in several. */
function partsOf(
  file: string,
  tensors: ReadonlyMap<string, TensorEntry>,
  { int4 }: TensorNames,
): Int4Names | undefined {
  const parts = int4 && int4Names(int4, file)
  return parts && tensors.has(parts.codes) ? parts : undefined
}

/** The tensors that a model of this configuration is made of, those of files that hold `tensors` or, of none, as usual. */
export function* wantedTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
  names: TensorNames,
): Generator<StoredTensor> {
  for (const role of modelRoles(config)) {
    const file = names.model[role.name] as string
    // A stored output matrix counts, even where the configuration calls it tied: it may be another one.
    const isStored = tensors.has(file) || partsOf(file, tensors, names) !== undefined
    if (role.name === 'lm_head' && config.tiedEmbeddings && !isStored) continue
    yield rowsOf(file, [role])
  }
  for (const [i, layer] of config.layers.entries()) {
    const rotaryDim = config.ropes[Math.max(layer.rope, 0)]?.rotaryDim ?? config.headDim
    const interleaved = { headDim: config.headDim, rotaryDim }
    const has = (file: string) => tensors.has(names.layer(i) + file)
    for (const tensor of layerTensors(names, layerRoles(config, layer), has)) {
      const { file, parts, exponents } = tensor
      yield {
        ...tensor,
        file: names.layer(i) + file,
        ...(exponents && { exponents: { ...exponents, file: names.layer(i) + exponents.file } }),
        parts: parts.map(({ role, ...part }) => ({
          ...part,
          role: { ...role, name: `layers.${i}.${role.name}` },
          ...(names.interleaved.includes(role.name) && { interleaved }),
        })),
      }
    }
  }
}

/** The files' tensors of one layer, without what comes before their names. */
function layerTensors(
  names: TensorNames,
  roles: readonly Role[],
  has: (file: string) => boolean,
): StoredTensor[] {
  const files = new Map<string, Role[]>()
  const ofExperts: Role[] = []
  for (const role of roles) {
    if (names.experts && isOfExperts(role)) {
      ofExperts.push(role)
      continue
    }
    const file = layerFile(names, role.name, has)
    files.set(file, [...(files.get(file) ?? []), role])
  }
  const tensors = Array.from(files, ([file, parts]) => rowsOf(file, parts))
  if (names.experts) tensors.push(...expertTensors(names.experts, ofExperts, has))
  return tensors
}

function layerFile(
  { fused, layers }: TensorNames,
  role: string,
  has: (file: string) => boolean,
): string {
  const own = layers[role] as string
  const several = Object.keys(fused).find((file) => fused[file]?.includes(role))
  return several === undefined || has(own) ? own : several
}

function locate(
  { file, shape, parts, exponents }: StoredTensor,
  names: TensorNames,
  find: Find,
): NativeTensor[] {
  const formats = exponents ? MXFP4_BYTES : names.formats
  const { path, offset: begin, type: format } = find(file, shape, formats)
  const second = exponents && find(exponents.file, exponents.shape, formats)
  return parts.map(({ role: { name, rows, cols }, offset: elements, ...order }) => {
    if (second === undefined) {
      const offset = begin + storedBytes(format, 1, elements)
      return { name, path, offset, format, rows, cols, ...order }
    }
    const offset = second.offset + elements / FORMATS.mxfp4.elements
    return {
      ...{ name, path, offset: begin + elements / 2, format, rows, cols, ...order },
      exponents: { path: second.path, offset },
    }
  })
}

/** Codes and exponents of mxfp4 in a folder. */
const MXFP4_BYTES = { U8: 'mxfp4' } as const

/** See `Find`. */
function findTensor<T>(
  file: string,
  expected: readonly number[],
  types: Readonly<Record<string, T>>,
  tensors: ReadonlyMap<string, TensorEntry>,
  { described }: TensorNames,
): { path: string; offset: number; type: T } {
  const entry = tensors.get(file)
  if (entry === undefined)
    throw new HogwildError(`tensor "${file}" is missing`, 'HOGWILD_INVALID_MODEL')
  const { path, offset, dtype: stored, shape } = entry
  const type = Object.hasOwn(types, stored) ? types[stored] : undefined
  if (type === undefined) {
    const supported = Object.keys(types).join(', ')
    throw new HogwildError(
      `${path}: tensor "${file}" is ${describe(stored)}; supported: ${supported}`,
      'HOGWILD_UNSUPPORTED',
    )
  }
  if (shape.length !== expected.length || shape.some((size, i) => size !== expected[i])) {
    throw new HogwildError(
      `${path}: tensor "${file}" is [${shape}], and [${expected}] by ${described}`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  return { path, offset, type }
}

function refuseUnknown(
  config: ModelConfig,
  used: ReadonlySet<string>,
  tensors: ReadonlyMap<string, TensorEntry>,
  { isHarmless, described }: TensorNames,
): void {
  const unknown = [...tensors.values()].filter(({ name }) => !used.has(name) && !isHarmless(name))
  const [first] = unknown
  if (first === undefined) return
  const named = unknown.slice(0, MAX_NAMED).map(({ name }) => describe(name))
  const more = unknown.length > named.length ? ` and ${unknown.length - named.length} more` : ''
  const have = unknown.length > 1 ? 'have' : 'has'
  throw new HogwildError(
    `${first.path}: ${named.join(', ')}${more} ${have} no place in a ${config.architecture} as ${described} describes it, and may change what the model computes`,
    'HOGWILD_INVALID_MODEL',
  )
}
