// Bars that lie, in groups, each with its figure.

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

export interface BarPlot {
  name: string
  title: string
  /** Lines. */
  subtitle: readonly string[]
  /** Of the values, with its unit. */
  valueTitle: string
  groupTitle: string
  /** Of the axis. */
  labels: keyof typeof LABELS
  /** Largest value of the axis. */
  most: number
  series: readonly Series[]
  /** With `group`, `series`, `value` and its `label`; with `whiskers` also `low` and `high`. */
  rows: readonly Row[]
  whiskers?: boolean
  /** A value to compare with, which a line marks. */
  goal?: number | undefined
}

const BAR = 20
const GAP = 12
const LABEL_OFFSET = 6
const LEGEND_HEIGHT = 22

export function barPlot(plot: BarPlot): Plot {
  const { name, title, subtitle, valueTitle, groupTitle, labels, most, series, rows } = plot
  const groups = [...new Set(rows.map((row) => String(row.group)))]
  const left = MARGIN + Math.max(...groups.map(textWidth), textWidth(groupTitle)) + 5
  const figures = rows.map(({ label }) => textWidth(String(label)))
  const right = LABEL_OFFSET + Math.max(...figures) + MARGIN
  const width = WIDTH - left - right
  const height = groups.length * (series.length * BAR + GAP)
  const titled = groupTitle === '' ? 0 : UPPER_TITLE_HEIGHT
  const named = series.length > 1 ? LEGEND_HEIGHT : 0
  const value = { field: 'value', type: 'quantitative', title: valueTitle }
  const spec = {
    $schema: SCHEMA,
    title: heading(title, subtitle, left),
    ...{ width, height, autosize: 'none', background: color('ground') },
    padding: { left, right, top: topOf(subtitle, titled + named), bottom: BOTTOM },
    data: { values: rows },
    encoding: {
      y: {
        ...{ field: 'group', type: 'nominal', sort: null, title: groupTitle },
        scale: { paddingInner: GAP / (series.length * BAR + GAP), paddingOuter: 0.15 },
        axis: { ...upperTitle(groupTitle, left), labelLimit: 0, grid: false },
      },
      yOffset: { field: 'series', sort: series.map((one) => one.name) },
      x: {
        ...value,
        scale: { domain: [0, most], nice: false },
        axis: {
          ...{ ...LOWER_AXIS, labelExpr: LABELS[labels], tickCount: 4, grid: true },
          ...{ titleAlign: 'left', titleX: MARGIN - left },
        },
      },
    },
    layer: [
      { mark: { type: 'bar', height: { band: 0.86 } }, encoding: { color: colorOf(series) } },
      ...(plot.whiskers ? [whiskers(value.title)] : []),
      ...(plot.goal === undefined ? [] : [goal(plot.goal)]),
      {
        mark: { type: 'text', align: 'left', baseline: 'middle', dx: LABEL_OFFSET },
        encoding: {
          ...(plot.whiskers && { x: { ...value, field: 'high' } }),
          ...{ text: { field: 'label' }, color: { value: color('ink') } },
        },
      },
      ...(named > 0 ? legend(series, left, -titled - LEGEND_HEIGHT / 2 - 4) : []),
    ],
    config: CONFIG,
  }
  return { name, title, rows, spec }
}

function colorOf(series: readonly Series[]) {
  return {
    ...{ field: 'series', type: 'nominal', legend: null },
    scale: { domain: series.map((one) => one.name), range: series.map((one) => one.color) },
  }
}

function whiskers(title: string): object {
  return {
    mark: { type: 'rule', strokeWidth: 1.5 },
    encoding: {
      x: { field: 'low', type: 'quantitative', title },
      ...{ x2: { field: 'high' }, color: { value: color('ink') } },
    },
  }
}

function goal(value: number): object {
  return {
    data: { values: [{ value }] },
    mark: { type: 'rule', strokeDash: [4, 4], strokeWidth: 1.5 },
    encoding: { y: null, yOffset: null, color: { value: color('faint') } },
  }
}

/** The names of the series at height `y`, from the left edge on. */
function legend(series: readonly Series[], left: number, y: number): object[] {
  let x = MARGIN - left
  const entries = series.map(({ name }) => {
    const entry = { series: name, at: x + 5, text: x + 15 }
    x += 15 + textWidth(name) + 16
    return entry
  })
  const layer = (mark: object, field: string, more: object) => ({
    ...{ data: { values: entries }, mark },
    encoding: {
      x: { field, type: 'quantitative', scale: null, axis: null },
      ...{ y: { value: y }, yOffset: null, color: colorOf(series), ...more },
    },
  })
  return [
    layer({ type: 'square', filled: true, opacity: 1, size: 90 }, 'at', {}),
    layer({ type: 'text', align: 'left', baseline: 'middle' }, 'text', {
      ...{ text: { field: 'series' }, color: { value: color('ink') } },
    }),
  ]
}
