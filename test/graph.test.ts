// The model for dependent work, on lists that the committed experiment has not: results, steps, waits and claims.

import {
  graphModelPath,
  type LayoutName,
  loadModel,
  loadTokenizer,
  type Model,
  runWorkers,
  type Tokenizer,
} from '../lib'
import { loadExample } from './examples'

interface List {
  list: string
  answer: number[]
  work: number
  path: number
}

const NAMES = ['Alice', 'Bob', 'Carol', 'Dave']
const { makeLists } = loadExample<{ makeLists(seed: number, count: number): List[] }>(
  'experiments/graph.mjs',
)
const lists = makeLists(7, 7)

let model: Model
let tokenizer: Tokenizer

beforeAll(async () => {
  model = await loadModel(graphModelPath, { device: 'cpu', threads: 1, dtype: 'f32' })
  tokenizer = await loadTokenizer(graphModelPath)
})

afterAll(() => model.close())

const encode = (text: string) => tokenizer.encodeSync(text, { addSpecialTokens: false })

/** What each worker has written, and in how many steps all was done. */
async function work({ list }: List, workers: number, layout: LayoutName) {
  const names = new Set(NAMES.slice(0, workers).flatMap(encode))
  await using run = runWorkers({
    ...{ model, tokenizer, layout, maxTokens: 300 },
    prompt: encode(`<s>${list}`),
    workers: NAMES.slice(0, workers).map((name) => ({ name, prompt: encode(name) })),
    turnEnds:
      layout === 'contiguous' ? undefined : (ids) => names.has(ids[ids.length - 1] as number),
  })
  const texts: Record<string, string> = {}
  let steps = 0
  for await (const event of run) {
    if (event.type === 'token' || event.type === 'stop') {
      texts[event.worker] = (texts[event.worker] ?? '') + (event.text ?? '')
    }
    if (event.type === 'step') steps = event.step + 1
  }
  return { texts: Object.values(texts), steps }
}

/** Label and result of each finished line of a text, and whether its expression and values are those of the list. */
const linesOf = (text: string) =>
  [...text.matchAll(/([A-L]):([^=A-Z]*)=(\d)/g)].map(([, label = '', expression = '', digit]) => ({
    ...{ label, expression: expression.replaceAll('_', ''), digit: Number(digit) },
  }))

/** An item as a line has it: behind each reference its value. */
function expressionOf({ list, answer }: List, label: string): string {
  const expression = new RegExp(`^${label}:(.*)$`, 'm').exec(list)?.[1] ?? ''
  return expression.replace(/[a-l]/g, (name) => `${name}${answer[name.charCodeAt(0) - 97]}`)
}

test.each<[number, LayoutName]>([
  [1, 'contiguous'],
  [2, 'contiguous'],
  [4, 'contiguous'],
  [4, 'combined'],
])('%d workers, %s: every item once, with its values, near the ideal', async (count, layout) => {
  let steps = 0
  let ideal = 0
  let waits = 0
  for (const list of lists) {
    const done = await work(list, count, layout)
    const lines = done.texts.flatMap(linesOf)
    const labels = lines.map(({ label }) => label).sort()
    expect(labels.join('')).toBe('ABCDEFGHIJKL')
    for (const { label, expression, digit } of lines) {
      expect([label, expression]).toEqual([label, expressionOf(list, label)])
      expect([label, digit]).toEqual([label, list.answer[label.charCodeAt(0) - 65]])
    }
    steps += done.steps
    ideal += Math.max(list.work / count, list.path) + 2
    waits += done.texts.join('').split('_').length - 1
  }
  expect(ideal / steps).toBeGreaterThan(0.8)
  if (count === 1) expect([waits, steps]).toEqual([0, ideal])
  if (count === 4) expect(waits).toBeGreaterThan(0)
})

test('interleaved: right as well, but unfinished work is not seen and is done twice', async () => {
  const [list] = lists as [List]
  const { texts, steps } = await work(list, 4, 'interleaved')
  const lines = texts.flatMap(linesOf)
  expect(new Set(lines.map(({ label }) => label)).size).toBe(12)
  expect(lines.length).toBeGreaterThan(12)
  for (const { label, digit } of lines) {
    expect([label, digit]).toEqual([label, list.answer[label.charCodeAt(0) - 65]])
  }
  expect(steps).toBeGreaterThan((await work(list, 4, 'combined')).steps)
})
