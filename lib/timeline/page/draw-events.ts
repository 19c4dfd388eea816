// What happened between steps: turns that move to what everybody sees, branches and their joins, stops, tokens that came.

import type { TimelineEvent } from '../data'
import type { Arrival } from './lives'
import { LABEL_FONT, rowOf, type Scene, topOf, xOf } from './scene'
import { clipped, inDigits, inOneLine } from './text'

type Context = CanvasRenderingContext2D

/** With more of a kind in sight lines between lanes would hide everything. */
const MOST_LINES = 60
/** Pixels. */
const LEAST_LABEL = 28

export function drawEvents(context: Context, scene: Scene): void {
  drawArrivals(context, scene)
  drawBranches(context, scene)
  drawStops(context, scene)
}

const inSight = ({ width }: Scene, x: number) => x > -20 && x < width + 20

function middleOf(scene: Scene, row: number): number {
  return topOf(scene, row) + scene.rowHeight / 2
}

function drawArrivals(context: Context, scene: Scene): void {
  const { lives, timeline, axis, colours, rowHeight, width } = scene
  const shown = lives.arrivals
    .filter(({ event, worker }) => event.at > 0 || worker >= 0)
    .map((arrival) => ({ ...arrival, x: xOf(scene, timeline.placeOf(arrival.event, axis)) }))
    .filter(({ x }) => inSight(scene, x))
  const withLines = shown.length <= MOST_LINES
  context.font = LABEL_FONT
  for (const [i, { event, worker, x }] of shown.entries()) {
    const colour = worker < 0 ? colours.common.strong : colours.strong[worker]!
    const top = topOf(scene, 0)
    if (withLines && worker >= 0) {
      context.strokeStyle = colour
      context.setLineDash([2, 3])
      line(context, x, middleOf(scene, worker + 1), x, top + rowHeight - 6)
      context.setLineDash([])
      arrow(context, colour, x, top + rowHeight - 10, -Math.PI / 2)
      dot(context, colour, x, middleOf(scene, worker + 1))
    }
    context.fillStyle = colour
    context.fillRect(x - 1, top + 4, 2, rowHeight - 9)
    const room = (shown[i + 1]?.x ?? width) - x - 8
    if (x < 0 || room < LEAST_LABEL) continue
    context.textAlign = 'left'
    context.fillStyle = colours.dim
    const label = clipped(arrivalLabel(scene, event, worker), Math.floor(room / 6))
    context.fillText(label, x + 5, top + rowHeight / 2, room)
  }
}

/** Whose turn it was or, where it was given, how many tokens. */
function arrivalLabel({ timeline }: Scene, event: Arrival['event'], worker: number): string {
  if (worker >= 0) return inOneLine(timeline.data.workers[worker]!).replaceAll('·', ' ')
  return event.type === 'prefill' ? `+${inDigits(event.ids.length)}` : '+'
}

/** From the parent to the branch and, where the parent waited for it, back from the branch's end. */
function drawBranches(context: Context, scene: Scene): void {
  const { lives, timeline, axis, colours } = scene
  const x = (event: TimelineEvent) => xOf(scene, timeline.placeOf(event, axis))
  lives.workers.forEach((life, worker) => {
    const { join, parent } = life
    if (join !== undefined && parent >= 0) {
      const at = x(join)
      curve(context, scene, colours.strong[worker]!, [at - 3, parent], [at + 1, worker])
    }
    for (const { to, joined } of life.waits) {
      if (to?.type !== 'resume') continue
      for (const child of joined) {
        const begin = x(lives.workers[child]!.stop!) + 4
        curve(context, scene, colours.strong[child]!, [begin, child], [x(to) + 1, worker])
      }
    }
  })
}

/** From one lane to another one; its last part comes from the left. */
function curve(
  context: Context,
  scene: Scene,
  colour: string,
  [x0, from]: [x: number, worker: number],
  [x1, to]: [x: number, worker: number],
): void {
  if (!inSight(scene, x0) && !inSight(scene, x1)) return
  const [begin, end] = [middleOf(scene, from + 1), middleOf(scene, to + 1)]
  const bend = Math.min(26, 8 + Math.abs(end - begin) / 6)
  const isBack = x1 - x0 < 2 * bend
  context.strokeStyle = colour
  context.lineWidth = 2
  context.beginPath()
  context.moveTo(x0, begin)
  context.bezierCurveTo(isBack ? x0 - bend : x1 - bend, begin, x1 - bend, end, x1 - 6, end)
  context.stroke()
  context.lineWidth = 1
  dot(context, colour, x0, begin)
  arrow(context, colour, x1, end, 0)
}

function drawStops(context: Context, scene: Scene): void {
  const { lives, timeline, axis, colours, rowHeight, width } = scene
  context.font = LABEL_FONT
  lives.workers.forEach(({ join, parent, stop }, worker) => {
    const top = topOf(scene, rowOf(worker, scene))
    if (join !== undefined && join.at > 0 && parent < 0) {
      const x = xOf(scene, timeline.placeOf(join, axis))
      if (inSight(scene, x)) arrow(context, colours.strong[worker]!, x, top + rowHeight / 2, 0)
    }
    if (stop === undefined) return
    const x = xOf(scene, timeline.placeOf(stop, axis))
    if (!inSight(scene, x)) return
    context.fillStyle = colours.strong[worker]!
    context.fillRect(x - 1, top + 4, 3, rowHeight - 9)
    // Where a curve goes on from here there is no room.
    if (width - x < 24 || isJoined(scene, worker)) return
    context.textAlign = 'left'
    context.fillStyle = colours.dim
    const label = stop.reason.replaceAll('-', ' ')
    if (context.measureText(label).width < width - x - 8) {
      context.fillText(label, x + 7, top + rowHeight / 2)
    }
  })
}

/** Whether the worker that it branches off waited for its end. */
function isJoined({ lives }: Scene, worker: number): boolean {
  const parent = lives.workers[lives.workers[worker]!.parent]
  return parent?.waits.some(({ joined }) => joined.includes(worker)) ?? false
}

function line(context: Context, x0: number, y0: number, x1: number, y1: number): void {
  context.beginPath()
  context.moveTo(x0, y0)
  context.lineTo(x1, y1)
  context.stroke()
}

function dot(context: Context, colour: string, x: number, y: number): void {
  context.fillStyle = colour
  context.beginPath()
  context.arc(x, y, 3, 0, 2 * Math.PI)
  context.fill()
}

/** Its point is at (x, y). */
function arrow(context: Context, colour: string, x: number, y: number, angle: number): void {
  context.save()
  context.translate(x, y)
  context.rotate(angle)
  context.fillStyle = colour
  context.beginPath()
  context.moveTo(0, 0)
  context.lineTo(-7, -4)
  context.lineTo(-7, 4)
  context.fill()
  context.restore()
}
