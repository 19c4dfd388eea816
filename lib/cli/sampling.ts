// Options of commands that generate text.

import type { SamplerOptions } from '../index'

export interface SamplingOptions {
  temperature: number
  topK?: number
  topP?: number
  minP?: number
  seed: number
}

/** Of a worker; workers are the same but for the seed. */
export function samplerOptions(options: SamplingOptions, worker: number): SamplerOptions {
  const { temperature, topK, topP, minP, seed } = options
  return {
    temperature,
    seed: seed + worker,
    ...(topK !== undefined && { topK }),
    ...(topP !== undefined && { topP }),
    ...(minP !== undefined && { minP }),
  }
}
