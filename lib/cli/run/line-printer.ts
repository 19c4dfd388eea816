// Texts that grow at the same time, printed as lines with the writer's name in front.

import { stripVTControlCharacters } from 'node:util'
import { colors, print } from '../terminal'

const LONGEST = 100

export class LinePrinter {
  private readonly pending = new Map<string, string>()
  private readonly width: number
  private readonly paints = [colors.cyan, colors.yellow, colors.magenta, colors.green, colors.blue]

  constructor(private readonly names: readonly string[]) {
    this.width = Math.max(...names.map((name) => name.length))
  }

  /** Prints what is complete: whole lines, and of long ones what ends with a word. */
  write(name: string, text: string): void {
    let rest = (this.pending.get(name) ?? '') + text
    for (;;) {
      const newline = rest.indexOf('\n')
      const space = rest.lastIndexOf(' ', LONGEST)
      const long = rest.length > LONGEST && (newline < 0 || newline > LONGEST)
      const end = long ? (space > 0 ? space : LONGEST) : newline
      if (end < 0) break
      this.print(name, rest.slice(0, end))
      rest = rest.slice(end).replace(/^[ \n]/, '')
    }
    this.pending.set(name, rest)
  }

  /** Prints what is left of a worker's text. */
  flush(name: string): void {
    this.print(name, this.pending.get(name) ?? '')
    this.pending.delete(name)
  }

  remark(name: string, text: string): void {
    print(colors.dim(`${name.padEnd(this.width)} · ${text}`))
  }

  private print(name: string, line: string): void {
    if (line.trim() === '') return
    const paint = this.paints[this.names.indexOf(name) % this.paints.length] ?? String
    // What a model writes must not steer the terminal.
    const text = stripVTControlCharacters(line).trimEnd()
    print(`${paint(name.padEnd(this.width))} | ${text}`)
  }
}
