// How plots look: fonts, and colours on a light and on a dark ground.

/** The font of the system or, where a converter knows neither it nor what is without serifs, one that is usually there. */
export const FONT = 'system-ui, Arial, Liberation Sans, DejaVu Sans, sans-serif'
export const FONT_SIZE = 12

/**
 * Each colour on the light ground, and the one in its place on the dark one; no two are equal. The hues also differ for
 * those who see without one kind of cones, gray, blue, red and green the most.
 */
const COLORS = {
  ground: { light: '#ffffff', dark: '#0d1117' },
  ink: { light: '#1f2328', dark: '#e6edf3' },
  faint: { light: '#59636e', dark: '#9aa4af' },
  grid: { light: '#e4e8ec', dark: '#262c36' },
  gray: { light: '#757575', dark: '#a4a5a7' },
  blue: { light: '#0960d9', dark: '#2082fb' },
  red: { light: '#bc5411', dark: '#f45610' },
  green: { light: '#035540', dark: '#58f4a7' },
  purple: { light: '#8b00a4', dark: '#de96f6' },
  amber: { light: '#5d3c00', dark: '#f3cf38' },
  teal: { light: '#0d677f', dark: '#baf4fe' },
} as const

export type ColorName = keyof typeof COLORS

/** A colour of the light theme, which a drawing is made in. */
export function color(name: ColorName): string {
  return COLORS[name].light
}

/** For things in an order of their own, such as models. Those behind the last begin again. */
export const HUES = ['blue', 'red', 'green', 'purple', 'amber', 'teal'] as const

/** The same number of workers has the same colour in every plot. */
const WORKER_COLORS: Readonly<Record<number, ColorName>> = {
  ...{ 1: 'gray', 2: 'blue', 3: 'amber', 4: 'red', 6: 'teal', 8: 'green', 16: 'purple' },
}

/** A colour for each number of workers; those without one of their own take what is left, in order. */
export function workerColors(counts: readonly number[]): Map<number, string> {
  const taken = counts.flatMap((count) => WORKER_COLORS[count] ?? [])
  const left = HUES.filter((hue) => !taken.includes(hue))
  const free = left.length > 0 ? left : HUES
  const others = counts.filter((count) => WORKER_COLORS[count] === undefined)
  return new Map(
    counts.map((count) => [
      count,
      color(WORKER_COLORS[count] ?? (free[others.indexOf(count) % free.length] as ColorName)),
    ]),
  )
}

/** What is common to all plots, as the configuration of Vega-Lite. */
export const CONFIG = {
  font: FONT,
  // The whole drawing has one name; what each mark is stands in the data beside it.
  aria: false,
  view: { stroke: null },
  title: {
    ...{ anchor: 'start', frame: 'group', fontSize: 14, fontWeight: 600, color: color('ink') },
    ...{ subtitleFontSize: FONT_SIZE, subtitleColor: color('faint'), subtitlePadding: 5 },
  },
  axis: {
    ...{ labelFontSize: FONT_SIZE, labelColor: color('faint'), labelPadding: 5, labelFlush: false },
    ...{ titleFontSize: FONT_SIZE, titleColor: color('faint'), titleFontWeight: 'normal' },
    ...{ domain: false, ticks: false, gridColor: color('grid') },
  },
  text: { fontSize: FONT_SIZE },
}

/**
 * The style of a drawing that follows what its reader prefers: one file, between which no page has to choose. The light colours
 * stand in attributes, which a style goes before, so that programs that read no styles draw it light. Its ground is painted:
 * it can be read on a page that does not follow.
 */
export function darkStyle(svg: string): string {
  const rules = usedColors(svg).flatMap(({ light, dark }) =>
    ['fill', 'stroke'].map((what) => `[${what}="${light}"]{${what}:${dark}}`),
  )
  return `<style>@media (prefers-color-scheme:dark){${rules.join('')}}</style>`
}

/** The drawing on a dark ground, for what reads no styles. */
export function darkened(svg: string): string {
  return usedColors(svg).reduce(
    (text, { light, dark }) => text.replaceAll(`="${light}"`, `="${dark}"`),
    svg,
  )
}

function usedColors(svg: string) {
  return Object.values(COLORS).filter(({ light }) => svg.includes(`="${light}"`))
}
