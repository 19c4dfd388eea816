// The chart on the page: canvases, the list of lanes, and what a pointer does to them.

import { hueOf } from './colours'
import { drawAxis, drawMap, STRIP_HEIGHT, TICKS_HEIGHT } from './draw-axis'
import { drawLanes } from './draw-lanes'
import { element } from './panel'
import { prepared, type Scene } from './scene'
import { inOneLine } from './text'
import type { Timeline } from './timeline'

const MAP_HEIGHT = 44

export function byId<Type extends HTMLElement>(id: string): Type {
  return document.getElementById(id) as Type
}

/** Names of the lanes, as buttons, of which the chosen one is reached by Tab. */
export class Labels {
  readonly #buttons: HTMLButtonElement[]
  #chosen = -1

  constructor(root: HTMLElement, { data }: Timeline, choose: (worker: number) => void) {
    const shared = element('li', {
      className: 'shared',
      children: [element('span', { text: 'seen by all' })],
    })
    this.#buttons = data.workers.map((name, worker) => {
      const shown = name === '' ? '(no name)' : inOneLine(name).replaceAll('·', ' ')
      const button = element('button', {
        children: [element('i', { className: 'swatch own' }), element('bdi', { text: shown })],
      })
      button.type = 'button'
      button.title = shown
      button.tabIndex = -1
      button.style.setProperty('--hue', hueOf(worker).toFixed(1))
      button.addEventListener('click', () => choose(worker))
      return button
    })
    root.append(shared, ...this.#buttons.map((button) => element('li', { children: [button] })))
  }

  choose(worker: number): void {
    if (worker === this.#chosen) return
    const before = this.#buttons[this.#chosen]
    const hadFocus = before !== undefined && document.activeElement === before
    before?.removeAttribute('aria-current')
    if (before !== undefined) before.tabIndex = -1
    const button = this.#buttons[worker]
    this.#chosen = worker
    if (button === undefined) return
    button.setAttribute('aria-current', 'true')
    button.tabIndex = 0
    if (hadFocus) button.focus({ preventScroll: true })
  }
}

/** Draws all canvases. */
export function drawChart(scene: Scene): void {
  const { width, flowWidth, height } = scene
  drawAxis(prepared(byId('axis'), width, TICKS_HEIGHT + STRIP_HEIGHT), scene)
  drawLanes(prepared(byId('plot'), width + flowWidth, height), scene)
  const map = byId('map').clientWidth
  drawMap(prepared(byId('map-canvas'), map, MAP_HEIGHT), scene, map, MAP_HEIGHT)
}

export interface Gestures {
  /** By a distance in pixels. */
  pan(pixels: number): void
  /** Around a place in pixels. */
  zoom(factor: number, x: number): void
  /** A point of the plot was chosen. */
  pick(x: number, y: number): void
  /** A point is looked at; undefined: none any more. */
  point(at: { x: number; y: number; clientX: number; clientY: number } | undefined): void
}

const CLICK_PIXELS = 4

/** Drag pans, two fingers and Ctrl+wheel zoom, a click chooses. */
export function listen(canvas: HTMLElement, lanes: HTMLElement, gestures: Gestures): void {
  const pointers = new Map<number, { x: number; y: number }>()
  let moved = 0
  const local = (event: MouseEvent) => {
    const box = canvas.getBoundingClientRect()
    return { x: event.clientX - box.left, y: event.clientY - box.top }
  }
  canvas.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return
    if (pointers.size === 0) moved = 0
    pointers.set(event.pointerId, local(event))
    canvas.setPointerCapture(event.pointerId)
  })
  canvas.addEventListener('pointermove', (event) => {
    const at = local(event)
    const before = pointers.get(event.pointerId)
    if (before === undefined) {
      gestures.point({ ...at, clientX: event.clientX, clientY: event.clientY })
      return
    }
    moved += Math.abs(at.x - before.x) + Math.abs(at.y - before.y)
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1]
    pointers.set(event.pointerId, at)
    if (other !== undefined) {
      const apart = (point: { x: number }) => Math.max(8, Math.abs(point.x - other.x))
      gestures.zoom(apart(before) / apart(at), (at.x + other.x) / 2)
    } else if (moved > CLICK_PIXELS) gestures.pan(before.x - at.x)
  })
  const release = (event: PointerEvent, picks: boolean) => {
    const was = pointers.delete(event.pointerId)
    if (!was || !picks || moved > CLICK_PIXELS) return
    const { x, y } = local(event)
    gestures.pick(x, y)
  }
  canvas.addEventListener('pointerup', (event) => release(event, true))
  canvas.addEventListener('pointercancel', (event) => release(event, false))
  canvas.addEventListener('pointerleave', () => gestures.point(undefined))
  canvas.addEventListener('wheel', (event) => onWheel(event, lanes, gestures, local(event).x), {
    passive: false,
  })
}

function onWheel(event: WheelEvent, lanes: HTMLElement, gestures: Gestures, x: number): void {
  const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1
  const [across, down] = [event.deltaX * unit, event.deltaY * unit]
  const canScroll = lanes.scrollHeight > lanes.clientHeight
  if (event.ctrlKey || event.metaKey) gestures.zoom(Math.exp(down / 300), x)
  else if (event.shiftKey) gestures.pan(down || across)
  else if (Math.abs(across) > Math.abs(down)) gestures.pan(across)
  else if (canScroll) return
  else gestures.zoom(Math.exp(down / 600), x)
  event.preventDefault()
}

/** Moves the chosen step with the pointer. */
export function listenToMap(map: HTMLElement, scrub: (share: number) => void): void {
  let isDown = false
  const move = (event: PointerEvent) => {
    const { left, width } = map.getBoundingClientRect()
    scrub(Math.max(0, Math.min(1, (event.clientX - left) / width)))
  }
  map.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return
    isDown = true
    map.setPointerCapture(event.pointerId)
    move(event)
  })
  map.addEventListener('pointermove', (event) => {
    if (isDown) move(event)
  })
  for (const type of ['pointerup', 'pointercancel'] as const) {
    map.addEventListener(type, () => {
      isDown = false
    })
  }
}
