// What a prefix store counts. Apart from it, so that the package's types need none of Node.js.

/** What a scheduler's `prefixes` have saved so far. */
export interface PrefixMetrics {
  /** How often pages were taken that had been kept. */
  hits: number
  /** Their tokens. */
  reusedTokens: number
  /** Pages that came from the folder. */
  loadedPages: number
  /** Pages that went there. */
  savedPages: number
  /** Files in it that were damaged, and are removed. */
  damagedFiles: number
}

export const noPrefixes = (): PrefixMetrics => ({
  hits: 0,
  reusedTokens: 0,
  loadedPages: 0,
  savedPages: 0,
  damagedFiles: 0,
})
