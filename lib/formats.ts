// Formats in which weights, keys and values are stored.

export const DTYPES = ['f32', 'f16', 'bf16'] as const

export type Dtype = (typeof DTYPES)[number]
