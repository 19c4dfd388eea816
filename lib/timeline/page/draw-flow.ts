// Attention as ribbons: from the lane of the worker that looks, at the left, to the lane whose text it looks at. A lane's
// ribbons at the left have the height of its shares; those at the right are to the scale of the lane that gets most.

import { rowOf, type Scene, stepsInSight, topOf } from './scene'

const MARGIN = 10
/** Thinner ribbons are not drawn. */
const LEAST_PIXELS = 0.4

/** The means that are shown, [workers, lanes]. */
function flowOf(scene: Scene): Float64Array {
  const { attention, step, flowOfSight } = scene
  return flowOfSight ? attention.mean(...stepsInSight(scene)) : attention.mean(step, step + 1)
}

export function drawFlow(context: CanvasRenderingContext2D, scene: Scene): void {
  const { attention, timeline, width, flowWidth, height, rowHeight, colours, worker } = scene
  const shares = flowOf(scene)
  const { lanes } = attention
  const received = new Float64Array(lanes)
  for (const [i, share] of shares.entries()) received[i % lanes]! += share
  const most = received.reduce((one, other) => Math.max(one, other), 1e-9)
  const full = rowHeight - 9
  const [left, right] = [width + MARGIN, width + flowWidth - MARGIN]
  context.save()
  context.beginPath()
  context.rect(width, 0, flowWidth, height)
  context.clip()
  context.fillStyle = colours.raised
  context.fillRect(width, 0, flowWidth, height)
  context.fillStyle = colours.line
  context.fillRect(width, 0, 1, height)
  const begins = Float64Array.from(
    { length: lanes },
    (_, lane) => topOf(scene, rowOf(lane, scene)) + 4,
  )
  const ends = begins.slice()
  for (let reader = 0; reader < timeline.workers; reader++) {
    const isChosen = reader === worker
    for (const lane of lanesInOrder(timeline.workers)) {
      const share = shares[reader * lanes + lane]!
      const [from, to] = [begins[reader]!, ends[lane]!]
      const [thick, thin] = [share * full, (share / most) * full]
      begins[reader]! += thick
      ends[lane]! += thin
      if (thick < LEAST_PIXELS) continue
      context.fillStyle = colours.strong[reader]!
      context.globalAlpha = isChosen ? 0.75 : 0.22
      ribbon(context, [left, from, thick], [right, to, thin])
    }
  }
  context.globalAlpha = 1
  for (let lane = 0; lane < lanes; lane++) {
    const top = topOf(scene, rowOf(lane, scene)) + 4
    context.fillStyle = lane < timeline.workers ? colours.strong[lane]! : colours.common.strong
    if (lane < timeline.workers) context.fillRect(left - 4, top, 3, full)
    context.fillRect(right + 1, top, 3, Math.max(1, (received[lane]! / most) * full))
  }
  context.restore()
}

/** What everybody sees is the uppermost lane. */
function lanesInOrder(workers: number): number[] {
  return [workers, ...Array.from({ length: workers }, (_, worker) => worker)]
}

type End = [x: number, top: number, height: number]

function ribbon(context: CanvasRenderingContext2D, [x0, y0, h0]: End, [x1, y1, h1]: End): void {
  const middle = (x0 + x1) / 2
  context.beginPath()
  context.moveTo(x0, y0)
  context.bezierCurveTo(middle, y0, middle, y1, x1, y1)
  context.lineTo(x1, y1 + h1)
  context.bezierCurveTo(middle, y1 + h1, middle, y0 + h0, x0, y0 + h0)
  context.fill()
}
