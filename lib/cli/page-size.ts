import type { Model } from '../index'

/** Tokens per page of a model's caches. */
export async function pageSizeOf(model: Model): Promise<number> {
  await using cache = model.createCache({ capacity: 1 })
  return cache.stats.pageSize
}
