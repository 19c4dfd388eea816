// Formats in which weights, keys and values are stored.

import type { Dtype } from './native'

export const DTYPES = ['f32', 'f16', 'bf16'] as const satisfies readonly Dtype[]
