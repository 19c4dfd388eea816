// How fast the demo goes: steps per second, which keys double and halve.

const FASTEST = 64
const SLOWEST = 0.5

export class Pace {
  #stepsPerSecond: number
  #isHeld = false

  /** `stepsPerSecond` 0: as fast as possible. */
  constructor(stepsPerSecond: number) {
    this.#stepsPerSecond = stepsPerSecond === 0 ? Number.POSITIVE_INFINITY : stepsPerSecond
  }

  /** From one step to the next. */
  get milliseconds(): number {
    return this.#isHeld ? Number.POSITIVE_INFINITY : 1000 / this.#stepsPerSecond
  }

  faster(): void {
    this.#isHeld = false
    this.#stepsPerSecond = Math.max(
      this.#stepsPerSecond,
      Math.min(FASTEST, this.#stepsPerSecond * 2),
    )
  }

  slower(): void {
    this.#isHeld = false
    const half = Math.min(FASTEST, this.#stepsPerSecond / 2)
    this.#stepsPerSecond = Math.min(this.#stepsPerSecond, Math.max(SLOWEST, half))
  }

  /** Waits until it is called again. */
  hold(): void {
    this.#isHeld = !this.#isHeld
  }

  /** At most five characters, so that what stands behind them seldom moves. */
  toString(): string {
    if (this.#isHeld) return 'held'
    return this.#stepsPerSecond === Number.POSITIVE_INFINITY
      ? 'full'
      : `${Number(this.#stepsPerSecond.toFixed(1))}/s`
  }
}
