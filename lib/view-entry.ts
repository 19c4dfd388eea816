// What an entry of a view may say beside its block.

import { checkInteger, checkNumber, invalid } from './validate'

/** The largest position in a view, and the largest start of an entry. */
export const MAX_VIEW_POSITION = 2 ** 24

const TEMPERATURE = { min: 1e-6, max: 1e6 }
/** Sums of it and a score, and differences of two such, stay within float32. */
const MAX_BIAS = 1e38

/** How a block is seen. */
export interface EntryFields {
  /**
   * View position of the block's first token, an integer in [0, 2^24]. It stays there whatever is written before it,
   * and may stand anywhere: on the places of others, behind a gap, ahead of the worker's own tokens. The order of the
   * list alone decides what is seen; positions are for the rotary embedding (and for sliding windows). Default: where
   * the entry before ends, 0 for the first.
   */
  at?: number | undefined
  /**
   * 1: what others append to the block in a step is not there yet in that step, and takes no place; it is there in the
   * next. Without effect on the entry that is written. Default 0.
   */
  lag?: 0 | 1 | undefined
  /** In [1e-6, 1e6]; the scores of the entry's keys are divided by it, after a soft cap. Default 1. */
  temperature?: number | undefined
  /**
   * A log-weight that is then added to the scores: finite (beyond 1e38 and -1e38 it counts as these), or -Infinity, which
   * hides the block; it keeps its places. Default 0.
   */
  bias?: number | undefined
}

/** Fields with their defaults filled in; `at` is undefined where the entry follows the one before. */
export interface CheckedFields {
  at: number | undefined
  lag: 0 | 1
  temperature: number
  bias: number
}

/**
 * @param name of the entry, for messages.
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT
 */
export function checkEntryFields(fields: EntryFields, name: string): CheckedFields {
  const { at, lag = 0, temperature = 1, bias = 0 } = fields
  const { min, max } = TEMPERATURE
  return {
    at: at === undefined ? undefined : checkInteger(at, `${name}.at`, 0, MAX_VIEW_POSITION),
    lag: checkInteger(lag, `${name}.lag`, 0, 1) as 0 | 1,
    temperature: checkNumber(
      temperature,
      `${name}.temperature`,
      `a number in [${min}, ${max}]`,
      (x) => x >= min && x <= max,
    ),
    bias: checkBias(bias, `${name}.bias`),
  }
}

function checkBias(bias: unknown, name: string): number {
  if (bias === -Infinity) return bias
  if (typeof bias !== 'number' || !Number.isFinite(bias)) {
    throw invalid(name, 'a finite number or -Infinity', bias)
  }
  return Math.min(Math.max(bias, -MAX_BIAS), MAX_BIAS)
}
