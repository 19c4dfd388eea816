/** A run in the combined layout, in which everybody writes one token per step; `turn`: tokens of a turn, 0: none ends. */
export function syntheticTrace(options: {
  workers: number
  steps: number
  attention?: boolean
  turn?: number
  seed?: number
}): string
/** A run whose every string is hostile. */
export function hostileTrace(): string
/** What tokens, names and messages may hold at worst. */
export const HOSTILE: string[]
