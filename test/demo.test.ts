// The demo's workers: the same tokens from the package as from the float64 reference.

import { loadTokenizer } from '../lib'
import { createTask, type WrittenToken } from '../lib/cli/demo/task'
import { DemoModel, type Disturbances, demoModelFolder, finishTask } from '../lib/cli/demo/team'
import { randomStarts, wordTasks } from '../lib/cli/eval/tasks'
import { loadReference } from './fixtures'
import { argmax, type Block } from './reference'

const names = ['Alice', 'Bob', 'Carol', 'Dave']

async function onReference(
  prompt: string,
  share: boolean,
  { start = {}, stop }: Disturbances,
): Promise<Map<string, WrittenToken[]>> {
  const model = loadReference(demoModelFolder)
  const tokenizer = await loadTokenizer(demoModelFolder)
  const common: Block = []
  model.step([{ view: [common], tokens: tokenizer.encode(prompt) }])
  const workers = names.map((name) => ({
    name,
    own: [] as Block,
    next: tokenizer.encode(name),
    start: start[name] ?? 0,
    written: [] as WrittenToken[],
    done: false,
  }))
  for (let step = 0; workers.some(({ done }) => !done); step++) {
    const active = workers.filter((worker) => !worker.done && step >= worker.start)
    for (const worker of active) {
      if (stop?.name === worker.name && stop.step === step) worker.next = tokenizer.encode('#')
    }
    const started = workers.filter((worker) => step >= worker.start)
    // In the order in which they joined.
    started.sort((one, other) => one.start - other.start)
    const logits = model.step(
      active.map(({ own, next }) => {
        const others = started.map((worker) => worker.own).filter((block) => block !== own)
        return { view: share ? [common, ...others, own] : [common, own], tokens: next }
      }),
    )
    active.forEach((worker, index) => {
      const text = tokenizer.decode(worker.next)
      worker.written.push({ text, step })
      worker.done = text === '.' || text === '#'
      worker.next = [argmax(logits[index]!.at(-1)!)]
    })
  }
  return new Map(workers.map(({ name, written }) => [name, written]))
}

describe('the same tokens in the same steps as the float64 reference', () => {
  let demo: DemoModel
  beforeAll(async () => {
    demo = await DemoModel.load()
  })
  afterAll(() => demo.close())

  const words = 'open the window and listen to wind over water before daylight fades'.split(' ')
  const cases: [string, boolean, Disturbances][] = [
    ['shared cache', true, {}],
    ['cache off', false, {}],
    ['late starts', true, { start: { Bob: 5, Carol: 17, Dave: 11 } }],
    ['Bob taken away', true, { stop: { name: 'Bob', step: 6, mark: true } }],
  ]
  test.each(cases)('%s', async (_, share, disturbances) => {
    const task = createTask(words.slice(0, 8))
    const { blocks } = await finishTask(demo, task, names, share, disturbances)
    const expected = await onReference(task.prompt, share, disturbances)
    for (const name of names) expect(blocks.get(name)).toEqual(expected.get(name))
  })
})

test('the lists of the evaluation depend on the seed alone', () => {
  const words = ['one', 'two', 'three', 'four', 'five']
  const lists = (seed: number) => wordTasks(words, 3, 4, seed, true).map(({ prompt }) => prompt)
  expect(lists(1)).toEqual(lists(1))
  expect(lists(1)).not.toEqual(lists(2))
  for (const { words: list, labels } of wordTasks(words, 5, 10, 1, true)) {
    expect([...list].sort()).toEqual([...words].sort())
    expect(new Set(labels).size).toBe(5)
  }
  const starts = randomStarts(names, 50, 30, 2).flatMap(({ start = {} }) => Object.entries(start))
  expect(starts).toHaveLength(150)
  for (const [name, step] of starts) {
    expect(name).not.toBe('Alice')
    expect(step).toBeGreaterThanOrEqual(1)
    expect(step).toBeLessThanOrEqual(30)
  }
})
