// Two ways to watch the workers: a picture that is drawn again in place, and plain lines.

import { colors, LiveArea, print } from '../terminal'
import { drawFrame, lineText, palette, type Scene } from './frame'
import type { Line } from './task'

export { palette } from './frame'

export interface ShowView {
  open(scene: Scene): void
  /** A line of a worker is complete, as this step shows. */
  line(name: string, line: Line, step: number): void
  note(text: string): void
  /** A step has ended. */
  show(scene: Scene): void
  close(scene: Scene): void
}

export class LiveView implements ShowView {
  private readonly area = new LiveArea()

  open(scene: Scene): void {
    this.show(scene)
  }

  line(): void {}

  note(): void {}

  show(scene: Scene): void {
    const keys = process.stdin.isTTY ? 'keys: 1-4 stop or call a worker, q quits' : ''
    this.area.draw([...this.frame(scene, 2), '', colors.dim(`  step ${scene.step}   ${keys}`)])
  }

  close(scene: Scene): void {
    this.area.draw(this.frame(scene, 0))
    this.area.close()
  }

  private frame(scene: Scene, footer: number): string[] {
    const { columns, rows } = process.stdout
    return drawFrame(scene, colors, columns, rows - footer)
  }
}

export class PlainView implements ShowView {
  private readonly paint = palette(colors)

  open({ task }: Scene): void {
    print(`  ${task.prompt.slice('<s>'.length).trim().split('\n').join('  ')}`)
    print()
  }

  line(name: string, line: Line, step: number): void {
    const when = colors.dim(`step ${String(step + 1).padStart(3)}`)
    print(`  ${when}  ${this.paint(name)(`${name.padEnd(5)} ${lineText(line)}`)}`)
  }

  note(text: string): void {
    print(`            ${text}`)
  }

  show(): void {}

  close(): void {}
}
