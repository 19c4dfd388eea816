// `hogwild demo`: a sentence of reversed words, written the right way round by workers that share one
// cache; then the race.

import type { DeviceName } from '../index'
import { wrapWords } from './columns'
import type { Scene } from './demo/frame'
import { whatNext } from './demo/next'
import { formatRace, type RaceRun, race } from './demo/race'
import { Show, type ShowOptions } from './demo/show'
import { createTask, parseSentence } from './demo/task'
import { DemoModel } from './demo/team'
import { canDrawLive, LiveView, PlainView } from './demo/views'
import { colors, lineColumns, print, printJson } from './terminal'

export interface DemoOptions {
  workers: number
  share: boolean
  /** Steps per second; 0: as fast as possible. Default: 4 in a terminal, else 0. */
  pace?: number
  device: DeviceName
  json?: boolean
}

/** In a terminal: a sentence of 14 words takes about eight seconds. */
const EASY_PACE = 4
const FIRST_PAUSE_MS = 1500
const MARGIN = '  '

/** Resolves to the exit code: 0, or 130 where Ctrl-C ended it. */
export async function demo(sentence: readonly string[], options: DemoOptions): Promise<number> {
  const words = parseSentence(sentence.join(' '))
  const task = createTask(words)
  const team = await DemoModel.load(options.device)
  try {
    if (options.json) {
      printJson({ sentence: words.join(' '), runs: await race(team, task) })
      return 0
    }
    const show = new Show(team, task, { ...options, ...audience(options.pace) })
    const exitCode = await show.play()
    if (exitCode !== undefined) return exitCode
    printAll('', ...show.conclusion(colors, lineColumns() - MARGIN.length))
    showRace(await race(team, task))
    showNext()
    return 0
  } finally {
    await team.close()
  }
}

type Audience = Pick<ShowOptions, 'pace' | 'firstPauseMs' | 'hasKeys' | 'view'>

/** Who watches: a person at a terminal, or whoever reads lines. */
function audience(givenPace: number | undefined): Audience {
  if (!canDrawLive()) {
    const view = (scene: () => Scene) => new PlainView(scene)
    return { pace: givenPace ?? 0, firstPauseMs: 0, hasKeys: false, view }
  }
  const pace = givenPace ?? EASY_PACE
  return {
    pace,
    firstPauseMs: pace > 0 ? FIRST_PAUSE_MS : 0,
    hasKeys: process.stdin.isTTY,
    view: (scene, onKey) => new LiveView(scene, onKey),
  }
}

function showRace(runs: readonly RaceRun[]): void {
  const width = lineColumns() - MARGIN.length
  const { table, summary } = formatRace(runs, width)
  const [titles = '', rule = '', ...rows] = table
  printAll(
    '',
    ...wrapWords('The same list as a race, as fast as they can', width).map((line) =>
      colors.bold(line),
    ),
  )
  printAll('', colors.dim(titles), colors.dim(rule), ...rows)
  printAll('', ...summary.flatMap((text) => wrapWords(text, width)).map((line) => colors.dim(line)))
}

/** A line for each kind of reader. */
function showNext(): void {
  printAll('', ...whatNext().map(({ reader, next }) => `${colors.bold(reader)}  ${next}`))
}

function printAll(...lines: readonly string[]): void {
  for (const line of lines) print(line && MARGIN + line)
}
