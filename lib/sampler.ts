// How a token is chosen from logits. The arithmetic is the device's (native/device/ops.h, SampleParams).

import { HogwildError } from './errors'
import type { NativeSampler } from './native'
import {
  checkInteger,
  checkNumber,
  checkObject,
  checkOneOf,
  checkOptions,
  checkTokens,
  invalid,
  optionKeys,
  readable,
} from './validate'

/** Which tokens count as seen: those of the worker's view, or those of its own block. See `SamplerOptions.scope`. */
export type PenaltyScope = 'view' | 'own'

/** How a token is chosen. In this order: forbidden tokens, penalties, temperature, top-k, top-p, min-p, one draw. */
export interface SamplerOptions {
  /** Divides the logits; default 1. 0: greedy, the largest logit, ties to the lowest id. */
  temperature?: number | undefined
  /** Keeps the k most likely tokens; default 0: all. */
  topK?: number | undefined
  /** Keeps the fewest most likely tokens that reach this probability together, in (0, 1]; default 1: all. */
  topP?: number | undefined
  /** Drops tokens less likely than this share of the most likely one, in [0, 1]; default 0: none. */
  minP?: number | undefined
  /** Divides positive and multiplies negative logits of tokens that were seen, > 0; default 1: off. */
  repetitionPenalty?: number | undefined
  /** Subtracted from the logits of tokens that were seen, in [-100, 100]; default 0: off. */
  presencePenalty?: number | undefined
  /** Subtracted once for each time that the token was seen, in [-100, 100]; default 0: off. */
  frequencyPenalty?: number | undefined
  /**
   * Which tokens count as seen for the penalties, those of this very step included: 'view', all that the worker's view
   * shows, others' text and the prompt too; 'own', those of the block that it writes to. Default 'view'.
   */
  scope?: PenaltyScope | undefined
  /**
   * Only the last so many of them, at least 1: those at the last `lastN` places of the view up to the new token, in the
   * order of its list (a hidden block keeps its places), or of the worker's own block. Default: all.
   */
  lastN?: number | undefined
  /** Token ids that never come out. */
  forbidden?: ArrayLike<number> | undefined
  /** 64 bits; default: at random. The same seed gives the same draws, whatever else runs beside. */
  seed?: number | bigint | undefined
}

const SAMPLER_KEYS = optionKeys<SamplerOptions>()({
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  repetitionPenalty: true,
  presencePenalty: true,
  frequencyPenalty: true,
  scope: true,
  lastN: true,
  forbidden: true,
  seed: true,
})

/**
 * What a sampler is and how far it is, as plain JSON data: what penalties count stands in the blocks. `version` changes
 * when older states can no longer be read.
 */
export interface SamplerState {
  /** Of this form of the state. */
  version: 1
  /** As in SamplerOptions, all of them; `lastN` 0: no limit. */
  options: Required<Omit<SamplerOptions, 'seed' | 'forbidden'>> & {
    /** Token ids that never come out. */
    forbidden: number[]
  }
  /** Decimal digits, as JSON has no integers of 64 bits. */
  seed: string
  /** Tokens drawn so far, as decimal digits. */
  draws: string
}

const STATE_KEYS = optionKeys<SamplerState>()({
  version: true,
  options: true,
  seed: true,
  draws: true,
})
// The seed stands beside them, as text.
const STATE_OPTION_KEYS = SAMPLER_KEYS.filter(
  (key): key is keyof SamplerState['options'] => key !== 'seed',
)
const STATE_VERSION = 1

const SEEDS = 2n ** 64n

/** Greedy: what a step does that is given no sampler. */
export const GREEDY: NativeSampler = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  scope: 'view',
  lastN: 0,
  forbidden: new Int32Array(0),
  seed: 0n,
  draw: 0n,
}

/**
 * Chooses one worker's tokens. Owns a seed and a counter of draws; a step that fails or is aborted
 * leaves the counter where it was, so that trying again gives the same token. One step at a time uses it:
 * another one meanwhile is refused with HOGWILD_BUSY.
 *
 * Order: forbidden, repetition penalty (arXiv 1909.05858), presence and frequency penalties (as in OpenAI's API),
 * temperature, top-k, top-p (arXiv 1904.09751),
 * min-p (arXiv 2407.01082), one draw. What a step does to the logits before (StepWorker's `logitBias`, `processLogits`,
 * `grammar`) comes first: then these are the logits that a sampler gets.
 */
export class Sampler {
  /** In [0, 2^64). */
  readonly seed: bigint
  /** With the next draw. */
  readonly #native: NativeSampler
  #busy = false

  /** Throws HOGWILD_INVALID_ARGUMENT. */
  constructor(options: SamplerOptions = {}) {
    options = checkOptions(options, 'sampler', SAMPLER_KEYS)
    this.#native = {
      temperature: checkNumber(
        options.temperature ?? 1,
        'sampler.temperature',
        'a number >= 0',
        (x) => x >= 0,
      ),
      topK: checkInteger(options.topK ?? 0, 'sampler.topK', 0, 2 ** 31 - 1),
      topP: checkNumber(
        options.topP ?? 1,
        'sampler.topP',
        'a number in (0, 1]',
        (x) => x > 0 && x <= 1,
      ),
      minP: checkNumber(
        options.minP ?? 0,
        'sampler.minP',
        'a number in [0, 1]',
        (x) => x >= 0 && x <= 1,
      ),
      repetitionPenalty: checkNumber(
        options.repetitionPenalty ?? 1,
        'sampler.repetitionPenalty',
        'a number > 0',
        (x) => x > 0,
      ),
      presencePenalty: checkPenalty(options.presencePenalty, 'sampler.presencePenalty'),
      frequencyPenalty: checkPenalty(options.frequencyPenalty, 'sampler.frequencyPenalty'),
      scope: checkOneOf(options.scope ?? 'view', 'sampler.scope', ['view', 'own']),
      lastN: options.lastN === undefined ? 0 : checkInteger(options.lastN, 'sampler.lastN', 1),
      forbidden: checkTokens(options.forbidden ?? [], 'sampler.forbidden', 2 ** 31 - 1),
      seed: checkSeed(options.seed),
      draw: 0n,
    }
    this.seed = this.#native.seed
  }

  /** Tokens drawn so far. */
  get draws(): bigint {
    return this.#native.draw
  }

  /**
   * A copy of what it is and of how far it is; during a step, as before it. `Sampler.restore` makes a sampler of it
   * that gives the same tokens for the same logits.
   */
  get state(): SamplerState {
    const { forbidden, lastN, seed, draw, ...options } = this.#native
    return {
      version: STATE_VERSION,
      options: { ...options, lastN, forbidden: Array.from(forbidden) },
      seed: `${seed}`,
      draws: `${draw}`,
    }
  }

  /**
   * A sampler in this state, as `state` gave it, maybe through JSON. Throws HOGWILD_UNSUPPORTED for the version of a
   * later release, HOGWILD_INVALID_ARGUMENT for what no sampler gave.
   */
  static restore(state: SamplerState): Sampler {
    const given = readable('state', undefined, () => checkObject(state, 'state').version)
    const version = checkInteger(given, 'state.version', 1)
    if (version !== STATE_VERSION) {
      throw new HogwildError(
        `the state of a sampler has version ${version}; this release reads version ${STATE_VERSION}`,
        'HOGWILD_UNSUPPORTED',
      )
    }
    const { options, seed, draws } = checkComplete(state, 'state', STATE_KEYS)
    const { lastN, ...others } = checkComplete(options, 'state.options', STATE_OPTION_KEYS)
    const sampler = new Sampler({
      ...others,
      lastN: lastN === 0 ? undefined : lastN,
      seed: checkCount(seed, 'state.seed'),
    })
    sampler.#native.draw = checkCount(draws, 'state.draws')
    return sampler
  }

  /** @internal */
  static is(value: unknown): value is Sampler {
    return typeof value === 'object' && value !== null && #native in value
  }

  /** @internal The next draw: for a call that reads it at once. */
  next(): Readonly<NativeSampler> {
    return this.#native
  }

  /** @internal These never come out either. */
  forbid(ids: readonly number[]): void {
    this.#native.forbidden = Int32Array.from([...this.#native.forbidden, ...ids])
  }

  /** @internal A step uses it from now on. Throws HOGWILD_BUSY. */
  acquire(): void {
    if (this.#busy) {
      throw new HogwildError('the sampler is in use by a step that has not ended', 'HOGWILD_BUSY')
    }
    this.#busy = true
  }

  /** @internal The step has ended. `draws`: those that it made. */
  release(draws: number): void {
    this.#busy = false
    this.#native.draw += BigInt(draws)
  }
}

/** A copy of an object that has all of the keys and no others. */
function checkComplete<T extends object>(
  value: T,
  name: string,
  keys: readonly (keyof T & string)[],
): T {
  const copy = checkOptions(value, name, keys)
  const missing = keys.find((key) => copy[key] === undefined || copy[key] === null)
  if (missing !== undefined) throw invalid(`${name}.${missing}`, 'a part of the state', undefined)
  return copy
}

/** The integer in [0, 2^64) that decimal digits say. */
function checkCount(value: unknown, name: string): bigint {
  const count = typeof value === 'string' && /^(0|[1-9]\d{0,19})$/.test(value) && BigInt(value)
  if (count === false || count >= SEEDS) {
    throw invalid(name, 'the decimal digits of an integer in [0, 2^64)', value)
  }
  return count
}

function checkPenalty(penalty: number | undefined, name: string): number {
  return checkNumber(penalty ?? 0, name, 'a number in [-100, 100]', (x) => Math.abs(x) <= 100)
}

function checkSeed(seed: unknown): bigint {
  if (seed === undefined) return crypto.getRandomValues(new BigUint64Array(1))[0] as bigint
  const value = Number.isSafeInteger(seed) ? BigInt(seed as number) : seed
  if (typeof value !== 'bigint' || value < 0n || value >= SEEDS) {
    throw invalid('sampler.seed', 'an integer in [0, 2^64)', seed)
  }
  return value
}
