// A run as the page goes through it: steps, cells (what one worker brings to one step), events, and where they stand.

import type { TimelineData, TimelineEvent } from '../data'

/** What the horizontal axis counts. */
export type Axis = 'steps' | 'time'

export class Timeline {
  readonly data: TimelineData
  readonly steps: number
  readonly cells: number
  readonly workers: number
  /** First cell of each step; one more for the end. */
  readonly cellBegin: Uint32Array
  /** First token id of each cell; one more for the end. */
  readonly idBegin: Uint32Array
  readonly stepOfCell: Uint32Array
  /** By worker: its cells, in order. */
  readonly cellsOf: readonly (readonly number[])[]
  readonly hasTimes: boolean
  /** Milliseconds. */
  readonly duration: number

  constructor(data: TimelineData) {
    const { sizes, counts, workers, ends } = data.steps
    this.data = data
    this.steps = sizes.length
    this.cells = counts.length
    this.workers = data.workers.length
    this.cellBegin = sums(sizes)
    this.idBegin = sums(counts)
    this.stepOfCell = new Uint32Array(this.cells)
    const cellsOf: number[][] = data.workers.map(() => [])
    for (let step = 0; step < this.steps; step++) {
      for (let cell = this.cellBegin[step]!; cell < this.cellBegin[step + 1]!; cell++) {
        this.stepOfCell[cell] = step
        cellsOf[workers[cell]!]!.push(cell)
      }
    }
    this.cellsOf = cellsOf
    this.hasTimes = data.head !== null && this.steps > 0
    this.duration = Math.max(ends.at(-1) ?? 0, data.events.at(-1)?.time ?? 0)
  }

  /** The worker's cell in a step; -1: it takes no part. */
  cellAt(step: number, worker: number): number {
    if (step < 0 || step >= this.steps) return -1
    const { workers } = this.data.steps
    for (let cell = this.cellBegin[step]!; cell < this.cellBegin[step + 1]!; cell++) {
      if (workers[cell] === worker) return cell
    }
    return -1
  }

  textOf(cell: number): string {
    return this.data.texts[this.data.steps.texts[cell]!]!
  }

  idsOf(cell: number): number[] {
    return this.data.steps.ids.slice(this.idBegin[cell]!, this.idBegin[cell + 1]!)
  }

  /** Where a step begins and ends on an axis. */
  left(step: number, axis: Axis): number {
    if (axis === 'steps') return step
    const { ends, milliseconds } = this.data.steps
    const begin = ends[step]! - milliseconds[step]!
    return Math.max(begin, step > 0 ? ends[step - 1]! : 0)
  }

  right(step: number, axis: Axis): number {
    return axis === 'steps' ? step + 1 : this.data.steps.ends[step]!
  }

  /** Where an event stands: in front of the step that follows it. */
  placeOf(event: TimelineEvent, axis: Axis): number {
    return axis === 'steps' ? event.at : (event.time ?? 0)
  }

  /** The first and the last place of an axis. In front of the first step there is room for the prompt. */
  range(axis: Axis): [number, number] {
    return axis === 'steps' ? [-1, Math.max(this.steps, 1)] : [0, Math.max(this.duration, 1e-3)]
  }

  /** The step that stands at a place or, between two, the one behind it; within the run. */
  stepAt(place: number, axis: Axis): number {
    let step = Math.floor(place)
    if (axis === 'time') step = firstAtLeast(this.data.steps.ends, place)
    return Math.max(0, Math.min(this.steps - 1, step))
  }
}

/** 0, then the sum up to each of them. */
function sums(sizes: readonly number[]): Uint32Array {
  const begins = new Uint32Array(sizes.length + 1)
  for (let i = 0; i < sizes.length; i++) begins[i + 1] = begins[i]! + sizes[i]!
  return begins
}

/** Index of the first of ascending numbers that is not below `least`; how many there are, if none. */
export function firstAtLeast(ascending: ArrayLike<number>, least: number): number {
  let [low, high] = [0, ascending.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (ascending[middle]! < least) low = middle + 1
    else high = middle
  }
  return low
}
