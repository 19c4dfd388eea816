// `hogwild demo`: a sentence of reversed words, written the right way round by workers that share one
// cache; then the race.

import type { DeviceName } from '../index'
import { formatRace, type RaceRun, race } from './demo/race'
import { Show } from './demo/show'
import { createTask, parseSentence } from './demo/task'
import { DemoModel } from './demo/team'
import { colors, print, printJson } from './terminal'

export interface DemoOptions {
  workers: number
  share: boolean
  /** Steps per second; 0: as fast as possible. Default: 12 in a terminal, else 0. */
  pace?: number
  device: DeviceName
  json?: boolean
}

const EASY_PACE = 12

/** Resolves to the exit code: 0, or 130 where Ctrl-C ended it. */
export async function demo(sentence: string, options: DemoOptions): Promise<number> {
  const words = parseSentence(sentence)
  const task = createTask(words)
  const team = await DemoModel.load(options.device)
  try {
    if (options.json) {
      printJson({ sentence: words.join(' '), runs: await race(team, task) })
      return 0
    }
    const { workers, share, pace = process.stdout.isTTY ? EASY_PACE : 0 } = options
    const exitCode = await new Show(team, task, workers, share, pace).play()
    if (exitCode !== undefined) return exitCode
    showRace(await race(team, task))
    return 0
  } finally {
    await team.close()
  }
}

function showRace(runs: readonly RaceRun[]): void {
  const { table, summary } = formatRace(runs)
  print()
  print(`  ${colors.bold('The same list as a race, as fast as they can')}`)
  print()
  table.forEach((line, index) => {
    print(`  ${index < 2 ? colors.dim(line) : line}`)
  })
  print()
  for (const line of summary) print(`  ${colors.dim(line)}`)
}
