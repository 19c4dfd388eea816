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
  /** Remarks, in full colour; the latest are shown. */
  readonly notes: readonly string[]
  /** Steps done. */
  readonly step: number
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
const BLOCK_TITLE = 2
const NOTES = 2

/** At most `height - 1` lines of at most `width` characters. */
export function drawFrame(scene: Scene, colors: Colors, width: number, height: number): string[] {
  const list = drawList(scene, colors, width)
  const notes = Array.from({ length: NOTES }, (_, index) => {
    const note = scene.notes[Math.max(0, scene.notes.length - NOTES) + index]
    return note === undefined ? '' : MARGIN + note
  })
  const around = list.length + 1 + BLOCK_TITLE + 1 + notes.length
  const rows = Math.max(1, height - 1 - around)
  return [...list, '', ...drawBlocks(scene, colors, width, rows), '', ...notes]
}

/** The items as they stand in the prompt and, below each, what has been written of it and by whom. */
function drawList({ task, blocks }: Scene, colors: Colors, width: number): string[] {
  const paint = palette(colors)
  const written = writtenWords(blocks)
  const gap = ' '.repeat(COLUMN_GAP)
  const items = task.words.map((word, index) => {
    const label = task.labels[index] ?? ''
    const { text, name } = written.get(label) ?? { text: '', name: '' }
    const room = ' '.repeat(Math.max(0, word.length - text.length))
    return {
      width: label.length + 1 + word.length + COLUMN_GAP,
      prompt: `${colors.dim(`${label}:`)}${reversed(word)}${gap}`,
      answer: `  ${colors.bold(paint(name)(text))}${room}${gap}`,
    }
  })
  return wrap(items, width - MARGIN.length).flatMap((row) => [
    MARGIN + row.map(({ prompt }) => prompt).join(''),
    MARGIN + row.map(({ answer }) => answer).join(''),
  ])
}

/** Rows of about equally many items, none of them wider than `width`. */
function wrap<T extends { width: number }>(items: readonly T[], width: number): T[][] {
  const total = items.reduce((sum, item) => sum + item.width, 0)
  const perRow = Math.ceil(items.length / Math.ceil(total / width))
  const rows: T[][] = [[]]
  let used = 0
  for (const item of items) {
    const row = rows.at(-1) as T[]
    if (row.length > 0 && (row.length === perRow || used + item.width > width)) {
      rows.push([item])
      used = item.width
    } else {
      row.push(item)
      used += item.width
    }
  }
  return rows
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
    if (state === 'absent') cells.push(colors.dim(`(press ${index + 1})`.padEnd(column)))
    const title = style(colors.bold(name.padEnd(column)))
    const rule = (state === 'active' ? style : colors.dim)('─'.repeat(column))
    return { title, rule, cells }
  })
  const shown = Math.min(rows, Math.max(1, ...columns.map(({ cells }) => cells.length)))
  const latest = columns.map(({ cells }) => cells.slice(-shown))
  const row = (cells: readonly string[]) => MARGIN + cells.join(' '.repeat(COLUMN_GAP))
  return [
    row(columns.map(({ title }) => title)),
    row(columns.map(({ rule }) => rule)),
    ...Array.from({ length: shown }, (_, index) =>
      row(latest.map((cells) => cells[index] ?? ' '.repeat(column))),
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
