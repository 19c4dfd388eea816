// Where the entries of a view stand (docs/semantics.md, "Entries of a view"). Runs in browsers too (lib/timeline/page).

/** Where an entry stands in a step. */
export interface Place {
  /** View position of its first token. */
  start: number
  /** Tokens that it shows. */
  shown: number
}

/** Tokens of a block: before a step, and what the step appends. */
export interface BlockGrowth {
  before: number
  appended: number
}

/** The places of the entries up to the one that is written, `entries[written]`: nothing behind it is seen. */
export function placeEntries<E extends { at?: number | undefined; lag?: 0 | 1 | undefined }>(
  entries: readonly E[],
  written: number,
  growthOf: (entry: E) => BlockGrowth,
): Place[] {
  let end = 0
  return entries.slice(0, written + 1).map((entry, i) => {
    const { before, appended } = growthOf(entry)
    const start = entry.at ?? end
    const shown = entry.lag === 1 && i !== written ? before : before + appended
    end = start + shown
    return { start, shown }
  })
}

/** The view position behind the last token that is shown; 0 where none is. */
export function endOf(places: readonly Place[]): number {
  return places.reduce(
    (end, { start, shown }) => (shown > 0 ? Math.max(end, start + shown) : end),
    0,
  )
}
