// `hogwild demo-eval`: measures the demo's model on lists of real words, none of which it was trained
// on, with fixed seeds, and writes the table of its model card.

import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { HogwildError } from '../errors'
import { demoModelPath } from '../index'
import { type DemoTask, WORKER_NAMES } from './demo/task'
import { DemoModel } from './demo/team'
import { formatMarkdown, measure, type Row, type RowOptions } from './eval/rows'
import { longWords, randomStarts, randomStops, wordTasks } from './eval/tasks'
import { packageVersion } from './package'
import { print, printJson } from './terminal'

export interface DemoEvalOptions {
  /** Per row. */
  prompts: number
  write?: boolean
  json?: boolean
}

const BEGIN = '<!-- eval:begin -->'
const END = '<!-- eval:end -->'

export async function demoEval(options: DemoEvalOptions): Promise<void> {
  const words: string[] = JSON.parse(await readFile(join(demoModelPath, 'eval-words.json'), 'utf8'))
  const demo = await DemoModel.load()
  try {
    const begin = performance.now()
    const rows: Row[] = []
    for await (const row of measureAll(demo, words, options.prompts)) {
      rows.push(row)
      process.stderr.write(`${row.section}, ${row.title}\n`)
    }
    const { name, simd, threads } = demo.model.device.info
    const measured = {
      version: packageVersion,
      date: new Date().toISOString().slice(0, 10),
      device: `${name}, ${simd}, ${threads} thread${threads === 1 ? '' : 's'}`,
      prompts: options.prompts,
      seconds: Math.round((performance.now() - begin) / 1e3),
    }
    const card = [
      `Measured with hogwild ${measured.version} on ${measured.date}: ${measured.device};`,
      `${measured.prompts} prompts per row, greedy, ${measured.seconds} s in all.`,
      '',
      formatMarkdown(rows),
    ].join('\n')
    if (options.json) printJson({ rows, ...measured })
    else print(card)
    if (options.write) await writeCard(card)
  } finally {
    await demo.close()
  }
}

async function* measureAll(
  demo: DemoModel,
  words: readonly string[],
  prompts: number,
): AsyncGenerator<Row> {
  const team = (count: number) => WORKER_NAMES.slice(0, count)
  const plural = (count: number) => `${count} worker${count === 1 ? '' : 's'}`
  /** One worker first; the others are compared with it. */
  async function* compare(section: string, list: string, tasks: DemoTask[], counts: number[]) {
    let alone: Row | undefined
    for (const count of counts) {
      const title = `${list}, ${plural(count)}`
      const row = await measure(demo, { section, title, tasks, names: team(count), alone })
      alone ??= row
      yield row
    }
  }

  for (const items of [4, 8, 12, 16]) {
    yield* compare('shared cache', `${items} words`, wordTasks(words, items, prompts, 1), [1, 2, 4])
  }

  const twelve = wordTasks(words, 12, prompts, 1)
  const alone = await measure(demo, { section: '', title: '', tasks: twelve, names: team(1) })
  const disturbed = (section: string, title: string, count: number, options: Partial<RowOptions>) =>
    measure(demo, { section, title, tasks: twelve, names: team(count), alone, ...options })
  for (const count of [2, 4]) {
    yield disturbed('cache off', `12 words, ${plural(count)}`, count, { share: false })
  }
  for (const count of [2, 4]) {
    const disturbances = randomStarts(team(count), prompts, 30, 2)
    const title = `12 words, ${plural(count)}, all but Alice 1 to 30 steps late`
    yield disturbed('late starts', title, count, { disturbances })
  }
  for (const mark of [true, false]) {
    for (const count of [2, 4]) {
      const disturbances = randomStops(team(count), prompts, mark, 3)
      const title = `12 words, ${plural(count)}, one stopped ${mark ? 'with' : 'without'} \`#\``
      yield disturbed('a worker stopped', title, count, { disturbances })
    }
  }

  for (const items of [8, 12]) {
    const tasks = wordTasks(words, items, prompts, 6, true)
    yield* compare('labels in random order', `${items} words`, tasks, [1, 2, 4])
  }
  for (const items of [1, 2, 3]) {
    const list = `${items} word${items === 1 ? '' : 's'}`
    yield* compare('few words', list, wordTasks(words, items, prompts, 4), [1, 4])
  }
  for (const items of [8, 12]) {
    const tasks = wordTasks(longWords(words), items, prompts, 5)
    yield* compare('words of 8 or 9 letters', `${items} words`, tasks, [1, 4])
  }
}

async function writeCard(text: string): Promise<void> {
  const path = join(demoModelPath, 'README.md')
  const card = await readFile(path, 'utf8')
  const begin = card.indexOf(BEGIN)
  const end = card.indexOf(END)
  if (begin < 0 || end < begin) {
    const message = `expected ${BEGIN} and ${END} in ${path}`
    throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
  }
  await writeFile(path, `${card.slice(0, begin + BEGIN.length)}\n${text}\n${card.slice(end)}`)
}
