// Lines, one for each of a few series, each named at its right end.

import {
  BOTTOM,
  heading,
  LABELS,
  LOWER_AXIS,
  MARGIN,
  type Plot,
  type Row,
  SCHEMA,
  type Series,
  textWidth,
  topOf,
  UPPER_TITLE_HEIGHT,
  upperTitle,
  WIDTH,
} from './plot'
import { CONFIG, color } from './theme'

export interface Axis {
  /** Of the rows. */
  field: string
  /** With its unit. */
  title: string
  domain: readonly [number, number]
  labels: keyof typeof LABELS
  /** Where labels stand; default: at round numbers. */
  values?: readonly number[]
  /** Each doubling as far from the one before. */
  doubling?: boolean
}

/** A dashed line to compare with. */
export interface Guide {
  name: string
  points: readonly { x: number; y: number }[]
}

export interface LinePlot {
  name: string
  title: string
  /** Lines. */
  subtitle: readonly string[]
  x: Axis
  y: Axis
  series: readonly Series[]
  /** With the fields of the axes and `series`; where there is an `interval`, with `low` and `high`. */
  rows: readonly Row[]
  interval?: 'band' | 'whiskers'
  guide?: Guide | undefined
}

const LEFT = 52
const PLOT_HEIGHT = 180
const LABEL_GAP = 15
const LABEL_OFFSET = 9

export function linePlot(plot: LinePlot): Plot {
  const { name, title, subtitle, x, y, series, rows, guide } = plot
  const names = [...series.map((one) => one.name), ...(guide === undefined ? [] : [guide.name])]
  const right = LABEL_OFFSET + Math.max(...names.map(textWidth)) + MARGIN
  const width = WIDTH - LEFT - right
  const scaled = ({ field, title, domain, labels, values, doubling }: Axis, axis: object) => ({
    ...{ field, type: 'quantitative', title },
    scale: { domain, nice: false, ...(doubling && { type: 'log', base: 2 }) },
    axis: { ...axis, labelExpr: LABELS[labels], ...(values ? { values } : { tickCount: 5 }) },
  })
  const spec = {
    $schema: SCHEMA,
    title: heading(title, subtitle, LEFT),
    ...{ width, height: PLOT_HEIGHT, autosize: 'none', background: color('ground') },
    padding: { left: LEFT, right, top: topOf(subtitle, UPPER_TITLE_HEIGHT), bottom: BOTTOM },
    data: { values: rows },
    encoding: {
      x: scaled(x, LOWER_AXIS),
      y: scaled(y, upperTitle(y.title, LEFT)),
      color: {
        ...{ field: 'series', type: 'nominal', legend: null },
        scale: { domain: series.map((one) => one.name), range: series.map((one) => one.color) },
      },
    },
    layer: [
      ...guideLayer(guide, plot),
      ...intervalLayer(plot),
      { mark: { type: 'line', strokeWidth: 2 } },
      { mark: { type: 'point', filled: true, opacity: 1, size: 28 } },
      ...labelLayers(plot, width),
    ],
    config: CONFIG,
  }
  return { name, title, rows, spec }
}

function guideLayer(guide: Guide | undefined, { x, y }: LinePlot): object[] {
  if (guide === undefined) return []
  return [
    {
      data: { values: guide.points.map((point) => ({ [x.field]: point.x, [y.field]: point.y })) },
      mark: { type: 'line', strokeDash: [4, 4], strokeWidth: 1.5 },
      encoding: { color: { value: color('faint') } },
    },
  ]
}

function intervalLayer({ interval, y }: LinePlot): object[] {
  const between = {
    y: { field: 'low', type: 'quantitative', title: y.title },
    y2: { field: 'high' },
  }
  if (interval === 'band') return [{ mark: { type: 'area', opacity: 0.11 }, encoding: between }]
  if (interval === 'whiskers') {
    return [{ mark: { type: 'rule', strokeWidth: 1.5, opacity: 0.6 }, encoding: between }]
  }
  return []
}

/** Names beside the ends of their lines, or as near as others leave room. */
function labelLayers(plot: LinePlot, width: number): object[] {
  const { x, y, series, rows, guide } = plot
  const [low, high] = y.domain
  const place = (value: number) => PLOT_HEIGHT * (1 - (value - low) / (high - low))
  const ends = series.flatMap(({ name }) => {
    const own = rows.filter((row) => row.series === name)
    const heights = own
      .toSorted((one, other) => Number(one[x.field]) - Number(other[x.field]))
      .map((row) => place(Number(row[y.field])))
    // Of lines that end at one place the higher one has its name above.
    const middle = heights.reduce((sum, height) => sum + height, 0) / heights.length
    return heights.length === 0 ? [] : [{ series: name, at: heights.at(-1) as number, middle }]
  })
  if (guide !== undefined) {
    const at = place(guide.points.at(-1)?.y as number)
    ends.push({ series: guide.name, at, middle: at })
  }
  ends.sort((one, other) => one.at - other.at || one.middle - other.middle)
  const places = spreadOut(ends.map(({ at }) => at))
  const labels = ends.map(({ series }, i) => ({ series, place: places[i] as number }))
  const layer = (values: object[], more: object) => ({
    data: { values },
    mark: { type: 'text', align: 'left', baseline: 'middle', dx: LABEL_OFFSET },
    encoding: {
      x: { value: width },
      y: { field: 'place', type: 'quantitative', scale: null, axis: null },
      text: { field: 'series' },
      ...more,
    },
  })
  return [
    layer(
      labels.filter((label) => label.series !== guide?.name),
      {},
    ),
    ...labels
      .filter((label) => label.series === guide?.name)
      .map((label) => layer([label], { color: { value: color('faint') } })),
  ]
}

/** Heights in ascending order, moved as little as leaves room for a line of text between them. */
function spreadOut(heights: readonly number[]): number[] {
  const places: number[] = []
  for (const height of heights) {
    places.push(Math.max(height, (places.at(-1) ?? Number.NEGATIVE_INFINITY) + LABEL_GAP))
  }
  let below = PLOT_HEIGHT + LABEL_GAP
  for (let i = places.length - 1; i >= 0; i--) {
    below = Math.min(places[i] as number, below - LABEL_GAP)
    places[i] = below
  }
  return places
}

/** The end of an axis that begins at 0: a round number, not below `most`. */
export function roundUp(most: number): number {
  const power = 10 ** Math.floor(Math.log10(most))
  const steps = [1, 1.5, 2, 3, 4, 5, 6, 8, 10]
  return power * (steps.find((step) => step * power >= most) as number)
}
