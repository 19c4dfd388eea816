// The panel: what the chosen worker saw at the chosen step, block by block, in order, with places and text. All text goes in as
// text nodes, never as HTML.

import {
  type Blocks,
  idsOf,
  type Piece,
  type Seen,
  type SeenEntry,
  separatorOf,
  textOf,
} from './blocks'
import { hueOf } from './colours'
import { patternOf } from './search'
import { counted, inDigits, inLines, inOneLine, inTime } from './text'
import type { Timeline } from './timeline'

/** Characters of a block's end that are shown until more is asked for. */
const SHOWN = 600

interface PanelState {
  step: number
  worker: number
  query: string
}

export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  {
    className,
    text,
    children = [],
  }: { className?: string; text?: string; children?: (Node | string)[] } = {},
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name)
  if (className !== undefined) made.className = className
  made.append(...(text === undefined ? [] : [text]), ...children)
  return made
}

export class Panel {
  readonly #root: HTMLElement
  readonly #timeline: Timeline
  readonly #blocks: Blocks
  /** Blocks whose whole text is shown. */
  readonly #whole = new Set<number>()
  #shown: PanelState | undefined

  constructor(root: HTMLElement, timeline: Timeline, blocks: Blocks) {
    this.#root = root
    this.#timeline = timeline
    this.#blocks = blocks
  }

  show(state: PanelState): void {
    const { step, worker, query } = state
    const last = this.#shown
    if (last?.step === step && last.worker === worker && last.query === query) return
    this.#shown = { ...state }
    this.#draw(state)
  }

  #draw(state: PanelState): void {
    const { step, worker } = state
    const { workers } = this.#timeline.data
    if (this.#timeline.steps === 0 || workers.length === 0) {
      const text = 'No step was computed: there is nothing that a worker saw.'
      this.#root.replaceChildren(element('p', { className: 'empty', text }))
      return
    }
    const seen = this.#blocks.seen(step, worker)
    const title = element('h2', {
      children: [
        seen === undefined || seen.cell >= 0 ? 'What ' : 'What stood before ',
        isolated(workers[worker]!, 'who'),
        seen === undefined || seen.cell >= 0 ? ' saw' : '',
      ],
    })
    const parts: HTMLElement[] = [title, this.#facts(step, worker, seen)]
    if (seen === undefined) {
      parts.push(element('p', { className: 'empty', text: 'It had not joined yet.' }))
    } else parts.push(this.#strip(seen), this.#list(seen, state))
    this.#root.style.setProperty('--hue', hueOf(worker).toFixed(1))
    this.#root.replaceChildren(...parts)
    // What came last is what one wants to see.
    for (const text of this.#root.querySelectorAll('pre')) text.scrollTop = text.scrollHeight
  }

  #facts(step: number, worker: number, seen: Seen | undefined): HTMLElement {
    const timeline = this.#timeline
    const { numbers, ends, milliseconds, counts, forced } = timeline.data.steps
    const facts = [`step ${inDigits(numbers[step]!)}`]
    if (timeline.hasTimes) {
      facts.push(`done at ${inTime(ends[step]!)}`, `${inTime(milliseconds[step]!)} forward pass`)
    }
    const cell = timeline.cellAt(step, worker)
    if (cell < 0) {
      if (seen !== undefined) facts.push('takes no part in this step')
    } else {
      const kind = ['written', 'given', 'given and written']
      const place = forced[cell] === 0 ? 0 : forced[cell] === counts[cell] ? 1 : 2
      facts.push(`brings ${counted(counts[cell]!, 'token')} (${kind[place]})`)
    }
    const line = element('p', { className: 'facts', text: facts.join(' · ') })
    if (cell < 0) return line
    const brought = element('p', {
      className: 'brought',
      children: ['Brings ', this.#brought(cell)],
    })
    return element('div', { children: [line, brought] })
  }

  #brought(cell: number): HTMLElement {
    const text = this.#timeline.textOf(cell)
    const ids = this.#timeline.idsOf(cell)
    const shown = ids.slice(0, 12).join(' ') + (ids.length > 12 ? ' …' : '')
    const code = isolated(text === '' ? 'no text yet' : inOneLine(text.slice(0, 200)), 'token')
    return element('span', {
      children: [code, element('span', { className: 'ids', text: ` id ${shown}` })],
    })
  }

  /** The view as a bar: each block with its share of the tokens. */
  #strip({ entries, end }: Seen): HTMLElement {
    const total = entries.reduce((sum, { shown }) => sum + shown, 0)
    const bars = entries.map((seen) => {
      const bar = element('i', { className: this.#classOf(seen) })
      bar.style.flexGrow = String(seen.shown)
      this.#tint(bar, seen)
      return bar
    })
    const strip = element('div', { className: 'strip', children: bars })
    strip.setAttribute('aria-hidden', 'true')
    const places = end === total ? '' : `, places up to ${inDigits(end)}`
    const text = `sees ${counted(total, 'token')} in ${counted(entries.length, 'block')}${places}`
    return element('div', { children: [strip, element('p', { className: 'facts', text })] })
  }

  #list(seen: Seen, state: PanelState): HTMLElement {
    return element('ol', {
      className: 'blocks',
      children: seen.entries.map((entry) => this.#entry(entry, state)),
    })
  }

  #entry(seen: SeenEntry, state: PanelState): HTMLElement {
    const { entry, start, shown, fresh, share } = seen
    const head = element('div', {
      className: 'entry',
      children: [
        element('i', { className: `swatch ${this.#classOf(seen)}` }),
        isolated(this.#nameOf(seen), 'name'),
        element('span', {
          className: 'places',
          text: shown === 0 ? 'empty' : `${inDigits(start)}–${inDigits(start + shown - 1)}`,
        }),
        ...badges(seen).map((text) => element('span', { className: 'badge', text })),
      ],
    })
    const parts: HTMLElement[] = [head]
    const counts = [
      counted(shown, 'token'),
      ...(fresh > 0 ? [`${inDigits(fresh)} new in this step`] : []),
    ]
    parts.push(element('p', { className: 'facts', text: counts.join(' · ') }))
    if (share !== undefined) parts.push(shareBar(share))
    if (shown > 0) parts.push(...this.#text(seen, state, entry.block))
    const item = element('li', { children: parts })
    this.#tint(item, seen)
    return item
  }

  #text({ pieces, fresh }: SeenEntry, state: PanelState, block: number): HTMLElement[] {
    const isWhole = this.#whole.has(block)
    const { text, freshFrom, length } = this.#ending(pieces, fresh > 0, isWhole ? Infinity : SHOWN)
    const pre = element('pre')
    pre.dir = 'auto'
    pre.tabIndex = length > SHOWN && isWhole ? 0 : -1
    if (text.length < length) pre.append('…')
    appendMarked(pre, text.slice(0, freshFrom), state.query)
    if (freshFrom < text.length) {
      const now = element('span', { className: 'fresh' })
      appendMarked(now, text.slice(freshFrom), state.query)
      pre.append(now)
    }
    if (length <= SHOWN) return [pre]
    const label = isWhole ? 'Only the end' : `All ${inDigits(length)} characters`
    const button = element('button', { className: 'more', text: label })
    button.type = 'button'
    button.addEventListener('click', () => {
      if (isWhole) this.#whole.delete(block)
      else this.#whole.add(block)
      this.#draw(state)
    })
    return [pre, button]
  }

  /** The last characters of a text, and from where on they came in this step. `length`: of the whole text. */
  #ending(pieces: readonly Piece[], hasFresh: boolean, most: number) {
    const texts = pieces.map((piece) => textOf(piece, this.#timeline))
    const separator = separatorOf(this.#timeline)
    const whole = texts.join(separator)
    const freshLength = hasFresh ? texts.at(-1)!.length : 0
    const cut = Math.max(0, whole.length - most)
    const before = inLines(whole.slice(cut, Math.max(cut, whole.length - freshLength)))
    const text = before + inLines(whole.slice(Math.max(cut, whole.length - freshLength)))
    return { text, freshFrom: before.length, length: text.length + cut }
  }

  #nameOf({ entry }: SeenEntry): string {
    const { name, kind, owner } = this.#timeline.data.blocks[entry.block]!
    const worker = this.#timeline.data.workers[owner]
    if (worker === undefined || this.#timeline.data.head === null) return name
    if (kind === 'own') return worker
    return kind === 'header' ? `header of ${worker}` : `common of ${worker}`
  }

  #classOf({ entry }: SeenEntry): string {
    return this.#timeline.data.blocks[entry.block]!.kind === 'common' ? 'common' : 'own'
  }

  #tint(node: HTMLElement, { entry }: SeenEntry): void {
    const { owner } = this.#timeline.data.blocks[entry.block]!
    if (owner >= 0) node.style.setProperty('--hue', hueOf(owner).toFixed(1))
  }
}

/** Ids of a cell, for who points at it. */
export function idsText(timeline: Timeline, cell: number): string {
  const ids = idsOf({ source: cell, begin: 0, end: 8 }, timeline)
  return ids.join(' ') + (timeline.data.steps.counts[cell]! > 8 ? ' …' : '')
}

function badges({ entry, isWritten, isBehind }: SeenEntry): string[] {
  const { at, lag, temperature, bias } = entry
  return [
    ...(isWritten ? ['writes here'] : []),
    ...(isBehind ? ['behind: not seen'] : []),
    ...(at === undefined ? [] : [`at ${inDigits(at)}`]),
    ...(lag === 1 ? ['one step late'] : []),
    ...(temperature === undefined ? [] : [`temperature ${temperature}`]),
    ...(bias === undefined ? [] : [`bias ${bias}`]),
  ]
}

function shareBar(share: number): HTMLElement {
  const bar = element('i')
  bar.style.width = `${share * 100}%`
  const percent = share * 100
  const text = `${percent >= 9.95 || percent === 0 ? percent.toFixed(0) : percent.toFixed(1)} % of attention`
  return element('div', {
    className: 'share',
    children: [element('span', { className: 'track', children: [bar] }), element('span', { text })],
  })
}

/** A name or text of the run, whose direction stays its own. */
function isolated(text: string, className: string): HTMLElement {
  return element('bdi', {
    className,
    text: className === 'token' ? text : inOneLine(text).replaceAll('·', ' '),
  })
}

function appendMarked(node: HTMLElement, text: string, query: string): void {
  let done = 0
  if (query !== '') {
    for (const { index, 0: found } of text.matchAll(patternOf(query))) {
      node.append(text.slice(done, index), element('mark', { text: found }))
      done = index + found.length
    }
  }
  node.append(text.slice(done))
}
