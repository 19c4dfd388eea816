// Means and what they are worth.

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
