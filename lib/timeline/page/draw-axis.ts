// The rows above the lanes (numbers of steps or times, and how long each step took) and the map of the whole run below.

import { LABEL_FONT, type Scene, stepsInSight, xOf } from './scene'
import { inDigits, inTime } from './text'
import type { Timeline } from './timeline'

type Context = CanvasRenderingContext2D

export const TICKS_HEIGHT = 24
export const STRIP_HEIGHT = 34
const LEAST_TICK_PIXELS = 72

export function drawAxis(context: Context, scene: Scene): void {
  drawTicks(context, scene)
  if (scene.timeline.hasTimes) drawStepTimes(context, scene)
  drawWarnings(context, scene)
  drawCursor(context, scene, TICKS_HEIGHT + STRIP_HEIGHT)
}

/** 1, 2 or 5 times a power of ten. */
function tickStep(range: number, ticks: number): number {
  const least = range / Math.max(1, ticks)
  const power = 10 ** Math.floor(Math.log10(least))
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= least) ?? 10)
}

function drawTicks(context: Context, scene: Scene): void {
  const { axis, begin, end, width, timeline, colours } = scene
  const found = tickStep(end - begin, width / LEAST_TICK_PIXELS)
  const step = axis === 'steps' ? Math.max(1, found) : found
  context.font = LABEL_FONT
  context.textAlign = 'left'
  for (let place = Math.ceil(begin / step) * step; place < end; place += step) {
    const x = xOf(scene, place)
    if (axis === 'steps' && place >= timeline.steps) break
    context.fillStyle = colours.line
    context.fillRect(Math.round(x), 4, 1, TICKS_HEIGHT - 4)
    context.fillStyle = colours.dim
    const text = axis === 'time' ? inTime(place) : placeName(timeline, place)
    if (x + context.measureText(text).width + 6 < width) context.fillText(text, x + 5, 13)
  }
}

function placeName({ data }: Timeline, place: number): string {
  return place < 0 ? 'prompt' : inDigits(data.steps.numbers[place]!)
}

function drawStepTimes(context: Context, scene: Scene): void {
  const { timeline, axis, width, colours } = scene
  const { milliseconds } = timeline.data.steps
  const [from, to] = stepsInSight(scene)
  const bars = new Float64Array(Math.ceil(width) + 1)
  let longest = 0
  for (let step = from; step < to; step++) longest = Math.max(longest, milliseconds[step]!)
  for (let step = from; step < to; step++) {
    const left = Math.max(0, Math.floor(xOf(scene, timeline.left(step, axis))))
    const right = Math.max(left + 1, Math.ceil(xOf(scene, timeline.right(step, axis))) - 1)
    for (let x = left; x < Math.min(right, width); x++) {
      bars[x] = Math.max(bars[x]!, milliseconds[step]!)
    }
  }
  const bottom = TICKS_HEIGHT + STRIP_HEIGHT - 2
  context.fillStyle = colours.accent
  context.globalAlpha = 0.55
  for (let x = 0; x < width; x++) {
    const height = longest > 0 ? (bars[x]! / longest) * (STRIP_HEIGHT - 10) : 0
    if (height > 0) context.fillRect(x, bottom - Math.max(1, height), 1, Math.max(1, height))
  }
  context.globalAlpha = 1
}

function drawWarnings(context: Context, scene: Scene): void {
  const { lives, timeline, axis, colours } = scene
  context.fillStyle = colours.current
  for (const event of lives.warnings) {
    const x = xOf(scene, timeline.placeOf(event, axis))
    context.beginPath()
    context.moveTo(x, 1)
    context.lineTo(x + 5, 9)
    context.lineTo(x - 5, 9)
    context.fill()
  }
}

/** The chosen step. */
export function drawCursor(context: Context, scene: Scene, height: number): void {
  const { timeline, axis, step, width, colours } = scene
  if (timeline.steps === 0) return
  const left = xOf(scene, timeline.left(step, axis))
  const right = Math.max(left + 2, xOf(scene, timeline.right(step, axis)))
  if (right < 0 || left > width) return
  context.fillStyle = colours.accent
  context.globalAlpha = 0.13
  context.fillRect(left, 0, right - left, height)
  context.globalAlpha = 1
  context.fillRect(Math.round(left) - 1, 0, 2, height)
}

/** Most tokens of a step, where matches are, which part is in sight, and where the chosen step is. */
export function drawMap(context: Context, scene: Scene, width: number, height: number): void {
  const { timeline, axis, colours, begin, end, matches, step } = scene
  const [first, last] = timeline.range(axis)
  const x = (place: number) => ((place - first) / (last - first)) * width
  const bars = new Float64Array(Math.ceil(width))
  for (let step = 0; step < timeline.steps; step++) {
    const left = Math.max(0, Math.floor(x(timeline.left(step, axis))))
    const right = Math.max(left + 1, Math.floor(x(timeline.right(step, axis))))
    const tokens =
      timeline.idBegin[timeline.cellBegin[step + 1]!]! -
      timeline.idBegin[timeline.cellBegin[step]!]!
    for (let at = left; at < Math.min(right, bars.length); at++)
      bars[at] = Math.max(bars[at]!, tokens)
  }
  const most = bars.reduce((one, other) => Math.max(one, other), 1)
  context.fillStyle = colours.dim
  context.globalAlpha = 0.6
  bars.forEach((tokens, at) => {
    // The root, so that a long prompt leaves something of the rest.
    const bar = Math.sqrt(tokens / most) * (height - 8)
    if (tokens > 0) context.fillRect(at, height - bar, 1, bar)
  })
  context.globalAlpha = 1
  context.fillStyle = colours.mark
  for (const match of matches) context.fillRect(x(timeline.left(match.step, axis)) - 1, 0, 2, 6)
  const [left, right] = [x(begin), Math.max(x(end), x(begin) + 3)]
  context.fillStyle = colours.ground
  context.globalAlpha = 0.65
  context.fillRect(0, 0, left, height)
  context.fillRect(right, 0, width - right, height)
  context.globalAlpha = 1
  context.strokeStyle = colours.dim
  context.strokeRect(left + 0.5, 0.5, Math.max(2, right - left - 1), height - 1)
  if (timeline.steps === 0) return
  context.fillStyle = colours.accent
  context.fillRect(x(timeline.left(step, axis)) - 1, 0, 3, height)
}
