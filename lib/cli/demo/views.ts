// Two ways to watch the workers: a picture that is drawn again in place, and plain lines.

import type { Key } from 'node:readline'
import { wrapWords } from '../columns'
import { Screen } from '../screen'
import { colors, lineColumns, print } from '../terminal'
import {
  drawFrame,
  drawLast,
  LEAST_COLUMNS,
  LEAST_ROWS,
  lineText,
  type Note,
  palette,
  type Scene,
} from './frame'
import type { Line } from './task'

export interface ShowView {
  open(): void
  /** A line of a worker is complete, as this step shows. */
  line(name: string, line: Line, step: number): void
  note(note: Note): void
  /** What `scene` gives has changed. */
  show(): void
  close(): void
}

/** A live picture needs a terminal of some size that understands cursor movements. */
export function canDrawLive(): boolean {
  const { isTTY, columns, rows } = process.stdout
  return isTTY && columns >= LEAST_COLUMNS && rows >= LEAST_ROWS && process.env.TERM !== 'dumb'
}

export class LiveView implements ShowView {
  private readonly screen: Screen

  constructor(
    private readonly scene: () => Scene,
    onKey: (key: Key) => void,
  ) {
    const draw = (columns: number, rows: number) => drawFrame(scene(), colors, columns, rows)
    this.screen = new Screen(draw, onKey)
  }

  open(): void {
    this.screen.open()
  }

  line(): void {}

  note(): void {}

  show(): void {
    this.screen.redraw()
  }

  /** The last picture stays, among what was there before. */
  close(): void {
    this.screen.close()
    print()
    for (const line of drawLast(this.scene(), colors, lineColumns())) print(line)
  }
}

export class PlainView implements ShowView {
  private readonly paint = palette(colors)

  constructor(private readonly scene: () => Scene) {}

  open(): void {
    const { title, job, task } = this.scene()
    print()
    print(`  ${colors.bold(title)}`)
    print()
    for (const line of wrapWords(job, 76)) print(`  ${line}`)
    print()
    print(`  ${task.prompt.slice('<s>'.length).trim().split('\n').join('  ')}`)
    print()
  }

  line(name: string, line: Line, step: number): void {
    const when = colors.dim(`step ${String(step + 1).padStart(3)}`)
    print(`  ${when}  ${this.paint(name)(`${name.padEnd(5)} ${lineText(line)}`)}`)
  }

  note({ name, text }: Note): void {
    print(`            ${this.paint(name)(text)}`)
  }

  show(): void {}

  close(): void {}
}
