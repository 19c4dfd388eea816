// The tensors of a mixture of experts, which files hold one by one or stacked.

import type { ExpertNames } from '../families'
import { FORMATS } from '../formats'
import type { Role } from '../roles'
import { type Part, rowsOf, type StoredTensor } from './stored-tensor'

const MXFP4_BLOCK = FORMATS.mxfp4.elements

/** Whether a role of a layer belongs to its mixture of experts. */
export function isOfExperts({ name }: Role): boolean {
  return /^(router|experts\.)/.test(name)
}

/**
 * The tensors, without what comes before their names, that hold `roles`: those of one layer's mixture of experts.
 * `has` says which tensors there are.
 */
export function expertTensors(
  { separate, stacked, transposed = false }: ExpertNames,
  roles: readonly Role[],
  has: (file: string) => boolean,
): StoredTensor[] {
  const byName = new Map(roles.map((role) => [role.name, role]))
  const count = byName.get('router')?.rows ?? 0
  const stacks = Object.entries(stacked)
  const isStacked = stacks.some(([file, names]) => names.includes('gate_proj') && has(file))
  if (separate !== undefined && !isStacked) {
    return roles.map((role) => {
      const [first, expert, name = first] = role.name.split('.') as [string, string?, string?]
      return rowsOf((separate[name] as string).replace('*', String(expert)), [role])
    })
  }
  return stacks.flatMap(([file, names]) => {
    const whole = names.flatMap((name) => byName.get(name) ?? [])
    if (whole.length > 0) return [rowsOf(file, whole)]
    const slice = names.flatMap((name) => byName.get(`experts.0.${name}`) ?? [])
    if (slice.length === 0) return []
    const of = (e: number) => names.map((name) => byName.get(`experts.${e}.${name}`) as Role)
    const slices = Array.from({ length: count }, (_, e) => of(e))
    return [has(`${file}_blocks`) ? mxfp4Stack(file, slices) : stack(file, slices, transposed)]
  })
}

/** `slices[e]` are the roles of expert e, of one size each. */
function stack(file: string, slices: readonly Role[][], transposed: boolean): StoredTensor {
  const [{ rows, cols, isVector }] = slices[0] as [Role]
  const n = slices[0]?.length as number
  const place = (e: number, i: number): Omit<Part, 'role'> => {
    const begin = e * n * rows * cols
    if (!transposed) return { offset: begin + i * rows * cols }
    if (isVector) return { offset: begin + i, strides: { row: n * cols, col: n } }
    return { offset: begin + i, strides: { row: n, col: n * rows } }
  }
  const height = n * (isVector ? cols : rows)
  const slice = isVector ? [height] : transposed ? [cols, height] : [height, cols]
  return {
    file,
    shape: [slices.length, ...slice],
    parts: slices.flatMap((roles, e) => roles.map((role, i) => ({ role, ...place(e, i) }))),
  }
}

/** Codes [E, rows, cols / 32, 16] and exponents [E, rows, cols / 32]; rows of the roles take turns. */
function mxfp4Stack(file: string, slices: readonly Role[][]): StoredTensor {
  const [{ rows, cols }] = slices[0] as [Role]
  const n = slices[0]?.length as number
  const blocks = [slices.length, n * rows, cols / MXFP4_BLOCK]
  const parts = slices.flatMap((roles, e) =>
    roles.map((role, i) => ({
      role,
      offset: (e * n * rows + i) * cols,
      strides: { row: n * cols, col: 1 },
    })),
  )
  return {
    file: `${file}_blocks`,
    shape: [...blocks, MXFP4_BLOCK / 2],
    parts,
    exponents: { file: `${file}_scales`, shape: blocks },
  }
}
