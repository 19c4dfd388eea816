// Texts that grow at the same time, printed as lines with the writer's name in front.

import { printable } from '../../printable'
import { columnsOf, fittingLength, padColumns } from '../columns'
import { colors, lineColumns, print } from '../terminal'

/** Columns of a line's text, where the terminal is not narrower. */
const LONGEST = 100
/** However narrow the terminal is. */
const SHORTEST = 20
const SEPARATOR = ' | '

export class LinePrinter {
  /** By name: what is not printed yet, printable already. */
  private readonly pending = new Map<string, string>()
  private readonly width: number
  private readonly paints = [colors.cyan, colors.yellow, colors.magenta, colors.green, colors.blue]

  constructor(private readonly names: readonly string[]) {
    this.width = Math.max(...names.map(columnsOf))
  }

  /**
   * Prints what is complete: whole lines, and of long ones what ends with a word. No line is longer than
   * the terminal: what it breaks itself would stand there without the writer's name.
   */
  write(name: string, text: string): void {
    let rest = (this.pending.get(name) ?? '') + printable(text)
    const room = this.room()
    for (;;) {
      const newline = rest.indexOf('\n')
      const line = newline < 0 ? rest : rest.slice(0, newline)
      const fits = fittingLength(line, room)
      if (fits === line.length && newline < 0) break
      const space = line.lastIndexOf(' ', fits)
      const end = fits === line.length || space <= 0 ? fits : space
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
    print(colors.dim(`${padColumns(name, this.width)} · ${text}`))
  }

  private room(): number {
    const room = lineColumns() - this.width - SEPARATOR.length
    return Math.max(SHORTEST, Math.min(LONGEST, room))
  }

  private print(name: string, line: string): void {
    if (line.trim() === '') return
    const paint = this.paints[this.names.indexOf(name) % this.paints.length] ?? String
    print(`${paint(padColumns(name, this.width))}${SEPARATOR}${line.trimEnd()}`)
  }
}
