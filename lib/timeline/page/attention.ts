// Where workers looked, by lane: the shares of a view's entries, added up by whose block it is.

import type { TimelineEntry } from '../data'
import { firstAtLeast, type Timeline } from './timeline'

export class Attention {
  /** Cells that tell it, ascending. */
  readonly cells: Uint32Array
  /** Lanes: one per worker, then one of what everybody sees. */
  readonly lanes: number
  readonly #timeline: Timeline
  /** [cells, lanes] */
  readonly #shares: Float32Array

  constructor(timeline: Timeline) {
    const { events, blocks, steps } = timeline.data
    this.#timeline = timeline
    this.lanes = timeline.workers + 1
    this.cells = Uint32Array.from(steps.attention, ([cell]) => cell!)
    this.#shares = new Float32Array(this.cells.length * this.lanes)
    const views: (readonly TimelineEntry[])[] = []
    let next = 0
    for (const [row, [cell, ...shares]] of steps.attention.entries()) {
      const step = timeline.stepOfCell[cell!]!
      for (; next < events.length && events[next]!.at <= step; next++) {
        const event = events[next]!
        if (event.type === 'view') views[event.worker] = event.entries
      }
      const view = views[steps.workers[cell!]!]!
      for (const [i, share] of shares.entries()) {
        const { kind, owner } = blocks[view[i]!.block]!
        const lane = kind === 'common' ? timeline.workers : owner
        this.#shares[row * this.lanes + lane]! += share
      }
    }
  }

  /**
   * Means over the steps `from` to `to - 1` of those cells that tell it, [workers, lanes]: how much of its attention each
   * worker gave to each lane. A row without cells is 0.
   */
  mean(from: number, to: number): Float64Array {
    const { workers, cellBegin, data } = this.#timeline
    const sums = new Float64Array(workers * this.lanes)
    const counts = new Uint32Array(workers)
    const begin = firstAtLeast(this.cells, cellBegin[Math.max(0, from)]!)
    const end = firstAtLeast(this.cells, cellBegin[Math.min(to, this.#timeline.steps)]!)
    for (let row = begin; row < end; row++) {
      const worker = data.steps.workers[this.cells[row]!]!
      counts[worker]!++
      for (let lane = 0; lane < this.lanes; lane++) {
        sums[worker * this.lanes + lane]! += this.#shares[row * this.lanes + lane]!
      }
    }
    return sums.map((sum, i) => sum / Math.max(1, counts[Math.floor(i / this.lanes)]!))
  }
}
