// Numbers drawn with a seed: the same on every machine.

/** mulberry32: uniform in [0, 1). */
export function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** `count` of the values, none twice, in random order. */
export function sample<T>(values: readonly T[], count: number, next: () => number): T[] {
  const rest = [...values]
  return Array.from(
    { length: count },
    () => rest.splice(Math.floor(next() * rest.length), 1)[0] as T,
  )
}

/** An integer, both ends included. */
export function between(least: number, most: number, next: () => number): number {
  return least + Math.floor(next() * (most - least + 1))
}
