// Colours of the drawing: those of the style sheet, and a hue for each worker.

export interface Colours {
  ground: string
  raised: string
  line: string
  text: string
  dim: string
  accent: string
  given: string
  givenLine: string
  mark: string
  current: string
  /** By worker: of boxes, their edges, and of what stands out. */
  fill: string[]
  edge: string[]
  strong: string[]
  /** The same for what everybody sees. */
  common: { fill: string; strong: string }
}

/** Degrees between the hues of neighbours: the golden angle, so that no two of a few are close. */
const TURN = 137.508
const FIRST_HUE = 250

export function hueOf(worker: number): number {
  return (FIRST_HUE + worker * TURN) % 360
}

export function coloursOf(workers: number): Colours {
  const style = getComputedStyle(document.documentElement)
  const of = (name: string) => style.getPropertyValue(`--${name}`).trim()
  const hues = Array.from({ length: workers }, (_, worker) => hueOf(worker).toFixed(1))
  const each = (name: string) => hues.map((hue) => `oklch(${of(name)} ${hue})`)
  return {
    ground: of('ground'),
    raised: of('raised'),
    line: of('line'),
    text: of('text'),
    dim: of('dim'),
    accent: of('accent'),
    given: of('given'),
    givenLine: of('given-line'),
    mark: of('mark'),
    current: of('current'),
    ...{ fill: each('fill'), edge: each('edge'), strong: each('strong') },
    common: { fill: of('common'), strong: of('common-strong') },
  }
}
