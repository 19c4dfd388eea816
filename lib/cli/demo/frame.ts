// One picture of the workers at work, as lines of text: the list, what is done of it, and what each worker writes.
// A pure function of what was written so far and of the size of the terminal.

import type { Colors } from 'picocolors/types'
import { wrapWords } from '../columns'
import {
  type Blocks,
  type DemoTask,
  type Line,
  MAX_LETTERS,
  readAnswers,
  readLines,
  reversed,
} from './task'

export interface Member {
  readonly name: string
  readonly state: 'absent' | 'active' | 'halted' | 'taken away'
}

export interface Scene {
  /** What is shown, in one line. */
  readonly title: string
  /** What the workers are to do, a paragraph. */
  readonly job: string
  readonly task: DemoTask
  readonly members: readonly Member[]
  readonly blocks: Blocks
  /** Remarks, each about a worker; the latest are shown. */
  readonly notes: readonly Note[]
  /** Steps done. */
  readonly step: number
  /** How fast it goes; undefined when it has ended. */
  readonly pace: string | undefined
  /** Whether keys are read. */
  readonly hasKeys: boolean
}

export interface Note {
  readonly name: string
  readonly text: string
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

/** Sizes below which nothing of it can be read. */
export const LEAST_COLUMNS = 24
export const LEAST_ROWS = 6

const MARGIN = ' '
const ITEM_GAP = 2
const WIDEST_COLUMN = 20
/** Columns of a paragraph. */
const WIDEST_TEXT = 76
/** Of a block, in the poorest arrangement. */
const LEAST_LINES = 3
/** A label, '=', an answer. */
const LONGEST_LINE = 2 + MAX_LETTERS

/** What there is room for. */
interface Arrangement {
  intro: 'whole' | 'title' | 'none'
  /** Each item as it stands in the prompt, and below it what was written; or the one in the place of the other. */
  list: 'pairs' | 'merged' | 'none'
  notes: number
  /** Empty lines between the parts, and a rule below the names of the workers. */
  isAiry: boolean
  /** Lines of a block that there must be room for: what is usual, or only the latest. */
  lines: 'all' | 'latest'
}

/** The richest one that fits is taken, so that it stays the same while the workers write. */
const ARRANGEMENTS: readonly Arrangement[] = [
  { intro: 'whole', list: 'pairs', notes: 2, isAiry: true, lines: 'all' },
  { intro: 'title', list: 'pairs', notes: 2, isAiry: true, lines: 'all' },
  { intro: 'none', list: 'pairs', notes: 2, isAiry: true, lines: 'all' },
  { intro: 'none', list: 'merged', notes: 2, isAiry: true, lines: 'all' },
  { intro: 'none', list: 'merged', notes: 1, isAiry: false, lines: 'all' },
  { intro: 'none', list: 'merged', notes: 1, isAiry: false, lines: 'latest' },
  { intro: 'none', list: 'merged', notes: 0, isAiry: false, lines: 'latest' },
  { intro: 'none', list: 'none', notes: 1, isAiry: false, lines: 'latest' },
  { intro: 'none', list: 'none', notes: 0, isAiry: false, lines: 'latest' },
]

/** At most `rows` lines of at most `columns`, however small these are. */
export function drawFrame(scene: Scene, colors: Colors, columns: number, rows: number): string[] {
  if (columns < LEAST_COLUMNS || rows < LEAST_ROWS) {
    return [`at least ${LEAST_COLUMNS}x${LEAST_ROWS}, please`.slice(0, Math.max(0, columns))]
  }
  const frames = ARRANGEMENTS.map((arrangement) => new Frame(scene, colors, columns, arrangement))
  const frame = frames.find(({ leastRows }) => leastRows <= rows) ?? (frames.at(-1) as Frame)
  return frame.lines(rows)
}

/** What stays of it at the end: all of it, however long. */
export function drawLast(scene: Scene, colors: Colors, columns: number): string[] {
  // A line that ends in the last column is followed by an empty one on some terminals.
  const lines = drawFrame(
    { ...scene, pace: undefined },
    colors,
    columns - 1,
    Number.POSITIVE_INFINITY,
  )
  while (lines.at(-1) === '') lines.pop()
  return lines
}

class Frame {
  private readonly paint: (name: string) => Paint
  private readonly above: string[]
  private readonly below: string[]
  /** Columns of a worker's block; 0 where blocks do not fit side by side. */
  private readonly column: number
  private readonly gap: number

  constructor(
    private readonly scene: Scene,
    private readonly colors: Colors,
    private readonly columns: number,
    private readonly arrangement: Arrangement,
  ) {
    this.paint = palette(colors)
    const share = Math.floor((columns - MARGIN.length) / scene.members.length)
    this.gap = share > LONGEST_LINE + 2 ? 2 : 1
    const column = Math.min(WIDEST_COLUMN, share) - this.gap
    this.column = column < LONGEST_LINE ? 0 : column
    const air = arrangement.isAiry ? [''] : []
    const [list, notes, status] = [this.list(), this.notes(), this.status()]
    this.above = [...this.intro(), ...list, ...(list.length > 0 ? air : [])]
    this.below = [
      ...(notes.length > 0 ? [...air, ...notes] : []),
      ...(status === undefined ? [] : [...air, status]),
    ]
  }

  get leastRows(): number {
    return this.above.length + this.blocks(this.usualLines()).length + this.below.length
  }

  lines(rows: number): string[] {
    const head = this.blocks(0).length
    const room = rows - this.above.length - head - this.below.length
    const lines = Math.min(Math.max(room, 0), Math.max(this.usualLines(), this.longestBlock()))
    return [...this.above, ...this.blocks(lines), ...this.below].slice(0, rows)
  }

  /** Of a block, when everyone does an equal share of the work. */
  private usualLines(): number {
    if (this.arrangement.lines === 'latest') return LEAST_LINES
    const { members, task } = this.scene
    // One more that is given back, and the one that ends the block.
    return Math.ceil(task.words.length / members.length) + 2
  }

  private longestBlock(): number {
    const { members, blocks } = this.scene
    return Math.max(...members.map((member) => this.linesOf(member, blocks).length))
  }

  private intro(): string[] {
    const { intro } = this.arrangement
    const { title, job } = this.scene
    if (intro === 'none') return []
    const text = (paragraph: string) =>
      wrapWords(paragraph, Math.min(WIDEST_TEXT, this.columns - 2 * MARGIN.length))
    const lines = text(title).map((line) => MARGIN + this.colors.bold(line))
    if (intro === 'title') return [...lines, '']
    return [...lines, '', ...text(job).map((line) => MARGIN + line), '']
  }

  /** The items as they stand in the prompt, and what has been written of them and by whom. */
  private list(): string[] {
    const { list } = this.arrangement
    if (list === 'none') return []
    const { task, blocks } = this.scene
    const written = writtenWords(blocks)
    const gap = ' '.repeat(ITEM_GAP)
    const items = task.words.map((word, index) => {
      const label = task.labels[index] ?? ''
      const { text, name } = written.get(label) ?? { text: '', name: '' }
      const answer = text.slice(0, word.length)
      const room = ' '.repeat(word.length - answer.length)
      const done = this.colors.bold(this.paint(name)(answer)) + room
      const labelled = this.colors.dim(`${label}:`)
      return {
        width: label.length + 1 + word.length + ITEM_GAP,
        prompt: labelled + reversed(word) + gap,
        answer: `  ${done}${gap}`,
        merged: labelled + (answer === '' ? reversed(word) : done) + gap,
      }
    })
    return wrapItems(items, this.columns - MARGIN.length).flatMap((row) =>
      list === 'pairs'
        ? [line(row.map(({ prompt }) => prompt)), line(row.map(({ answer }) => answer))]
        : [line(row.map(({ merged }) => merged))],
    )
  }

  private notes(): string[] {
    const { notes } = this.scene
    const shown = this.arrangement.notes
    return Array.from({ length: shown }, (_, index) => {
      const note = notes[Math.max(0, notes.length - shown) + index]
      return note === undefined ? '' : this.clipped(note.text, this.paint(note.name))
    })
  }

  private status(): string | undefined {
    const { step, pace, hasKeys, members } = this.scene
    if (pace === undefined) return undefined
    const now = `step ${step} · ${pace}`
    const all = `1-${members.length}`
    const texts = [
      `${now}   ${all} stop or call · + - faster, slower · space waits · q quits`,
      `${now}   ${all} stop/call · + - pace · space waits · q quits`,
      `${now}  ${all} stop/call  + - pace  q quits`,
      `${now}  ${all} + - q`,
    ]
    const fits = texts.find((text) => text.length + MARGIN.length <= this.columns)
    return this.clipped((hasKeys && fits) || now, this.colors.dim)
  }

  private blocks(lines: number): string[] {
    return this.column > 0 ? this.sideBySide(lines) : this.stacked()
  }

  private sideBySide(count: number): string[] {
    const { members, blocks } = this.scene
    const column = this.column
    const columns = members.map((member) => {
      const style = this.paint(member.name)
      const cells = this.linesOf(member, blocks).map(({ text, paint }) => {
        const shown = text.slice(0, column)
        return paint(shown) + ' '.repeat(column - shown.length)
      })
      const title = style(this.colors.bold(member.name.padEnd(column)))
      const ruleStyle = member.state === 'active' ? style : this.colors.dim
      return { title, rule: ruleStyle('─'.repeat(column)), cells }
    })
    const latest = columns.map(({ cells }) => cells.slice(Math.max(0, cells.length - count)))
    const row = (cells: readonly string[]) => line([cells.join(' '.repeat(this.gap))])
    return [
      row(columns.map(({ title }) => title)),
      ...(this.arrangement.isAiry ? [row(columns.map(({ rule }) => rule))] : []),
      ...Array.from({ length: count }, (_, index) =>
        row(latest.map((cells) => cells[index] ?? ' '.repeat(column))),
      ),
    ]
  }

  /** A row for each worker, with as many of its latest lines as fit. */
  private stacked(): string[] {
    const { members, blocks } = this.scene
    const width = Math.max(...members.map(({ name }) => name.length))
    return members.map((member) => {
      const name = this.paint(member.name)(this.colors.bold(member.name.padEnd(width)))
      let room = this.columns - MARGIN.length - width
      const shown: string[] = []
      for (const { text, paint } of this.linesOf(member, blocks).reverse()) {
        if (text.length + 1 > room) break
        room -= text.length + 1
        shown.unshift(` ${paint(text)}`)
      }
      return line([name, ...shown])
    })
  }

  /** The lines of a worker's block, without the name that stands above, and the key that calls the worker. */
  private linesOf({ name, state }: Member, blocks: Blocks): { text: string; paint: Paint }[] {
    const style = this.paint(name)
    const lines = readLines(name, blocks.get(name) ?? []).map((written) =>
      this.lookOf(written, style),
    )
    const isAway = state === 'absent' || state === 'taken away'
    const key = this.scene.members.findIndex((member) => member.name === name) + 1
    if (isAway && this.scene.hasKeys && this.scene.pace !== undefined) {
      lines.push({ text: `(press ${key})`, paint: this.colors.dim })
    }
    return lines
  }

  private lookOf(written: Line, style: Paint): { text: string; paint: Paint } {
    const text = lineText(written)
    switch (written.state) {
      case 'yielded':
        return { text, paint: (shown) => this.colors.inverse(style(shown)) }
      case 'halted':
        return { text, paint: this.colors.dim }
      case 'taken away':
        return { text, paint: this.colors.red }
      case 'answered':
        return { text, paint: style }
      case 'open':
        return { text: `${text}▌`, paint: (shown) => this.open(shown, style) }
    }
  }

  private open(text: string, style: Paint): string {
    const written = text.replace('▌', '')
    return style(written) + (written === text ? '' : this.colors.dim('▌'))
  }

  private clipped(text: string, paint: Paint): string {
    return MARGIN + paint(text.slice(0, this.columns - MARGIN.length))
  }
}

function line(parts: readonly string[]): string {
  return MARGIN + parts.join('')
}

/** Rows of about equally many items, none of them wider than `width`. */
export function wrapItems<T extends { width: number }>(items: readonly T[], width: number): T[][] {
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

/** As the tokens stand in the block. */
export function lineText({ label = '', answer, state }: Line): string {
  const ends = { open: '', answered: '', yielded: '~', halted: '.', 'taken away': '#' }
  return `${label}${answer === undefined ? '' : `=${answer}`}${ends[state]}`
}
