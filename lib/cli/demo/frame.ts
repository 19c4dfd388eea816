// One picture of the workers at work, as lines of text: the list, what is done of it, and the blocks
// side by side. A pure function of what was written so far.

import type { Colors } from 'picocolors/types'
import { type Blocks, type DemoTask, type Line, readAnswers, readLines, reversed } from './task'

export interface Member {
  readonly name: string
  readonly state: 'absent' | 'active' | 'halted' | 'taken away'
}

export interface Scene {
  readonly task: DemoTask
  readonly members: readonly Member[]
  readonly blocks: Blocks
  /** The latest remarks, in full colour. */
  readonly notes: readonly string[]
  readonly status: string
}

export type Paint = (text: string) => string

/** One colour per worker. */
export function palette(colors: Colors): (name: string) => Paint {
  const paints: Record<string, Paint> = {
    Alice: colors.cyan,
    Bob: colors.yellow,
    Carol: colors.magenta,
    Dave: colors.green,
  }
  return (name) => paints[name] ?? String
}

const MARGIN = '  '
const COLUMN_GAP = 2
const WIDEST_COLUMN = 20

export function drawFrame(scene: Scene, colors: Colors, width: number, height: number): string[] {
  const list = drawList(scene, colors, width)
  const notes = ['', ...scene.notes.slice(-2)]
  const footer = [
    ...Array<string>(3 - notes.length).fill(''),
    '',
    colors.dim(MARGIN + scene.status),
  ]
  const above = [...list, '']
  const rows = height - above.length - notes.length - footer.length - 3
  return [...above, ...drawBlocks(scene, colors, width, Math.max(1, rows)), ...notes, ...footer]
}

/** The items as they stand in the prompt and, below each, what has been written of it and by whom. */
function drawList(scene: Scene, colors: Colors, width: number): string[] {
  const paint = palette(colors)
  const written = writtenWords(scene.blocks)
  const lines: string[] = []
  let prompt = MARGIN
  let answers = MARGIN
  let used = MARGIN.length
  scene.task.words.forEach((word, index) => {
    const label = scene.task.labels[index] ?? ''
    const cell = label.length + 1 + word.length + COLUMN_GAP
    if (used + cell > width) {
      lines.push(prompt, answers)
      prompt = answers = MARGIN
      used = MARGIN.length
    }
    const { text, name } = written.get(label) ?? { text: '', name: '' }
    const gap = ' '.repeat(COLUMN_GAP)
    prompt += `${colors.dim(`${label}:`)}${reversed(word)}${gap}`
    answers += `  ${colors.bold(paint(name)(text))}${' '.repeat(Math.max(0, word.length - text.length))}${gap}`
    used += cell
  })
  lines.push(prompt, answers)
  return lines
}

/** The first answer to each item, or one that is being written, cut where the next item begins. */
function writtenWords(blocks: Blocks): Map<string, { name: string; text: string }> {
  const words = new Map<string, { name: string; text: string }>()
  for (const [name, block] of blocks) {
    for (const { label, answer, state } of readLines(name, block)) {
      if (label !== undefined && answer !== undefined && state === 'open') {
        words.set(label, { name, text: answer })
      }
    }
  }
  for (const [label, { name, answer }] of readAnswers(blocks))
    words.set(label, { name, text: answer })
  return words
}

function drawBlocks(scene: Scene, colors: Colors, width: number, rows: number): string[] {
  const paint = palette(colors)
  const share = Math.floor((width - MARGIN.length) / scene.members.length)
  const column = Math.min(WIDEST_COLUMN, share) - COLUMN_GAP
  const columns = scene.members.map(({ name, state }, index) => {
    const style = paint(name)
    const lines = readLines(name, scene.blocks.get(name) ?? [])
    const cells = lines.map((line) => drawLine(line, colors, style, column))
    if (state === 'absent') cells.push(colors.dim(`key ${index + 1} calls`.padEnd(column)))
    const title = style(colors.bold(name.padEnd(column)))
    const rule = (state === 'active' ? style : colors.dim)('─'.repeat(column))
    return { title, rule, cells }
  })
  const longest = Math.max(1, ...columns.map(({ cells }) => cells.length))
  const shown = Math.min(longest, rows)
  const row = (cells: readonly string[]) => MARGIN + cells.join(' '.repeat(COLUMN_GAP))
  return [
    row(columns.map(({ title }) => title)),
    row(columns.map(({ rule }) => rule)),
    ...Array.from({ length: shown }, (_, index) =>
      row(columns.map(({ cells }) => cells[longest - shown + index] ?? ' '.repeat(column))),
    ),
  ]
}

/** The line as the tokens stand in the block, without the name that the column's title shows. */
function drawLine(line: Line, colors: Colors, style: Paint, column: number): string {
  const text = lineText(line)
  const room = ' '.repeat(Math.max(0, column - text.length))
  switch (line.state) {
    case 'yielded':
      return colors.inverse(style(text)) + room
    case 'halted':
      return colors.dim(text) + room
    case 'taken away':
      return colors.red(text) + room
    case 'answered':
      return style(text) + room
    case 'open':
      return style(text) + (room && `${colors.dim('▌')}${room.slice(1)}`)
  }
}

export function lineText({ label = '', answer, state }: Line): string {
  const ends = { open: '', answered: '', yielded: '~', halted: '.', 'taken away': '#' }
  return `${label}${answer === undefined ? '' : `=${answer}`}${ends[state]}`
}
