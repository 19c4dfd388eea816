// Which settings share a plot, and which line each of them is on.

import type { Series } from '../../plots/plot'
import { type ColorName, color, HUES, workerColors } from '../../plots/theme'
import type { Setting } from '../cells'

/** What colours may tell apart; what else differs gets plots of its own. */
export const DIMENSIONS = ['workers', 'layout', 'scheme', 'model'] as const
export type Dimension = (typeof DIMENSIONS)[number]

/** A setting as plots have it. */
export interface Place {
  model: string
  scheme: string
  workers: number
  /** What workers see: a layout, or a word; undefined where there is only one. */
  layout: string | undefined
}

const SHARED = 'shared'
const NOT_SHARED = 'not shared'

/** With one layout in the experiment, what counts is whether workers see one another at all. */
export function placesOf<Row extends Setting>(
  rows: readonly Row[],
): (Omit<Row, 'layout'> & Place)[] {
  const layouts = new Set(rows.flatMap(({ layout }) => layout ?? []))
  const compared = rows.some(({ workers, share }) => workers > 1 && !share)
  const shared = (row: Row) =>
    layouts.size === 1 && compared ? SHARED : (row.layout ?? NOT_SHARED)
  return rows.map((row) => ({
    ...row,
    layout: row.workers === 1 ? undefined : row.share ? shared(row) : NOT_SHARED,
  }))
}

function namedBy(place: Place, dimension: Dimension): string | undefined {
  return dimension === 'workers' ? workersName(place.workers) : place[dimension]
}

function workersName(count: number): string {
  return count === 1 ? '1 worker' : `${count} workers`
}

/** Each once. */
function valuesOf(places: readonly Place[], dimension: Dimension): string[] {
  return [...new Set(places.flatMap((place) => namedBy(place, dimension) ?? []))]
}

/** The first of `candidates` in which places differ, or the first of all. */
export function firstVarying(
  places: readonly Place[],
  candidates: readonly [Dimension, ...Dimension[]],
): Dimension {
  return candidates.find((one) => valuesOf(places, one).length > 1) ?? candidates[0]
}

/** Some of the rows, in one plot. */
export interface Panel<Row extends Place> {
  /** What they have in common and others have not; empty where there is one panel alone. */
  values: string[]
  rows: (Row & { series: string })[]
}

/**
 * A panel for each combination of the dimensions but `by`, whose values are the series. One worker alone stands beside the
 * teams: it is in the panels of all layouts and, where layouts are compared, of all numbers of workers.
 */
export function panelsOf<Row extends Place>(rows: readonly Row[], by: Dimension): Panel<Row>[] {
  const teams = rows.filter(({ workers }) => workers > 1)
  const comparesTeams = (by === 'workers' || by === 'layout') && teams.length > 0
  const panelled = comparesTeams ? teams : rows
  const others = DIMENSIONS.filter((one) => one !== by && valuesOf(panelled, one).length > 1)
  const panels = new Map(
    panelled.map((row) => {
      const values = others.map((dimension) => namedBy(row, dimension))
      return [JSON.stringify(values), values]
    }),
  )
  const isOfAll = (row: Row, dimension: Dimension) =>
    comparesTeams && row.workers === 1 && (dimension === 'layout' || dimension === 'workers')
  return [...panels.values()].map((values) => ({
    values: values.filter((value) => value !== undefined),
    rows: rows
      .filter((row) =>
        others.every((other, i) => isOfAll(row, other) || namedBy(row, other) === values[i]),
      )
      .map((row) => ({ ...row, series: seriesOf(row, by) })),
  }))
}

function seriesOf(place: Place, by: Dimension): string {
  return namedBy(place, by) ?? workersName(place.workers)
}

const LAYOUT_COLORS: Readonly<Record<string, ColorName>> = {
  ...{ contiguous: 'blue', interleaved: 'red', combined: 'green' },
  ...{ [SHARED]: 'blue', [NOT_SHARED]: 'purple', [workersName(1)]: 'gray' },
}

/** All series of an experiment, with colours that are the same in each of its plots. */
export function allSeries(places: readonly Place[], by: Dimension): Series[] {
  if (by === 'workers') {
    const counts = [...new Set(places.map(({ workers }) => workers))].sort((a, b) => a - b)
    const colors = workerColors(counts)
    return counts.map((count) => ({
      name: workersName(count),
      color: colors.get(count) as string,
    }))
  }
  const names = [...new Set(places.map((place) => seriesOf(place, by)))]
  const hueOf = (i: number) => HUES[i % HUES.length] as ColorName
  return names.map((name, i) => ({
    name,
    color: color(by === 'layout' ? (LAYOUT_COLORS[name] ?? hueOf(i)) : hueOf(i)),
  }))
}

const DESCRIPTIONS: Readonly<Record<string, string>> = {
  contiguous: 'contiguous layout',
  interleaved: 'interleaved layout',
  combined: 'combined layout',
  [SHARED]: 'workers see one another',
  [NOT_SHARED]: 'workers do not see one another',
}

/** What is said of a panel under the title of its plot. */
export function describePanel(values: readonly string[]): string[] {
  return values.map((value) => DESCRIPTIONS[value] ?? value)
}
