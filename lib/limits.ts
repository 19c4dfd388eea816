// Limits of the native kernels that JavaScript checks before it calls them.

/** D: a multiple of `step`, at most `max`. */
export const HEAD_DIM = { step: 8, max: 256 } as const
