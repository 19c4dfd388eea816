// The lanes: tokens in boxes or, from far away, how dense they are; who took part, waited and stopped.

import { drawCursor } from './draw-axis'
import { drawEvents } from './draw-events'
import { drawFlow } from './draw-flow'
import { LABEL_FONT, rowOf, type Scene, stepsInSight, TOKEN_FONT, topOf, xOf } from './scene'
import { clipped, counted, inOneLine } from './text'

type Context = CanvasRenderingContext2D

/** Below so many pixels per step there are no boxes. */
const LEAST_BOX = 5
/** And below so many no text in them. */
const LEAST_TEXT = 16
const CHARACTER = 7.23
const PADDING = 4
const LINE = 15
const LEAST_COLUMNS = 2

export function drawLanes(context: Context, scene: Scene): void {
  context.save()
  context.beginPath()
  context.rect(0, 0, scene.width, scene.height)
  context.clip()
  drawRows(context, scene)
  const [from, to] = stepsInSight(scene)
  const pixels = scene.width / Math.max(1, to - from)
  if (pixels >= LEAST_BOX) drawBoxes(context, scene, from, to)
  else drawDensity(context, scene, from, to)
  drawPrompts(context, scene)
  drawEvents(context, scene)
  drawCursor(context, scene, scene.height)
  context.restore()
  if (scene.flowWidth > 0) drawFlow(context, scene)
}

/** Rows that are in sight, the last one excluded. */
function rowsInSight({ rowHeight, scrollTop, height, timeline }: Scene): [number, number] {
  const last = Math.ceil((scrollTop + height) / rowHeight)
  return [Math.floor(scrollTop / rowHeight), Math.min(timeline.workers + 1, last)]
}

function drawRows(context: Context, scene: Scene): void {
  const { rowHeight, width, colours, worker } = scene
  const [first, last] = rowsInSight(scene)
  for (let row = first; row < last; row++) {
    const top = topOf(scene, row)
    if (row === 0) {
      context.fillStyle = colours.raised
      context.fillRect(0, top, width, rowHeight)
    } else drawLife(context, scene, row - 1, top)
    if (row === worker + 1) {
      context.fillStyle = colours.accent
      context.globalAlpha = 0.07
      context.fillRect(0, top, width, rowHeight)
      context.globalAlpha = 1
    }
    context.fillStyle = colours.line
    context.fillRect(0, top + rowHeight - 1, width, 1)
  }
}

/** From join to stop there is a line, and hatching where the worker waits. */
function drawLife(context: Context, scene: Scene, worker: number, top: number): void {
  const { timeline, lives, axis, rowHeight, width, colours } = scene
  const life = lives.workers[worker]!
  const place = (event: Parameters<typeof timeline.placeOf>[0] | undefined, none: number) =>
    event === undefined ? none : timeline.placeOf(event, axis)
  const [first, last] = timeline.range(axis)
  const left = Math.max(0, xOf(scene, place(life.join, first)))
  const right = Math.min(width, xOf(scene, place(life.stop, last)))
  context.fillStyle = colours.edge[worker]!
  context.globalAlpha = 0.45
  if (right > left) context.fillRect(left, top + rowHeight / 2 - 0.5, right - left, 1)
  context.globalAlpha = 1
  for (const { from, to } of life.waits) {
    const begin = Math.max(0, xOf(scene, place(from, first)))
    const end = Math.min(width, xOf(scene, place(to, last)))
    if (end > begin) hatch(context, scene, worker, [begin, top + 4, end - begin, rowHeight - 9])
    const label = waitLabel(from.parked)
    writeLabel(
      context,
      scene,
      inOneLine(label).replaceAll('·', ' '),
      begin + 6,
      end - begin - 10,
      top,
    )
  }
}

/** `parked`: JSON of what it waits for; '': it was paused. */
function waitLabel(parked: string): string {
  if (parked === '') return 'paused'
  const data: unknown = JSON.parse(parked)
  return data === null ? 'waits' : `waits: ${typeof data === 'string' ? data : parked}`
}

function writeLabel(
  context: Context,
  { rowHeight, colours }: Scene,
  text: string,
  left: number,
  room: number,
  top: number,
): void {
  if (room < 36) return
  context.font = LABEL_FONT
  context.textAlign = 'left'
  const shown = clipped(text, Math.floor(room / 6))
  const width = Math.min(room, context.measureText(shown).width)
  context.fillStyle = colours.ground
  context.fillRect(left - 2, top + rowHeight / 2 - 8, width + 4, 15)
  context.fillStyle = colours.dim
  context.fillText(shown, left, top + rowHeight / 2, room)
}

type Rectangle = [left: number, top: number, width: number, height: number]

function hatch(context: Context, scene: Scene, worker: number, rectangle: Rectangle): void {
  const [left, top, width, height] = rectangle
  context.save()
  context.beginPath()
  context.rect(...rectangle)
  context.clip()
  context.strokeStyle = scene.colours.edge[worker]!
  context.globalAlpha = 0.7
  context.beginPath()
  for (let x = left - height - ((left - height) % 7); x < left + width; x += 7) {
    context.moveTo(x, top + height)
    context.lineTo(x + height, top)
  }
  context.stroke()
  context.strokeRect(left + 0.5, top + 0.5, width - 1, height - 1)
  context.restore()
}

function drawBoxes(context: Context, scene: Scene, from: number, to: number): void {
  const { timeline, axis, rowHeight, width, marked } = scene
  const { cellBegin, data } = timeline
  const [firstRow, lastRow] = rowsInSight(scene)
  context.font = TOKEN_FONT
  context.textAlign = 'left'
  for (let step = from; step < to; step++) {
    const left = xOf(scene, timeline.left(step, axis))
    const right = Math.max(left + 2, xOf(scene, timeline.right(step, axis)))
    if (right < 0 || left > width) continue
    for (let cell = cellBegin[step]!; cell < cellBegin[step + 1]!; cell++) {
      const worker = data.steps.workers[cell]!
      if (worker + 1 < firstRow || worker + 1 >= lastRow) continue
      const gap = right - left > LEAST_BOX ? 1 : 0
      const top = topOf(scene, worker + 1) + 4
      const box: Rectangle = [left + gap, top, right - left - 2 * gap, rowHeight - 9]
      drawBox(context, scene, cell, box, marked.has(cell))
    }
  }
}

function drawBox(
  context: Context,
  scene: Scene,
  cell: number,
  [left, top, width, height]: Rectangle,
  isMatch: boolean,
): void {
  const { timeline, colours, match } = scene
  const { workers, counts, forced } = timeline.data.steps
  const worker = workers[cell]!
  const isGiven = forced[cell] === counts[cell]
  const [fill, edge] = isGiven
    ? [colours.given, colours.givenLine]
    : [colours.fill[worker]!, colours.strong[worker]!]
  context.fillStyle = width < LEAST_BOX ? edge : fill
  context.fillRect(left, top, width, height)
  context.fillStyle = edge
  if (width >= LEAST_TEXT) context.fillRect(left, top, 2, height)
  if (isMatch) {
    const isCurrent = match !== undefined && match.from <= cell && cell <= match.to
    context.strokeStyle = isCurrent ? colours.current : colours.mark
    context.lineWidth = 2
    context.strokeRect(left + 1, top + 1, Math.max(1, width - 2), height - 2)
    context.lineWidth = 1
  }
  if (width < LEAST_TEXT) return
  // Of a box that begins to the left of what is in sight the text is in sight.
  const begin = Math.max(left, 0) + PADDING + 1
  writeText(context, timeline.textOf(cell), [begin, top, left + width - begin - 1, height], colours)
}

/** In as many lines as there is room for, in the middle. */
function writeText(
  context: Context,
  text: string,
  [left, top, width, height]: Rectangle,
  { text: colour }: Scene['colours'],
): void {
  const columns = Math.floor(width / CHARACTER)
  const rows = Math.max(1, Math.floor((height - 4) / LINE))
  if (text === '' || columns < 1) return
  const lines = brokenText(text, columns, rows)
  if (columns < LEAST_COLUMNS && (lines.length > 1 || lines[0] === '…')) return
  const first = top + (height - (lines.length - 1) * LINE) / 2 + 0.5
  context.font = TOKEN_FONT
  context.textAlign = 'left'
  context.fillStyle = colour
  // Wide characters are narrowed to the box.
  for (const [i, line] of lines.entries()) context.fillText(line, left, first + i * LINE, width)
}

/** The space that most tokens begin with is left out; the panel shows it. */
function brokenText(text: string, columns: number, rows: number): string[] {
  const most = columns * rows
  const characters = Array.from(inOneLine(text.slice(0, most + 2)).replace(/^·(?=[^·])/, ''))
  const shown =
    characters.length > most ? [...characters.slice(0, Math.max(1, most - 1)), '…'] : characters
  const lines = Math.ceil(shown.length / columns)
  return Array.from({ length: lines }, (_, i) =>
    shown.slice(i * columns, (i + 1) * columns).join(''),
  )
}

/** By worker and pixel: how many tokens a step brings, and whether any of them was given or found. */
function drawDensity(context: Context, scene: Scene, from: number, to: number): void {
  const { width, timeline, rowHeight, colours } = scene
  const columns = Math.ceil(width)
  const [firstRow, lastRow] = rowsInSight(scene)
  const { written, given, found } = density(scene, from, to, columns)
  const most = written.reduce((one, other) => Math.max(one, other), 0)
  for (let row = Math.max(1, firstRow); row < lastRow; row++) {
    const [worker, top] = [row - 1, topOf(scene, row) + 4]
    for (let x = 0; x < columns; x++) {
      const at = worker * columns + x
      if (given[at]! > 0) {
        context.fillStyle = colours.givenLine
        context.fillRect(x, top, 1, rowHeight - 9)
      }
      if (written[at]! === 0) continue
      context.fillStyle = colours.strong[worker]!
      context.globalAlpha = 0.3 + 0.5 * (written[at]! / most)
      context.fillRect(x, top, 1, rowHeight - 9)
      context.globalAlpha = 1
    }
  }
  context.fillStyle = colours.mark
  for (const at of found) {
    const [worker, x] = [Math.floor(at / columns), at % columns]
    if (worker < timeline.workers) {
      context.fillRect(x - 1, topOf(scene, worker + 1) + 2, 3, rowHeight - 5)
    }
  }
}

/** [workers, columns]: means over the steps of a column. */
function density(scene: Scene, from: number, to: number, columns: number) {
  const { timeline, axis, marked } = scene
  const { workers, counts, forced } = timeline.data.steps
  const written = new Float32Array(columns * timeline.workers)
  const given = new Float32Array(columns * timeline.workers)
  const steps = new Uint32Array(columns)
  const found = new Set<number>()
  for (let step = from; step < to; step++) {
    const left = Math.floor(xOf(scene, timeline.left(step, axis)))
    const right = Math.max(left + 1, Math.floor(xOf(scene, timeline.right(step, axis))))
    const [first, last] = [Math.max(0, left), Math.min(columns, right)]
    for (let x = first; x < last; x++) steps[x]!++
    for (let cell = timeline.cellBegin[step]!; cell < timeline.cellBegin[step + 1]!; cell++) {
      const row = workers[cell]! * columns
      for (let x = first; x < last; x++) {
        given[row + x]! += forced[cell]!
        written[row + x]! += counts[cell]! - forced[cell]!
      }
      if (marked.has(cell) && first < last) found.add(row + first)
    }
  }
  written.forEach((tokens, at) => {
    if (tokens > 0) written[at] = tokens / steps[at % columns]!
  })
  return { written, given, found }
}

/** What is there before the first step, in front of it. */
function drawPrompts(context: Context, scene: Scene): void {
  const { timeline, axis, rowHeight, colours } = scene
  const [first] = timeline.range(axis)
  const end = axis === 'steps' || timeline.steps === 0 ? 0 : timeline.left(0, axis)
  const [left, right] = [xOf(scene, first), xOf(scene, end)]
  if (right < 0 || right - left < 3) return
  for (const [row, text] of promptsByRow(scene)) {
    const top = topOf(scene, row) + 4
    context.fillStyle = colours.common.fill
    context.fillRect(left + 1, top, right - left - 2, rowHeight - 9)
    context.fillStyle = colours.common.strong
    context.fillRect(left + 1, top, 2, rowHeight - 9)
    const begin = Math.max(left, 0) + 7
    writeText(context, text, [begin, top, right - begin - 4, rowHeight - 9], colours)
  }
}

function promptsByRow(scene: Scene): Map<number, string> {
  const { timeline } = scene
  const { blocks, texts, events } = timeline.data
  const rows = new Map<number, string>()
  for (const event of events) {
    if (event.at > 0) break
    if (event.type !== 'prefill') continue
    const { kind, owner } = blocks[event.block]!
    const row = rowOf(kind === 'common' ? timeline.workers : owner, scene)
    const text = texts[event.text]! || counted(event.ids.length, 'token')
    rows.set(row, (rows.get(row) ?? '') + text)
  }
  return rows
}
