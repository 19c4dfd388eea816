// Sizes that more than one file must agree on.

/** Tokens that a cache holds when not told. */
export const DEFAULT_CAPACITY = 8192
/** Tokens that a cache may be asked to hold. */
export const MAX_CAPACITY = 2 ** 40
/** Tokens of a page of a cache. */
export const PAGE_TOKENS = 64
export const pagesFor = (tokens: number): number => Math.ceil(tokens / PAGE_TOKENS)
/** Threads of a CPU device. */
export const MAX_THREADS = 1024
/** D, the size of a head: a multiple of `step`, at most `max`. */
export const HEAD_DIM = { step: 8, max: 256 } as const
/** Layers of a model: many times those of the deepest known. */
export const MAX_LAYERS = 4096
/** Experts of a layer, in the same way. One alone is no mixture. */
export const EXPERTS = { min: 2, max: 4096 } as const
