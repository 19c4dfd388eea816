// How the tensors of files hold roles.

import type { Role } from '../roles'

/** A tensor of the files: its name and shape there, and the roles that it fills. */
export interface StoredTensor {
  file: string
  shape: readonly number[]
  parts: readonly Part[]
  /** The tensor with the exponents, where this one holds the codes of mxfp4. */
  exponents?: { file: string; shape: readonly number[] }
}

/** Where a role begins in a tensor and, as in `NativeTensor`, how it goes on. Distances in elements. */
export interface Part {
  role: Role
  offset: number
  interleaved?: { headDim: number; rotaryDim: number }
  strides?: { row: number; col: number }
}

/** A tensor that holds these roles, top to bottom: matrices of one width, or vectors. */
export function rowsOf(file: string, roles: readonly Role[]): StoredTensor {
  const [{ cols, isVector }] = roles as [Role]
  let elements = 0
  const parts = roles.map((role) => {
    const offset = elements
    elements += role.rows * role.cols
    return { role, offset }
  })
  return { file, shape: isVector ? [elements] : [elements / cols, cols], parts }
}
