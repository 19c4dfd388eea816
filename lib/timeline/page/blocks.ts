// What stands in the blocks at any step, and what a worker saw there (docs/semantics.md, "Entries of a view"). Steps and
// events are gone through again, from the beginning or from where the last question was.

import { endOf, placeEntries } from '../../places'
import type { TimelineEntry, TimelineEvent } from '../data'
import type { Timeline } from './timeline'

/** Tokens `begin` to `end - 1` of a cell or, where the source is negative, of the prefill with event number `~source`. */
export interface Piece {
  source: number
  begin: number
  end: number
}

/** An entry of a view, as a worker saw it in a step. */
export interface SeenEntry {
  entry: TimelineEntry
  /** Place of its first token, and how many it shows. */
  start: number
  shown: number
  /** How many of them came in this step. */
  fresh: number
  isWritten: boolean
  /** It stands behind the entry that is written. */
  isBehind: boolean
  /** Of attention; undefined: nobody asked. */
  share: number | undefined
  pieces: readonly Piece[]
}

/** A worker's view in a step. */
export interface Seen {
  /** -1: the worker took no part; the view is the one that it had last. */
  cell: number
  entries: readonly SeenEntry[]
  /** The place behind the last token. */
  end: number
}

interface View {
  entries: readonly TimelineEntry[]
  write: number
}

export class Blocks {
  readonly #timeline: Timeline
  readonly #shares: ReadonlyMap<number, readonly number[]>
  #contents: Piece[][] = []
  #views: (View | undefined)[] = []
  /** How far it is. */
  #steps = 0
  #events = 0

  constructor(timeline: Timeline) {
    this.#timeline = timeline
    const { attention } = timeline.data.steps
    this.#shares = new Map(attention.map(([cell, ...shares]) => [cell!, shares]))
    this.#reset()
  }

  /** What stands in a block before a step; `step` may be the number of steps. */
  contentOf(block: number, step: number): readonly Piece[] {
    this.#goTo(step)
    return this.#contents[block]!
  }

  /** undefined: it had no view yet. */
  seen(step: number, worker: number): Seen | undefined {
    this.#goTo(step)
    const view = this.#views[worker]
    if (view === undefined) return undefined
    const cell = this.#timeline.cellAt(step, worker)
    const appended = this.#appendedIn(step)
    const { entries, write } = view
    const places = placeEntries(entries, write, ({ block }) => ({
      before: lengthOf(this.#contents[block]!),
      appended: lengthOf(appended.get(block) ?? []),
    }))
    const seen = entries.map((entry, i): SeenEntry => {
      const { start, shown } = places[i] ?? { start: 0, shown: 0 }
      const before = this.#contents[entry.block]!
      const fresh = shown > lengthOf(before) ? (appended.get(entry.block) ?? []) : []
      return {
        ...{ entry, start, shown, isWritten: i === write, isBehind: i > write },
        fresh: lengthOf(fresh),
        share: this.#shares.get(cell)?.[i],
        pieces: i > write ? [] : [...before, ...fresh],
      }
    })
    return { cell, entries: seen, end: endOf(places) }
  }

  /** By block: what the step brings. */
  #appendedIn(step: number): Map<number, Piece[]> {
    const { cellBegin, steps, data } = this.#timeline
    const appended = new Map<number, Piece[]>()
    if (step >= steps) return appended
    for (let cell = cellBegin[step]!; cell < cellBegin[step + 1]!; cell++) {
      const { entries, write } = this.#views[data.steps.workers[cell]!] as View
      const piece = { source: cell, begin: 0, end: data.steps.counts[cell]! }
      appended.set(entries[write]!.block, [piece])
    }
    return appended
  }

  #reset(): void {
    this.#contents = this.#timeline.data.blocks.map(() => [])
    this.#views = []
    this.#steps = 0
    this.#events = 0
  }

  /** To where the step begins: behind all steps before it, and all events in front of it. */
  #goTo(step: number): void {
    if (step < this.#steps) this.#reset()
    const { events } = this.#timeline.data
    for (;;) {
      const event = events[this.#events]
      if (event !== undefined && event.at <= this.#steps) {
        this.#apply(event)
        this.#events++
      } else if (this.#steps < step) {
        for (const [block, pieces] of this.#appendedIn(this.#steps)) {
          this.#contents[block]!.push(...pieces)
        }
        this.#steps++
      } else return
    }
  }

  #apply(event: TimelineEvent): void {
    const contents = this.#contents
    const of = (block: number) => contents[block]!
    switch (event.type) {
      case 'view':
        this.#views[event.worker] = event
        break
      case 'fork':
        contents[event.block] = [...of(event.from)]
        break
      case 'prefill':
        of(event.block).push({ source: ~this.#events, begin: 0, end: event.ids.length })
        break
      case 'move':
        contents[event.target] = [...of(event.target), ...of(event.source)]
        if (event.clear) contents[event.source] = []
        break
      case 'clear':
        contents[event.block] = []
        break
      case 'truncate':
        contents[event.block] = cut(of(event.block), 0, event.length)
        break
      case 'insert': {
        const target = of(event.target)
        const [before, behind] = [cut(target, 0, event.place), cut(target, event.place, Infinity)]
        contents[event.target] = [...before, ...of(event.source), ...behind]
        break
      }
      case 'forget': {
        const content = of(event.block)
        contents[event.block] = [
          ...cut(content, 0, event.begin),
          ...cut(content, event.end, Infinity),
        ]
        break
      }
      default:
        break
    }
  }
}

function lengthOf(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, { begin, end }) => sum + end - begin, 0)
}

/** Tokens `from` to `to - 1`. */
function cut(pieces: readonly Piece[], from: number, to: number): Piece[] {
  let at = 0
  return pieces.flatMap(({ source, begin, end }) => {
    const first = Math.max(begin, begin + from - at)
    const last = Math.min(end, begin + to - at)
    at += end - begin
    return first < last ? [{ source, begin: first, end: last }] : []
  })
}

/** Token ids of a piece. */
export function idsOf({ source, begin, end }: Piece, timeline: Timeline): number[] {
  if (source >= 0) return timeline.idsOf(source).slice(begin, end)
  const event = timeline.data.events[~source] as Extract<TimelineEvent, { type: 'prefill' }>
  return event.ids.slice(begin, end)
}

/** Its text; where it is a part of what came at once, its ids. */
export function textOf(piece: Piece, timeline: Timeline): string {
  const { source, begin, end } = piece
  const event = source < 0 ? timeline.data.events[~source] : undefined
  const whole = event?.type === 'prefill' ? event.ids.length : timeline.data.steps.counts[source]
  if (end - begin < whole!) return idsOf(piece, timeline).join(' ')
  return event?.type === 'prefill' ? timeline.data.texts[event.text]! : timeline.textOf(source)
}

/** What stands between the texts of two pieces: ids are apart. */
export function separatorOf({ data }: Timeline): string {
  return data.byIds ? ' ' : ''
}
