// A program in a terminal: util-linux's `script` gives it one, and an emulator shows what a person would see.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Terminal } from '@xterm/headless'
import { temporaryFolder } from './fixtures'

const SCRIPT = '/usr/bin/script'
export const hasPseudoTerminals = process.platform === 'linux' && existsSync(SCRIPT)

const HOME = '\x1b[H'
const PATIENCE_MS = 20_000

export class PseudoTerminal {
  /** Everything that was written to it. */
  output = ''
  readonly #child: ChildProcess
  readonly #emulator: Terminal
  readonly #device: string
  readonly #end: Promise<void>

  /** Runs a command of the shell. */
  constructor(command: string, columns: number, rows: number, environment: NodeJS.ProcessEnv = {}) {
    this.#device = join(temporaryFolder(), 'device')
    this.#emulator = new Terminal({ cols: columns, rows, allowProposedApi: true })
    const setUp = `tty > ${this.#device}; stty cols ${columns} rows ${rows}`
    this.#child = spawn(SCRIPT, ['-qfec', `${setUp}; ${command}`, '/dev/null'], {
      env: { ...process.env, TERM: 'xterm-256color', ...environment },
    })
    this.#child.stdout?.on('data', (piece: Buffer) => {
      this.output += piece
      this.#emulator.write(piece)
    })
    this.#end = new Promise((resolve) => this.#child.on('close', () => resolve()))
  }

  /** The lines that are seen, without spaces at their ends. */
  get screen(): string[] {
    return linesOf(this.#emulator)
  }

  /** The same with all that has scrolled out of sight, and long lines whole. */
  get everything(): string {
    const { active } = this.#emulator.buffer
    let text = ''
    for (let row = 0; row < active.length; row++) {
      const line = active.getLine(row)
      text += `${line?.isWrapped || row === 0 ? '' : '\n'}${line?.translateToString(true)}`
    }
    return text
  }

  /** What a terminal shows that was empty before the latest picture was drawn. */
  async latestPicture(): Promise<string[]> {
    const { cols, rows } = this.#emulator
    const fresh = new Terminal({ cols, rows, allowProposedApi: true })
    const picture = `\x1b[?7l${this.output.slice(this.output.lastIndexOf(HOME))}`
    await new Promise<void>((resolve) => fresh.write(picture, resolve))
    return linesOf(fresh)
  }

  /** Whether the program has the whole screen, and gives it back afterwards. */
  get isAlternate(): boolean {
    return this.#emulator.buffer.active.type === 'alternate'
  }

  press(keys: string): void {
    this.#child.stdin?.write(keys)
  }

  resize(columns: number, rows: number): void {
    this.#emulator.resize(columns, rows)
    const device = readFileSync(this.#device, 'utf8').trim()
    execFileSync('stty', ['-F', device, 'cols', `${columns}`, 'rows', `${rows}`])
  }

  /** Resolves when what is seen matches. */
  async until(shown: RegExp | (() => boolean | Promise<boolean>)): Promise<void> {
    const isSo = shown instanceof RegExp ? () => shown.test(this.screen.join('\n')) : shown
    const begin = performance.now()
    while (!(await isSo())) {
      if (performance.now() - begin > PATIENCE_MS) {
        throw new Error(`not seen: ${shown}\n${this.screen.join('\n')}`)
      }
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }

  /** Resolves when the command has ended. */
  async ended(): Promise<void> {
    await this.#end
    await new Promise<void>((resolve) => this.#emulator.write('', resolve))
  }

  close(): void {
    this.#child.kill('SIGKILL')
  }
}

function linesOf({ buffer: { active }, cols, rows }: Terminal): string[] {
  // Lines of a terminal that has become narrower keep, unseen, what stood behind its edge.
  const lineOf = (row: number) =>
    active.getLine(active.viewportY + row)?.translateToString(true, 0, cols) ?? ''
  return Array.from({ length: rows }, (_, row) => lineOf(row).trimEnd())
}
