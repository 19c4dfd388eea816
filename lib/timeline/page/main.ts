// The page: reads its data, keeps what is chosen, and draws it again when that changes.

import type { TimelineData } from '../data'
import { Attention } from './attention'
import { Blocks } from './blocks'
import { byId, drawChart, Labels, listen, listenToMap } from './chart'
import { type Colours, coloursOf } from './colours'
import { bindKeys } from './keys'
import { livesOf, stopsOf } from './lives'
import { idsText, Panel } from './panel'
import type { Scene } from './scene'
import { cellsOf, type Match, search } from './search'
import { Sight } from './sight'
import { showSummary } from './summary'
import { counted, inDigits, inOneLine, inTime } from './text'
import { type Axis, Timeline } from './timeline'

/** Pixels. A few lanes fill the room that there is. */
const ROW = { least: 30, most: 68, narrow: 40 }
const FLOW_WIDTH = { wide: 168, narrow: 84 }

export class Page {
  readonly timeline: Timeline
  readonly #lives
  readonly #attention: Attention
  readonly #panel: Panel
  readonly #labels: Labels
  readonly #sight: Sight
  readonly #stops: readonly number[]
  #colours: Colours
  #axis: Axis = 'steps'
  #step: number
  #worker = 0
  #flowOfSight = false
  #query = ''
  #matches: readonly Match[] = []
  #marked: ReadonlySet<number> = new Set()
  #match = -1
  #rowHeight = ROW.least
  #isAsked = false
  #isFirst = true

  constructor(data: TimelineData) {
    const timeline = new Timeline(data)
    this.timeline = timeline
    this.#lives = livesOf(timeline)
    this.#stops = stopsOf(timeline)
    this.#attention = new Attention(timeline)
    this.#panel = new Panel(byId('panel'), timeline, new Blocks(timeline))
    this.#labels = new Labels(byId('labels'), timeline, (worker) => this.chooseWorker(worker))
    this.#sight = new Sight(timeline, this.#axis)
    this.#colours = coloursOf(timeline.workers)
    this.#step = Math.max(0, timeline.steps - 1)
    showSummary(timeline, this.#lives)
    byId('time').toggleAttribute('disabled', !timeline.hasTimes)
    byId('strip-name').hidden = !timeline.hasTimes
    byId('flow-tools').hidden = !this.#hasFlow
    byId('flow-head').hidden = !this.#hasFlow
    this.#listen()
    this.#fitRows()
    this.draw()
  }

  get #hasFlow(): boolean {
    return this.#attention.cells.length > 0
  }

  get step(): number {
    return this.#step
  }

  chooseStep(step: number): void {
    this.#step = Math.max(0, Math.min(this.timeline.steps - 1, step))
    this.#sight.reveal(this.#step)
    this.draw()
  }

  chooseWorker(worker: number): void {
    this.#worker = Math.max(0, Math.min(this.timeline.workers - 1, worker))
    this.#revealRow()
    this.draw()
  }

  /** The chosen worker, so many further down. */
  moveWorker(by: number): void {
    this.chooseWorker(this.#worker + by)
  }

  /** To where something happened next. */
  moveToStop(direction: 1 | -1): void {
    const found =
      direction > 0
        ? this.#stops.find((at) => at > this.#step)
        : this.#stops.findLast((at) => at < this.#step)
    this.chooseStep(found ?? (direction > 0 ? this.timeline.steps - 1 : 0))
  }

  zoom(factor: number): void {
    this.#sight.zoom(factor, this.#sight.shareOf(this.#step))
    this.#sight.reveal(this.#step)
    this.draw()
  }

  pan(share: number): void {
    this.#sight.pan(share)
    this.draw()
  }

  fit(): void {
    this.#sight.all()
    this.draw()
  }

  turnAxis(axis: Axis = this.#axis === 'steps' ? 'time' : 'steps'): void {
    if (axis === 'time' && !this.timeline.hasTimes) return
    this.#sight.turn(axis)
    this.#axis = axis
    this.draw()
  }

  turnFlow(ofSight: boolean = !this.#flowOfSight): void {
    this.#flowOfSight = ofSight
    this.draw()
  }

  search(query: string): void {
    this.#query = query
    this.#matches = search(this.timeline, query)
    this.#marked = new Set(this.#matches.flatMap((match) => cellsOf(match, this.timeline)))
    this.#match = -1
    if (this.#matches.length > 0) this.moveToMatch(1)
    else this.draw()
  }

  moveToMatch(direction: 1 | -1): void {
    const { length } = this.#matches
    if (length === 0) return
    this.#match = (this.#match + direction + length) % length
    const { lane, step } = this.#matches[this.#match]!
    if (lane < this.timeline.workers) this.#worker = lane
    this.#revealRow()
    this.chooseStep(step)
  }

  /** Draws with the next frame. */
  draw(): void {
    if (this.#isAsked) return
    this.#isAsked = true
    requestAnimationFrame(() => {
      this.#isAsked = false
      this.#draw()
    })
  }

  #draw(): void {
    const scene = this.#scene()
    drawChart(scene)
    this.#labels.choose(this.#worker)
    this.#panel.show({ step: this.#step, worker: this.#worker, query: this.#query })
    this.#showState()
    if (this.#isFirst) performance.mark('hogwild-drawn')
    this.#isFirst = false
  }

  #scene(): Scene {
    const lanes = byId('lanes')
    const isNarrow = lanes.clientWidth < 560
    const flowWidth = this.#hasFlow ? FLOW_WIDTH[isNarrow ? 'narrow' : 'wide'] : 0
    const room = byId('plot-room')
    return {
      timeline: this.timeline,
      ...{ lives: this.#lives, attention: this.#attention, colours: this.#colours },
      ...{ axis: this.#axis, begin: this.#sight.begin, end: this.#sight.end },
      ...{ width: Math.max(40, room.clientWidth - flowWidth), flowWidth },
      flowOfSight: this.#flowOfSight,
      rowHeight: this.#rowHeight,
      ...{ height: lanes.clientHeight, scrollTop: lanes.scrollTop },
      ...{ step: this.#step, worker: this.#worker },
      ...{ matches: this.#matches, marked: this.#marked, match: this.#matches[this.#match] },
    }
  }

  #fitRows(): void {
    const rows = this.timeline.workers + 1
    const isNarrow = matchMedia('(max-width: 760px)').matches
    const room = isNarrow ? (rows > 9 ? 0 : ROW.narrow) : byId('lanes').clientHeight / rows
    this.#rowHeight = Math.max(ROW.least, Math.min(ROW.most, Math.floor(room)))
    document.documentElement.style.setProperty('--row', `${this.#rowHeight}px`)
  }

  #showState(): void {
    const { timeline } = this
    const { numbers, ends } = timeline.data.steps
    const number = numbers[this.#step]
    const time = timeline.hasTimes ? ` · ${inTime(ends[this.#step] ?? 0)}` : ''
    const text = number === undefined ? 'no step' : `step ${inDigits(number)}${time}`
    byId('where').textContent = text
    const map = byId('map')
    map.setAttribute('aria-valuemax', String(Math.max(0, timeline.steps - 1)))
    map.setAttribute('aria-valuenow', String(this.#step))
    map.setAttribute('aria-valuetext', text)
    const found = this.#matches.length
    byId('found').textContent =
      this.#query === ''
        ? ''
        : found === 0
          ? 'not found'
          : `${inDigits(this.#match + 1)} of ${inDigits(found)}`
    press('steps', this.#axis === 'steps')
    press('time', this.#axis === 'time')
    press('flow-step', !this.#flowOfSight)
    press('flow-sight', this.#flowOfSight)
    byId('flow-head').textContent = this.#flowOfSight
      ? 'attention, mean of what is in sight'
      : 'attention at this step'
  }

  #revealRow(): void {
    const lanes = byId('lanes')
    const row = lanes.scrollHeight / (this.timeline.workers + 1)
    const top = (this.#worker + 1) * row
    if (top < lanes.scrollTop) lanes.scrollTop = top - row
    else if (top + row > lanes.scrollTop + lanes.clientHeight) {
      lanes.scrollTop = top + 2 * row - lanes.clientHeight
    }
  }

  #listen(): void {
    const onClick = (id: string, act: () => void) => byId(id).addEventListener('click', act)
    onClick('back', () => this.chooseStep(this.#step - 1))
    onClick('forth', () => this.chooseStep(this.#step + 1))
    onClick('closer', () => this.zoom(0.5))
    onClick('further', () => this.zoom(2))
    onClick('fit', () => this.fit())
    onClick('steps', () => this.turnAxis('steps'))
    onClick('time', () => this.turnAxis('time'))
    onClick('flow-step', () => this.turnFlow(false))
    onClick('flow-sight', () => this.turnFlow(true))
    bindKeys(this)
    this.#listenToChart()
    new ResizeObserver(() => {
      this.#fitRows()
      this.draw()
    }).observe(byId('chart'))
    byId('lanes').addEventListener('scroll', () => this.draw())
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
      this.#colours = coloursOf(this.timeline.workers)
      this.draw()
    })
  }

  #listenToChart(): void {
    const width = () => this.#scene().width
    listen(byId('plot'), byId('lanes'), {
      pan: (pixels) => this.pan(pixels / width()),
      zoom: (factor, x) => {
        this.#sight.zoom(factor, Math.max(0, Math.min(1, x / width())))
        this.draw()
      },
      pick: (x, y) => this.#pick(x, y),
      point: (at) => this.#point(at),
    })
    listenToMap(byId('map'), (share) => {
      const [first, last] = this.timeline.range(this.#axis)
      this.chooseStep(this.timeline.stepAt(first + share * (last - first), this.#axis))
    })
  }

  #placeAt(x: number, y: number) {
    const { begin, end, width, rowHeight, scrollTop } = this.#scene()
    const step = this.timeline.stepAt(begin + (x / width) * (end - begin), this.#axis)
    return { step, worker: Math.floor((y + scrollTop) / rowHeight) - 1, isFlow: x > width }
  }

  #pick(x: number, y: number): void {
    const { step, worker, isFlow } = this.#placeAt(x, y)
    byId('plot').focus({ preventScroll: true })
    if (worker >= 0 && worker < this.timeline.workers) this.#worker = worker
    if (isFlow || this.timeline.steps === 0) this.draw()
    else this.chooseStep(step)
  }

  /** A note beside the pointer. */
  #point(at: { x: number; y: number; clientX: number; clientY: number } | undefined): void {
    const tip = byId('tip')
    const place = at && this.#placeAt(at.x, at.y)
    const cell = place && !place.isFlow ? this.timeline.cellAt(place.step, place.worker) : -1
    tip.hidden = cell < 0
    if (cell < 0 || at === undefined || place === undefined) return
    const { workers, steps } = this.timeline.data
    const given = steps.forced[cell] === steps.counts[cell] ? 'given' : 'written'
    const facts = [
      inOneLine(workers[place.worker]!).replaceAll('·', ' '),
      `step ${inDigits(steps.numbers[place.step]!)}`,
      `${counted(steps.counts[cell]!, 'token')}, ${given}`,
    ]
    byId('tip-text').textContent = inOneLine(this.timeline.textOf(cell).slice(0, 160))
    byId('tip-facts').textContent = `${facts.join(' · ')} · id ${idsText(this.timeline, cell)}`
    tip.style.left = `${Math.max(8, Math.min(at.clientX + 14, window.innerWidth - tip.offsetWidth - 8))}px`
    tip.style.top = `${Math.max(8, Math.min(at.clientY + 18, window.innerHeight - tip.offsetHeight - 8))}px`
  }
}

function press(id: string, isPressed: boolean): void {
  byId(id).setAttribute('aria-pressed', String(isPressed))
}

new Page(JSON.parse(byId('data').textContent!) as TimelineData)
