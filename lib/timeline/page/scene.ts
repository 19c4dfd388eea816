// What is drawn: the part of the run that is in sight, what is chosen, and where things stand in pixels.

import type { Attention } from './attention'
import type { Colours } from './colours'
import type { Lives } from './lives'
import type { Match } from './search'
import type { Axis, Timeline } from './timeline'

export interface Scene {
  timeline: Timeline
  lives: Lives
  attention: Attention
  colours: Colours
  axis: Axis
  /** The places at the left and at the right edge. */
  begin: number
  end: number
  /** Of the plot, in pixels. */
  width: number
  /** Of the column behind it that shows attention; 0: there is none. */
  flowWidth: number
  /** Whether attention is that of the steps in sight, or of the chosen one. */
  flowOfSight: boolean
  rowHeight: number
  /** Of the lanes in sight, in pixels. */
  height: number
  scrollTop: number
  step: number
  /** The chosen worker. */
  worker: number
  matches: readonly Match[]
  /** Cells of matches. */
  marked: ReadonlySet<number>
  match: Match | undefined
}

export function xOf({ begin, end, width }: Scene, place: number): number {
  return ((place - begin) / (end - begin)) * width
}

/** Row 0 is of what everybody sees, then come the workers. */
export function topOf({ rowHeight, scrollTop }: Scene, row: number): number {
  return row * rowHeight - scrollTop
}

export function rowOf(lane: number, { timeline }: Scene): number {
  return lane === timeline.workers ? 0 : lane + 1
}

/** The steps that are in sight, the last one excluded. */
export function stepsInSight({ timeline, axis, begin, end }: Scene): [number, number] {
  if (timeline.steps === 0) return [0, 0]
  return [timeline.stepAt(begin, axis), timeline.stepAt(end, axis) + 1]
}

/** Draws on a canvas of so many CSS pixels, cleared. */
export function prepared(
  canvas: HTMLCanvasElement,
  width: number,
  height: number,
): CanvasRenderingContext2D {
  const ratio = window.devicePixelRatio || 1
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)]
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w
    canvas.height = h
    canvas.style.width = `${width}px`
    canvas.style.height = `${height}px`
  }
  const context = canvas.getContext('2d')!
  context.setTransform(ratio, 0, 0, ratio, 0, 0)
  context.clearRect(0, 0, width, height)
  context.direction = 'ltr'
  context.textBaseline = 'middle'
  return context
}

export const TOKEN_FONT =
  '12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'
export const LABEL_FONT = '11px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif'
