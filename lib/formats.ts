// Formats in which weights, keys and values are stored.

/** Bytes of an element. */
export const DTYPE_BYTES = { f32: 4, f16: 2, bf16: 2 } as const

export type Dtype = keyof typeof DTYPE_BYTES

export const DTYPES = Object.keys(DTYPE_BYTES) as readonly Dtype[]
