// The keyboard: everything that the page can do.

import { byId } from './chart'
import type { Axis } from './timeline'

/** What keys do. */
interface Keyed {
  readonly step: number
  chooseStep(step: number): void
  moveWorker(by: number): void
  moveToStop(direction: 1 | -1): void
  moveToMatch(direction: 1 | -1): void
  search(query: string): void
  zoom(factor: number): void
  pan(share: number): void
  fit(): void
  turnAxis(axis?: Axis): void
  turnFlow(): void
}

const PAGE_STEPS = 20

export function bindKeys(page: Keyed): void {
  const query = byId<HTMLInputElement>('query')
  const help = byId<HTMLDialogElement>('help')
  byId('ask').addEventListener('click', () => help.showModal())
  byId('help-close').addEventListener('click', () => help.close())
  query.addEventListener('input', () => page.search(query.value))
  byId('search').addEventListener('submit', (event) => {
    event.preventDefault()
    page.moveToMatch(1)
  })
  byId('next').addEventListener('click', () => page.moveToMatch(1))
  byId('previous').addEventListener('click', () => page.moveToMatch(-1))
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || help.open)
      return
    if (event.target === query) {
      if (event.key === 'Escape') leaveSearch(page, query)
      else if (event.key === 'Enter' && event.shiftKey) page.moveToMatch(-1)
      else return
    } else if (!act(page, event, { query, help })) return
    event.preventDefault()
  })
}

function leaveSearch(page: Keyed, query: HTMLInputElement): void {
  query.value = ''
  page.search('')
  byId('plot').focus({ preventScroll: true })
}

interface Parts {
  query: HTMLInputElement
  help: HTMLDialogElement
}

/** Whether the key has a meaning. In the panel, keys that scroll scroll. */
function act(page: Keyed, event: KeyboardEvent, { query, help }: Parts): boolean {
  const { key, shiftKey } = event
  const inPanel = byId('panel').contains(event.target as Node)
  if (inPanel && /^(Arrow(Up|Down)|Page|Home|End)/.test(key)) return false
  const many = shiftKey ? 10 : 1
  const acts: Record<string, () => void> = {
    ArrowLeft: () => page.chooseStep(page.step - many),
    ArrowRight: () => page.chooseStep(page.step + many),
    ArrowUp: () => page.moveWorker(-1),
    ArrowDown: () => page.moveWorker(1),
    PageUp: () => page.chooseStep(page.step - PAGE_STEPS),
    PageDown: () => page.chooseStep(page.step + PAGE_STEPS),
    Home: () => page.chooseStep(0),
    End: () => page.chooseStep(Number.MAX_SAFE_INTEGER),
    '+': () => page.zoom(0.5),
    '=': () => page.zoom(0.5),
    '-': () => page.zoom(2),
    '0': () => page.fit(),
    ',': () => page.pan(-0.25),
    '.': () => page.pan(0.25),
    '[': () => page.moveToStop(-1),
    ']': () => page.moveToStop(1),
    n: () => page.moveToMatch(1),
    N: () => page.moveToMatch(-1),
    t: () => page.turnAxis(),
    a: () => page.turnFlow(),
    '/': () => query.focus(),
    '?': () => help.showModal(),
    Escape: () => leaveSearch(page, query),
  }
  if (!Object.hasOwn(acts, key)) return false
  acts[key]!()
  return true
}
