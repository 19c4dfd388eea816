// The terminal as a whole, for a while: a picture that is drawn again in place, and keys one by one.

import { emitKeypressEvents, type Key } from 'node:readline'
import { onEnd } from './clean-up'

const { stdin, stdout } = process

// The alternate screen, as terminals wrap the lines of the normal one anew when they are resized, each in a way of its own:
// what was drawn there cannot be found again to be erased. On this one everything is drawn again, and nothing wraps.
const ENTER = '\x1b[?1049h\x1b[?25l\x1b[?7l'
const LEAVE = '\x1b[?7h\x1b[?25h\x1b[?1049l'
const HOME = '\x1b[H'
const CLEAR_LINE = '\x1b[2K'
const CLEAR_BELOW = '\x1b[J'

/** A stop that the system has not carried out by then was no stop. */
const STOP_MS = 50

/**
 * What is drawn again whenever the terminal has another size. The terminal is as it was after `close`, however the
 * program ends, and while it is stopped (Ctrl-Z, SIGTSTP).
 */
export class Screen {
  #isEntered = false
  #forget = () => {}
  #waiting: NodeJS.Timeout | undefined

  /**
   * `draw` gives lines that are no wider than the terminal and no more than it has rows. `onKey` gets every key but
   * Ctrl-Z, where stdin is a terminal too.
   */
  constructor(
    private readonly draw: (columns: number, rows: number) => readonly string[],
    private readonly onKey: (key: Key) => void,
  ) {}

  open(): void {
    // Modes of the terminal are set back by Node.js itself when it ends.
    this.#forget = onEnd(this.#leave)
    process.on('SIGCONT', this.#enter)
    stdout.on('resize', this.redraw)
    if (stdin.isTTY) {
      emitKeypressEvents(stdin)
      stdin.on('keypress', this.#press)
      stdin.resume()
    }
    this.#enter()
  }

  readonly redraw = (): void => {
    if (!this.#isEntered) return
    const [columns, rows] = stdout.getWindowSize()
    const lines = this.draw(columns, rows)
    const text = lines.map((line) => CLEAR_LINE + line).join('\r\n')
    stdout.write(`${HOME}${text}${lines.length < rows ? `\r\n${CLEAR_BELOW}` : ''}`)
  }

  close(): void {
    clearTimeout(this.#waiting)
    this.#setRaw(false)
    this.#leave()
    this.#forget()
    process.off('SIGCONT', this.#enter)
    process.off('SIGTSTP', this.#stop)
    stdout.off('resize', this.redraw)
    stdin.off('keypress', this.#press)
    stdin.pause()
  }

  /** Also again: a shell has set the terminal as it likes it while the program was stopped. */
  readonly #enter = (): void => {
    clearTimeout(this.#waiting)
    // First, as this waits where the program goes on in the background; and only a change of the mode is carried out.
    this.#setRaw(false)
    this.#setRaw(true)
    process.off('SIGTSTP', this.#stop)
    process.on('SIGTSTP', this.#stop)
    this.#isEntered = true
    stdout.write(ENTER)
    this.redraw()
  }

  readonly #leave = (): void => {
    if (!this.#isEntered) return
    this.#isEntered = false
    stdout.write(LEAVE)
  }

  /** As the terminal does it where it handles Ctrl-Z itself: the whole job stops, npm and npx with it. */
  readonly #stop = (): void => {
    this.#setRaw(false)
    this.#leave()
    // Without a listener the signal does what it is for.
    process.off('SIGTSTP', this.#stop)
    process.kill(0, 'SIGTSTP')
    // Where no shell could wake it the system does not stop a program.
    this.#waiting = setTimeout(this.#enter, STOP_MS)
  }

  readonly #press = (_: string | undefined, key: Key): void => {
    if (key.ctrl && key.name === 'z') this.#stop()
    else this.onKey(key)
  }

  #setRaw(isRaw: boolean): void {
    if (stdin.isTTY) stdin.setRawMode(isRaw)
  }
}
