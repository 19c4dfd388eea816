// What every result says about where and when it was measured.

import { readFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { median } from '../lib/cli/median'

/** The package's folder: npm runs scripts there. */
export const root = process.cwd()

export function machine() {
  const processors = cpus()
  return {
    processor: processors[0]?.model.trim() ?? 'unknown',
    processors: processors.length,
    memory_gb: round(totalmem() / 1e9, 1),
    kernel: `Linux ${release()}`,
    node: process.versions.node,
    hogwild: JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version as string,
    date: new Date().toISOString().slice(0, 10),
    /** Of the last minute, before the run. */
    load_average: round(loadavg()[0] ?? 0, 2),
  }
}

export interface Spread {
  median: number
  min: number
  max: number
}

export function spread(values: readonly number[], digits: number): Spread {
  const sorted = values.toSorted((one, other) => one - other)
  return {
    median: round(median(sorted), digits),
    min: round(sorted[0] as number, digits),
    max: round(sorted.at(-1) as number, digits),
  }
}

export function round(value: number, digits: number): number {
  return Number(value.toFixed(digits))
}
