// What the commands need of a terminal: can it show a live picture, in which colours, which keys.

import { emitKeypressEvents, type Key } from 'node:readline'
import pc from 'picocolors'
import { escapeUnsafe } from '../printable'

const HIDE_CURSOR = '\x1b[?25l'
const SHOW_CURSOR = '\x1b[?25h'
const CLEAR_REST_OF_LINE = '\x1b[K'
const CLEAR_BELOW = '\x1b[J'
const up = (lines: number) => (lines > 0 ? `\x1b[${lines}A` : '')

const LEAST_COLUMNS = 60
const LEAST_ROWS = 20

const stdout = process.stdout

/** A live picture needs a terminal of some size that understands cursor movements. */
export function canDrawLive(): boolean {
  const { isTTY, columns, rows } = stdout
  return isTTY && columns >= LEAST_COLUMNS && rows >= LEAST_ROWS && process.env.TERM !== 'dumb'
}

/** Colours for stdout: none without a terminal or where NO_COLOR is set. */
// (isTTY is undefined without a terminal, and createColors takes undefined for "decide yourself".)
export const colors = pc.createColors(stdout.isTTY === true && pc.isColorSupported)

export function print(line = ''): void {
  write(`${line}\n`)
}

/** A part of a line. */
export function write(text: string): void {
  stdout.write(text)
}

/** One line of JSON; what a terminal would obey stands in it as escapes. */
export function printJson(value: unknown): void {
  print(escapeUnsafe(JSON.stringify(value)))
}

/** Lines at the bottom of the terminal that are drawn again in place. */
export class LiveArea {
  private height = 0
  private readonly restore = () => stdout.write(SHOW_CURSOR)
  private readonly exit = () => process.exit(1)

  constructor() {
    stdout.write(HIDE_CURSOR)
    process.once('exit', this.restore)
    process.once('SIGTERM', this.exit)
    process.once('SIGHUP', this.exit)
  }

  /** No line may be wider than the terminal, nor may there be more of them than it has rows. */
  draw(lines: readonly string[]): void {
    // One write, and each line is overwritten rather than cleared first: nothing flickers.
    const text = lines.map((line) => `${line}${CLEAR_REST_OF_LINE}\n`).join('')
    stdout.write(`${up(this.height)}\r${text}${CLEAR_BELOW}`)
    this.height = lines.length
  }

  close(): void {
    process.off('exit', this.restore)
    process.off('SIGTERM', this.exit)
    process.off('SIGHUP', this.exit)
    this.restore()
  }
}

/** Calls `onKey` for each key, without waiting for Enter, until the returned function is called. */
export function readKeys(onKey: (key: Key) => void): () => void {
  const stdin = process.stdin
  if (!stdin.isTTY || !stdout.isTTY) return () => {}
  const listener = (_: string | undefined, key: Key) => onKey(key)
  emitKeypressEvents(stdin)
  stdin.setRawMode(true)
  stdin.on('keypress', listener)
  stdin.resume()
  return () => {
    stdin.off('keypress', listener)
    stdin.setRawMode(false)
    stdin.pause()
  }
}
