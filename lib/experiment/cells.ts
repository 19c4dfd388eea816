// The cells of an experiment: one run of one item under one combination of settings.

import type { LayoutName } from '../index'
import type { CheckedExperiment, SchemeName } from './definition'

/** The settings of a cell but for item and seed: what a row of the summary is about. */
export interface Setting {
  /** Name of the model. */
  model: string
  scheme: SchemeName
  /** null where workers do not see one another: then layouts do not differ. */
  layout: LayoutName | null
  workers: number
  /** Whether workers see one another; false where there is only one. */
  share: boolean
}

export interface Cell extends Setting {
  /** Its number, from 0: the same in every shard. */
  cell: number
  /** Index of the item. */
  item: number
  seed: number
}

/** One part of the cells, as test runners have it: `index` from 1 to `count`. */
export interface Shard {
  index: number
  count: number
}

/** All settings, models outermost, each combination once. */
export function listSettings(experiment: CheckedExperiment): Setting[] {
  const settings = new Map<string, Setting>()
  for (const { name: model } of experiment.models) {
    for (const scheme of experiment.schemes) {
      for (const given of experiment.layouts) {
        for (const workers of experiment.workers) {
          for (const wanted of experiment.share) {
            const share = wanted && workers > 1
            const setting = { model, scheme, layout: share ? given : null, workers, share }
            settings.set(JSON.stringify(setting), setting)
          }
        }
      }
    }
  }
  return [...settings.values()]
}

/** All cells, in the order of their numbers. `items`: how many there are. */
export function listCells(experiment: CheckedExperiment, items: number): Cell[] {
  const cells: Cell[] = []
  for (const setting of listSettings(experiment)) {
    for (const seed of experiment.seeds) {
      for (let item = 0; item < items; item++) {
        cells.push({ cell: cells.length, ...setting, item, seed })
      }
    }
  }
  return cells
}

/** Those of a shard: every `count`-th cell. */
export function cellsOf(cells: readonly Cell[], { index, count }: Shard): Cell[] {
  return cells.filter(({ cell }) => cell % count === index - 1)
}
