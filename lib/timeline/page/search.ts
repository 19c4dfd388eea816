// Looks for a string in what workers wrote and in what was given, across tokens and without regard to case.

import { separatorOf } from './blocks'
import { firstAtLeast, type Timeline } from './timeline'

/** A place where the string stands. */
export interface Match {
  /** A worker; the number of workers: what everybody sees. */
  lane: number
  step: number
  /** First and last cell; -1: in a text that is no cell's. */
  from: number
  to: number
}

/** Beyond so many nobody counts. */
const MOST = 10_000

export function search(timeline: Timeline, query: string): Match[] {
  if (query === '') return []
  const pattern = patternOf(query)
  const matches = timeline.cellsOf.flatMap((cells, lane) => inCells(timeline, cells, lane, pattern))
  for (const event of timeline.data.events) {
    if (event.type !== 'prefill') continue
    const { kind, owner } = timeline.data.blocks[event.block]!
    const lane = kind === 'common' ? timeline.workers : owner
    const step = Math.min(event.at, timeline.steps - 1)
    for (const _ of timeline.data.texts[event.text]!.matchAll(pattern)) {
      matches.push({ lane, step, from: -1, to: -1 })
    }
  }
  return matches.sort((one, other) => one.step - other.step).slice(0, MOST)
}

/** The cells in which it stands. */
export function cellsOf({ lane, from, to }: Match, timeline: Timeline): readonly number[] {
  const cells = timeline.cellsOf[lane]
  if (from < 0 || cells === undefined) return []
  return cells.slice(firstAtLeast(cells, from), firstAtLeast(cells, to + 1))
}

/** Finds it as it is written, without regard to case. */
export function patternOf(query: string): RegExp {
  return new RegExp(query.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&'), 'gi')
}

function inCells(
  timeline: Timeline,
  cells: readonly number[],
  lane: number,
  pattern: RegExp,
): Match[] {
  const texts = cells.map((cell) => timeline.textOf(cell))
  const separator = separatorOf(timeline)
  const joined = texts.join(separator)
  const gap = separator.length
  const matches: Match[] = []
  let [i, begin] = [0, 0]
  for (const { index, 0: found } of joined.matchAll(pattern)) {
    while (begin + texts[i]!.length <= index) begin += texts[i++]!.length + gap
    let [last, end] = [i, begin + texts[i]!.length]
    while (end < index + found.length) end += texts[++last]!.length + gap
    const [from, to] = [cells[i]!, cells[last]!]
    matches.push({ lane, step: timeline.stepOfCell[from]!, from, to })
    if (matches.length === MOST) break
  }
  return matches
}
