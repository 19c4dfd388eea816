// How far something is that takes more than a second, on stderr: one line that is drawn again on a terminal and is
// gone at the end, plain lines now and then elsewhere.

import { inBytes, printable } from '../printable'
import { columnsOf, fittingLength } from './columns'

export type ShowProgress = (done: number, total: number) => void

const QUICK_MS = 1000
const REDRAW_MS = 100
/** Between plain lines. */
const LINE_MS = 10_000
const WIDEST_BAR = 30
const FALLBACK_COLUMNS = 80
const CLEAR_LINE = '\r\x1b[K'

/** 'bytes', or what is counted. */
export type Unit = 'bytes' | 'tokens' | 'runs' | 'cells'

/** Runs `work` and shows how far it says it is; with `quiet` nothing is shown. */
export async function withProgress<T>(
  label: string,
  unit: Unit,
  quiet: boolean | undefined,
  work: (show: ShowProgress) => Promise<T>,
): Promise<T> {
  if (quiet) return await work(() => {})
  const line = new ProgressLine(printable(label), unit)
  try {
    return await work((done, total) => line.show(done, total))
  } finally {
    line.end()
  }
}

class ProgressLine {
  readonly #isLive = process.stderr.isTTY && process.env.TERM !== 'dumb'
  readonly #began = performance.now()
  #shown = Number.NEGATIVE_INFINITY
  #first: { done: number; at: number } | undefined
  #isDrawn = false

  constructor(
    private readonly label: string,
    private readonly unit: Unit,
  ) {}

  show(done: number, total: number): void {
    const now = performance.now()
    // What was there before is no measure of the speed.
    this.#first ??= { done, at: now }
    if (now - this.#began < QUICK_MS) return
    if (now - this.#shown < (this.#isLive ? REDRAW_MS : LINE_MS)) return
    this.#shown = now
    const share = total > 0 ? Math.min(1, done / total) : 1
    const numbers = this.#numbers(done, total, share, now)
    if (!this.#isLive) {
      process.stderr.write(`${this.label}: ${numbers}\n`)
      return
    }
    const columns = process.stderr.columns || FALLBACK_COLUMNS
    const room = columns - columnsOf(this.label) - numbers.length - 5
    const width = Math.min(WIDEST_BAR, room)
    const filled = Math.round(width * share)
    const bar = width < 4 ? '' : ` [${'#'.repeat(filled)}${'.'.repeat(width - filled)}]`
    const text = `${this.label}${bar} ${numbers}`
    process.stderr.write(CLEAR_LINE + text.slice(0, fittingLength(text, columns - 1)))
    this.#isDrawn = true
  }

  end(): void {
    if (this.#isDrawn) process.stderr.write(CLEAR_LINE)
  }

  #numbers(done: number, total: number, share: number, now: number): string {
    const amount = (value: number) =>
      this.unit === 'bytes' ? inBytes(value) : `${Math.round(value)} ${this.unit}`
    const first = this.#first as { done: number; at: number }
    const rate = ((done - first.done) / (now - first.at)) * 1000
    const hasSpeed = this.unit === 'bytes' || this.unit === 'tokens'
    const speed = rate > 0 && hasSpeed ? `, ${amount(rate)}/s` : ''
    const left = rate > 0 && done < total ? `, ${duration((total - done) / rate)} left` : ''
    const percent = String(Math.floor(100 * share))
    return `${percent} % of ${amount(total)}${speed}${left}`
  }
}

function duration(seconds: number): string {
  const whole = Math.ceil(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`
}
