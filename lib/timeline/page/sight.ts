// The part of an axis that is in sight: zoom and pan, within the run.

import type { Axis, Timeline } from './timeline'

export class Sight {
  begin = 0
  end = 1
  readonly #timeline: Timeline
  #axis: Axis

  constructor(timeline: Timeline, axis: Axis) {
    this.#timeline = timeline
    this.#axis = axis
    this.all()
  }

  /** The whole run. */
  all(): void {
    ;[this.begin, this.end] = this.#timeline.range(this.#axis)
  }

  /** The same steps on another axis. */
  turn(axis: Axis): void {
    const { steps } = this.#timeline
    if (steps === 0 || axis === this.#axis) return
    const isAll = this.#isAll()
    const [first, last] = [this.#step(this.begin), this.#step(this.end)]
    this.#axis = axis
    if (isAll) {
      this.all()
      return
    }
    this.begin = this.#timeline.left(first, axis)
    this.end = this.#timeline.right(last, axis)
    this.#bound()
  }

  pan(share: number): void {
    const by = share * (this.end - this.begin)
    this.begin += by
    this.end += by
    this.#bound()
  }

  /** `at`: the place that stays where it is, as a share of what is in sight. */
  zoom(factor: number, at: number): void {
    const range = this.end - this.begin
    const place = this.begin + at * range
    const next = Math.max(this.#least, Math.min(this.#most, range * factor))
    this.begin = place - at * next
    this.end = this.begin + next
    this.#bound()
  }

  /** Moves so that a step can be seen, with some of what is around it. */
  reveal(step: number): void {
    const { left, right } = this.#placesOf(step)
    const range = this.end - this.begin
    if (left >= this.begin && right <= this.end) return
    const margin = range * 0.15
    if (left < this.begin) this.begin = left - margin
    else this.begin = Math.max(right + margin - range, left - range * 0.85)
    this.end = this.begin + range
    this.#bound()
  }

  /** Where the middle of a step stands, as a share of what is in sight. */
  shareOf(step: number): number {
    const { left, right } = this.#placesOf(step)
    const share = ((left + right) / 2 - this.begin) / (this.end - this.begin)
    return share >= 0 && share <= 1 ? share : 0.5
  }

  get #most(): number {
    const [first, last] = this.#timeline.range(this.#axis)
    return last - first
  }

  /** A few steps. */
  get #least(): number {
    const { steps } = this.#timeline
    return Math.min(this.#most, this.#axis === 'steps' ? 4 : (this.#most / Math.max(4, steps)) * 2)
  }

  #isAll(): boolean {
    const [first, last] = this.#timeline.range(this.#axis)
    return this.begin <= first && this.end >= last
  }

  #step(place: number): number {
    return this.#timeline.stepAt(place, this.#axis)
  }

  #placesOf(step: number) {
    const { steps } = this.#timeline
    if (steps === 0) return { left: this.begin, right: this.end }
    return {
      left: this.#timeline.left(step, this.#axis),
      right: this.#timeline.right(step, this.#axis),
    }
  }

  #bound(): void {
    const [first, last] = this.#timeline.range(this.#axis)
    const range = Math.min(this.end - this.begin, last - first)
    this.begin = Math.max(first, Math.min(last - range, this.begin))
    this.end = this.begin + range
  }
}
