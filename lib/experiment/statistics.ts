// Means and what they are worth.

import { random } from './random'

/** The standard normal quantile of 97.5 %. */
const Z = 1.959963984540054

export interface Interval {
  low: number
  high: number
}

/** NaN of no values. Summed in their order, so that equal lists give equal bits. */
export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}

/**
 * The 95 % Wilson score interval of a share: `share` in [0, 1] of `n` independent observations. For the mean of scores
 * between 0 and 1 it is wider than need be: none of that mean varies more than right and wrong do.
 */
export function wilson(share: number, n: number): Interval {
  if (n === 0) return { low: 0, high: 1 }
  const spread = Z ** 2 / n
  const middle = (share + spread / 2) / (1 + spread)
  const half = (Z / (1 + spread)) * Math.sqrt((share * (1 - share)) / n + spread / (4 * n))
  // At the ends the formula gives 0 and 1 up to rounding.
  return {
    low: share === 0 ? 0 : Math.max(0, middle - half),
    high: share === 1 ? 1 : Math.min(1, middle + half),
  }
}

const DRAWS = 1000
const SEED = 1

/**
 * The 95 % interval of what `statistic` says of `count` items: percentiles over as many items, drawn with replacement, 1000
 * times. It is given their places; of the same items it gives the same interval. Draws of which it says nothing (NaN) do
 * not count.
 */
export function resampled(
  count: number,
  statistic: (places: readonly number[]) => number,
): Interval {
  const next = random(SEED)
  const draw = () => Array.from({ length: count }, () => Math.floor(next() * count))
  const values = Array.from({ length: DRAWS }, () => statistic(draw()))
    .filter((value) => !Number.isNaN(value))
    .sort((a, b) => a - b)
  const at = (share: number) => values[Math.round(share * (values.length - 1))] as number
  return { low: at(0.025), high: at(0.975) }
}
