// The tensors of a model's files by role, with the shapes that the roles have; matrices that hold several roles are cut into
// slices of rows. What files call them is a table of each kind of source.

import { HogwildError } from '../errors'
import type { ModelConfig } from '../families'
import { type Format, storedBytes } from '../formats'
import type { NativeTensor } from '../native'
import { layerRoles, modelRoles, type Role } from '../roles'
import { describe } from '../validate'

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
  /** Tensors of a layer that hold several roles, top to bottom. */
  fused: Readonly<Record<string, readonly string[]>>
  formats: Readonly<Record<string, Format>>
  /** Roles of a layer whose heads have RoPE pairs as neighbours. */
  interleaved: readonly string[]
  /** Tensors that play no part. */
  isHarmless(name: string): boolean
  /** What says how large they must be, for messages. */
  described: string
}

/** How many unknown tensors a message names. */
const MAX_NAMED = 10

/** One tensor of the files: the name there, and the roles it fills, top to bottom. */
interface Wanted {
  file: string
  roles: readonly LocatedRole[]
}

interface LocatedRole extends Role {
  interleaved?: { headDim: number; rotaryDim: number }
}

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
  const found: NativeTensor[] = []
  for (const wanted of wantedTensors(config, tensors, names)) {
    found.push(...locate(wanted, tensors, names))
    used.add(wanted.file)
  }
  refuseUnknown(config, used, tensors, names)
  return found
}

function* wantedTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
  names: TensorNames,
): Generator<Wanted> {
  for (const role of modelRoles(config)) {
    const file = names.model[role.name] as string
    // A stored output matrix counts, even where the configuration calls it tied: it may be another one.
    if (role.name === 'lm_head' && config.tiedEmbeddings && !tensors.has(file)) continue
    yield { file, roles: [role] }
  }
  for (const [i, layer] of config.layers.entries()) {
    const rotaryDim = config.ropes[Math.max(layer.rope, 0)]?.rotaryDim ?? config.headDim
    const interleaved = { headDim: config.headDim, rotaryDim }
    const located = (role: Role): LocatedRole => ({
      ...role,
      name: `layers.${i}.${role.name}`,
      ...(names.interleaved.includes(role.name) && { interleaved }),
    })
    for (const { file, roles } of layerFiles(names, layerRoles(config, layer))) {
      yield { file: names.layer(i) + file, roles: roles.map(located) }
    }
  }
}

/** The files' tensors of one layer, without what comes before their names. */
function layerFiles(names: TensorNames, roles: readonly Role[]): Wanted[] {
  const files = new Map<string, Role[]>()
  for (const role of roles) {
    const file = layerFile(names, role.name)
    files.set(file, [...(files.get(file) ?? []), role])
  }
  return Array.from(files, ([file, parts]) => ({ file, roles: parts }))
}

function layerFile({ fused, layers }: TensorNames, role: string): string {
  for (const [file, roles] of Object.entries(fused)) if (roles.includes(role)) return file
  return layers[role] as string
}

function locate(
  wanted: Wanted,
  tensors: ReadonlyMap<string, TensorEntry>,
  { formats, described }: TensorNames,
): NativeTensor[] {
  const { file, roles } = wanted
  const [{ cols, isVector }] = roles as [Role]
  const entry = tensors.get(file)
  if (entry === undefined)
    throw new HogwildError(`tensor "${file}" is missing`, 'HOGWILD_INVALID_MODEL')
  const { path, offset, dtype: stored, shape } = entry
  const format = Object.hasOwn(formats, stored) ? formats[stored] : undefined
  if (format === undefined) {
    const supported = Object.keys(formats).join(', ')
    throw new HogwildError(
      `${path}: tensor "${file}" is ${describe(stored)}; supported: ${supported}`,
      'HOGWILD_UNSUPPORTED',
    )
  }
  const rows = roles.reduce((sum, role) => sum + role.rows, 0)
  const expected = isVector ? [cols] : [rows, cols]
  if (shape.length !== expected.length || shape.some((size, i) => size !== expected[i])) {
    throw new HogwildError(
      `${path}: tensor "${file}" is [${shape}], and [${expected}] by ${described}`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  let row = 0
  return roles.map(({ name, rows, interleaved }) => {
    const start = offset + storedBytes(format, row, cols)
    row += rows
    return { name, path, offset: start, format, rows, cols, ...(interleaved && { interleaved }) }
  })
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
