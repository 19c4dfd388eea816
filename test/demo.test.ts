// The demo model: the same tokens from the CPU device as from the float64 reference, worker by worker
// and step by step, and the words that were asked for.

import { join } from 'node:path'
import { loadModel, loadTokenizer, type Model, runWorkers, type Tokenizer } from '../lib'
import { loadReference } from './fixtures'
import { argmax, type Block, type ReferenceModel } from './reference'

const folder = join(__dirname, '..', 'models', 'demo')
const NAMES = ['Alice', 'Bob', 'Carol', 'Dave']

let model: Model
let reference: ReferenceModel
let tokenizer: Tokenizer

beforeAll(async () => {
  model = await loadModel(folder, { device: 'cpu', threads: 1 })
  reference = loadReference(folder)
  tokenizer = await loadTokenizer(folder)
})

afterAll(() => model.close())

const id = (token: string): number => tokenizer.tokenId(token)!
const reversed = (word: string): string => [...word].reverse().join('')
const promptOf = (words: readonly string[]): number[] =>
  tokenizer.encodeSync(
    `<s>${words.map((word, i) => `${String.fromCharCode(65 + i)}:${reversed(word)}\n`).join('')}`,
    { addSpecialTokens: false },
  )

interface Schedule {
  words: readonly string[]
  workers: number
  /** Step at which a worker starts, by name; default 0. */
  starts?: Record<string, number>
  /** Step at which a worker writes '#' and is gone. */
  stops?: Record<string, number>
}

/** What each worker writes: token and step, in order. */
type Written = Record<string, [step: number, token: number][]>

function onReference({ words, workers, starts = {}, stops = {} }: Schedule): Written {
  const prompt: Block = []
  reference.step([{ view: [prompt], tokens: promptOf(words) }])
  const team = NAMES.slice(0, workers).map((name) => ({
    name,
    own: [] as Block,
    next: id(name),
    active: true,
  }))
  const written: Written = Object.fromEntries(team.map(({ name }) => [name, []]))
  for (let step = 0; team.some(({ active }) => active); step++) {
    const movers = team.filter(({ name, active }) => active && step >= (starts[name] ?? 0))
    for (const mover of movers) if (stops[mover.name] === step) mover.next = id('#')
    const logits = reference.step(
      movers.map(({ own, next }) => ({
        view: [prompt, ...team.filter((other) => other.own !== own).map((other) => other.own), own],
        tokens: [next],
      })),
    )
    movers.forEach((mover, i) => {
      written[mover.name]!.push([step, mover.next])
      mover.active = mover.next !== id('.') && mover.next !== id('#')
      mover.next = argmax(logits[i]![0]!)
    })
  }
  return written
}

async function onDevice({ words, workers, starts = {}, stops = {} }: Schedule): Promise<Written> {
  const team = NAMES.slice(0, workers)
  const spec = (name: string): { name: string; prompt: number[] } => ({ name, prompt: [id(name)] })
  const written: Written = Object.fromEntries(team.map((name) => [name, []]))
  await using run = runWorkers({
    model,
    prompt: promptOf(words),
    workers: team.filter((name) => (starts[name] ?? 0) === 0).map(spec),
    layout: 'contiguous',
    stopTokens: [id('.')],
  })
  for await (const event of run) {
    if (event.type === 'token') written[event.worker]!.push([event.step, event.token])
    if (event.type !== 'step') continue
    for (const name of team) {
      if (starts[name] === event.step + 1) run.join(spec(name))
      if (stops[name] === event.step + 1) run.stop(name, { append: [id('#')] })
    }
  }
  return written
}

/** Words by label, as all workers wrote them: a line is name, label, '=', letters. */
function answers(written: Written): Map<string, string[]> {
  const found = new Map<string, string[]>()
  for (const [name, tokens] of Object.entries(written)) {
    const text = tokenizer.decode(tokens.map(([, token]) => token))
    for (const line of text.split(name)) {
      const [, label, word] = /^([A-P])=([a-z]+)$/.exec(line) ?? []
      if (label) found.set(label, [...(found.get(label) ?? []), word!])
    }
  }
  return found
}

const sentence = 'many hands make light work if they see what is done'.split(' ')
const short = 'the quick brown fox'.split(' ')
const cases: [string, Schedule][] = [
  ['one worker', { words: short, workers: 1 }],
  ['two workers', { words: sentence, workers: 2 }],
  ['four workers', { words: sentence, workers: 4 }],
  ['four workers and one word', { words: ['hello'], workers: 4 }],
  ['a late start', { words: sentence, workers: 3, starts: { Bob: 7, Carol: 4 } }],
  ['a worker that is taken away', { words: sentence, workers: 4, stops: { Bob: 4 } }],
]

it.each(cases)('%s', async (_, schedule) => {
  const written = await onDevice(schedule)
  expect(written).toEqual(onReference(schedule))
  const labels = schedule.words.map((word, i) => [String.fromCharCode(65 + i), [word]])
  expect(Object.fromEntries(answers(written))).toEqual(Object.fromEntries(labels))
})

it('four workers need less than half the steps of one', async () => {
  const steps = async (workers: number): Promise<number> => {
    const written = await onDevice({ words: sentence, workers })
    return Math.max(...Object.values(written).flatMap((tokens) => tokens.map(([step]) => step)))
  }
  expect(await steps(4)).toBeLessThan((await steps(1)) / 2)
})

describe('attention masses', () => {
  // All of one length, so that only what is written differs.
  const words = ['many', 'hand', 'make', 'work', 'lamp', 'good']
  const label = (item: number) => String.fromCharCode(65 + item)

  /** Bob claims an item that Alice or Carol has; the other one has another item. */
  async function claim(item: number, taker: 'Alice' | 'Carol') {
    await using cache = model.createCache({ capacity: 1024 })
    const common = cache.createBlock()
    await model.prefill(common, promptOf(words), { sampler: null })
    const others = ['Alice', 'Carol'].map((name) => {
      const has = name === taker ? item : (item + 3) % words.length
      const tokens = tokenizer.encodeSync(`${name}${label(has)}=${words[has]}`, {
        addSpecialTokens: false,
      })
      return { block: cache.createBlock(), tokens }
    })
    await model.step(
      others.map(({ block, tokens }) => ({
        view: { blocks: [common, block] },
        tokens,
        sampler: null,
      })),
    )
    const view = { blocks: [common, ...others.map(({ block }) => block), cache.createBlock()] }
    const tokens = [id('Bob'), id(label(item))]
    const [output] = await model.step([{ view, tokens, attentionMass: true }])
    const [prompt, alice, carol, bob] = output!.attentionMass!
    return { token: output!.token, masses: { prompt, Alice: alice!, Carol: carol!, bob } }
  }

  it.each(words.map((_, item) => item))(
    'who has claimed what another one has (item %d) listens to that one',
    async (item) => {
      const ofAlice = await claim(item, 'Alice')
      const ofCarol = await claim(item, 'Carol')
      for (const { token, masses } of [ofAlice, ofCarol]) {
        expect(token).toBe(id('~')) // it gives the item up
        const sum = Object.values(masses).reduce<number>((all, mass) => all + mass!, 0)
        expect(Math.abs(sum - 1)).toBeLessThan(1e-3)
      }
      expect(ofAlice.masses.Alice).toBeGreaterThan(1.5 * ofCarol.masses.Alice)
      expect(ofCarol.masses.Carol).toBeGreaterThan(1.2 * ofAlice.masses.Carol)
      expect(ofCarol.masses.Carol).toBeGreaterThan(1.5 * ofCarol.masses.Alice)
    },
  )
})
