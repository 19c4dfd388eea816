// Triggers, branches, and text that comes into the common block of a running group.

import { join } from 'node:path'
import {
  type Block,
  loadModel,
  loadTokenizer,
  type Model,
  type RunOptions,
  runWorkers,
  type Tokenizer,
  type TriggerMatch,
  type WorkerEvent,
  type WorkerRun,
} from '../lib'
import { Triggers } from '../lib/workers/triggers'
import { codeOf, oracleFolder, Random } from './fixtures'
import { writeScriptedModel } from './scripted-model'

let model: Model

beforeAll(async () => {
  model = await loadModel(oracleFolder('llama'), { onWarning: () => {} })
})
afterAll(() => model.close())

const options = (changes: Partial<RunOptions> = {}): RunOptions => ({
  model,
  prompt: [222, 345, 53],
  workers: [
    { name: 'Alice', prompt: [10, 11] },
    { name: 'Bob', prompt: [20] },
  ],
  stopTokens: [],
  maxTokens: 8,
  ...changes,
})

async function play(
  run: WorkerRun,
  at: (step: number) => unknown = () => {},
): Promise<WorkerEvent[]> {
  const events: WorkerEvent[] = []
  for await (const event of run) {
    events.push('milliseconds' in event ? { ...event, milliseconds: 0 } : event)
    if (event.type === 'step') await at(event.step)
  }
  return events
}

const tokensOf = (events: readonly WorkerEvent[], worker: string) =>
  events.flatMap((event) =>
    event.type === 'token' && event.worker === worker ? [event.token] : [],
  )

describe('triggers', () => {
  const found = (wanted: string, pieces: (string | [string])[], limit?: number): number => {
    let count = 0
    const triggers = new Triggers([{ text: wanted, limit, action: () => count++ }])
    for (const piece of pieces) {
      if (typeof piece === 'string') triggers.look('a', piece, false)
      else triggers.look('a', piece[0], true)
    }
    return count
  }

  test.each<[string, (string | [string])[], number]>([
    ['<path>', ['x<path>y'], 1],
    ['<path>', ['<', 'pa', 'th', '>'], 1],
    ['<path>', ['<path', ['>'], '>'], 0],
    ['<path>', ['<pa', '<path>', '<path>x<path', '>'], 3],
    ['\n\n', ['\n', '\n', '\n'], 1],
    ['\n\n', ['\n\n\n\n'], 2],
    ['aab', ['aaab'], 1],
    ['x', ['', 'y', ''], 0],
  ])('%j is found in %j %d times', (wanted, pieces, times) => {
    expect(found(wanted, pieces)).toBe(times)
  })

  test('however the text is cut', () => {
    const random = new Random(1)
    for (let round = 0; round < 300; round++) {
      const wanted = Array.from({ length: random.int(1, 4) }, () => random.pick(['a', 'b'])).join(
        '',
      )
      const text = Array.from({ length: random.int(0, 40) }, () => random.pick(['a', 'b'])).join('')
      const pieces: string[] = []
      for (let rest = text; rest !== ''; ) {
        const length = random.int(1, 5)
        pieces.push(rest.slice(0, length))
        rest = rest.slice(length)
      }
      expect([wanted, text, found(wanted, pieces)]).toEqual([
        wanted,
        text,
        text.split(wanted).length - 1,
      ])
    }
  })

  test('are set off at most so many times', () => {
    expect(found('a', ['aaaa', 'a'], 3)).toBe(3)
  })

  describe('in a run', () => {
    const demo = join(__dirname, '../models/demo')
    let writer: Model
    let tokenizer: Tokenizer
    beforeAll(async () => {
      writer = await loadModel(demo, { threads: 1, onWarning: () => {} })
      tokenizer = await loadTokenizer(demo)
    })
    afterAll(() => writer.close())
    const demoOptions = (changes: Partial<RunOptions>): RunOptions => ({
      model: writer,
      tokenizer,
      layout: 'contiguous',
      prompt: tokenizer.encodeSync('<s>A:ynam\nB:sdnah\nC:ekam\n'),
      workers: [{ name: 'Alice', prompt: tokenizer.encodeSync('Alice') }],
      maxTokens: 20,
      stopTokens: [],
      ...changes,
    })

    test('controls called by one take effect before the next step', async () => {
      const matches: TriggerMatch[] = []
      const run = runWorkers(
        demoOptions({
          triggers: [
            {
              text: '=m',
              limit: 1,
              action: (match) => {
                matches.push(match)
                run.join({ name: 'Bob', prompt: tokenizer.encodeSync('Bob') })
                run.stop('Alice')
              },
            },
            { text: '=m', workers: ['Carol'], action: () => matches.push({} as TriggerMatch) },
          ],
        }),
      )
      const events = await play(run)
      expect(matches).toEqual([{ worker: 'Alice', text: '=m', count: 1, depth: 0 }])
      const stop = events.findIndex(({ type }) => type === 'stop')
      const text = events
        .slice(0, stop)
        .flatMap((event) =>
          event.type === 'token' && event.worker === 'Alice' ? [event.text] : [],
        )
      expect(text.join('')).toMatch(/=m$/)
      const order = events.map(({ type }) => type)
      expect(order.slice(order.lastIndexOf('join'), order.lastIndexOf('join') + 3)).toEqual([
        'join',
        'stop',
        'token',
      ])
    })

    test('what an action throws ends the run', async () => {
      const mine = new Error('mine')
      const action = () => {
        throw mine
      }
      const run = runWorkers(demoOptions({ triggers: [{ text: '=', action }] }))
      await expect(play(run)).rejects.toBe(mine)
    })

    test.each<[unknown, RegExp]>([
      [{ text: '', action: () => {} }, /triggers\[0\]\[0\].*at least one/],
      [{ text: 'x' }, /triggers\[0\]\.action.*function/],
      [{ text: 'x', limit: 0, action: () => {} }, /limit/],
      [{ text: 'x', depth: -1, action: () => {} }, /depth/],
      [{ text: 'x', workers: 'a', action: () => {} }, /workers/],
      [{ text: 'x', call: 1, action: () => {} }, /call/],
    ])('refused: %p', (trigger, message) => {
      expect(() => runWorkers(demoOptions({ triggers: [trigger as never] }))).toThrow(message)
    })
  })

  test('need a tokenizer', () => {
    const triggers = [{ text: 'x', action: () => {} }]
    expect(() => runWorkers(options({ triggers }))).toThrow(/tokenizer/)
  })
})

describe('a branch', () => {
  test('begins with a copy of another worker’s block, and writes what one would that had come there', async () => {
    const alone = (tokens: number[]) =>
      play(
        runWorkers(
          options({
            workers: [{ name: 'a', prompt: tokens }],
            maxTokens: 4,
            layout: 'interleaved',
          }),
        ),
      )
    const run = runWorkers(
      options({
        workers: [{ name: 'root', prompt: [10, 11] }],
        layout: 'interleaved',
        maxTokens: 6,
      }),
    )
    let written: number[] = []
    const events = await play(run, (step) => {
      if (step !== 2) return
      written = [...(run.workers[0]?.tokens ?? [])]
      for (const token of [7, 8]) {
        run.join({ name: `branch ${token}`, prompt: [token], from: 'root', maxTokens: 4 })
      }
    })
    for (const token of [7, 8]) {
      const expected = tokensOf(await alone([...written, token]), 'a')
      expect([...written, ...tokensOf(events, `branch ${token}`)]).toEqual(expected)
    }
  })

  test('shares pages with its root', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const run = runWorkers(
      options({ cache, workers: [{ name: 'root', prompt: new Array(640).fill(3) }], maxTokens: 4 }),
    )
    let before = 0
    await play(run, (step) => {
      if (step === 0) {
        before = cache.stats.freePages
        run.join({ name: 'branch', prompt: [1], from: 'root' })
      }
      // A page for each of the two that write now.
      if (step === 1) expect(before - cache.stats.freePages).toBe(2)
    })
    expect(before).toBeGreaterThan(0)
  })

  test('is refused without a root', () => {
    const run = runWorkers(options())
    expect(() => run.join({ name: 'x', prompt: [1], from: 'Eve' })).toThrow(/from.*before it/)
    expect(() => runWorkers(options({ workers: [{ name: 'x', prompt: [1], from: 'x' }] }))).toThrow(
      /from/,
    )
  })
})

describe('fork and join, where the text says so', () => {
  let scripted: Model
  let tokenizer: Tokenizer
  const ids = (text: string) => Array.from(text, (byte) => byte.charCodeAt(0))
  // The root writes '<'; a branch, what its outline says; all end with ';'.
  const follows = { R: '<', '<': 'x', A: 'a', C: 'c', c: 'd', F: '<' }
  beforeAll(async () => {
    const path = writeScriptedModel({ follows, otherwise: ';' })
    scripted = await loadModel(path, { threads: 1, onWarning: () => {} })
    tokenizer = await loadTokenizer(path)
  })
  afterAll(() => Promise.all([scripted.close(), tokenizer.close()]))
  const rooted = (triggers: RunOptions['triggers']): RunOptions => ({
    ...{ model: scripted, tokenizer, layout: 'contiguous', prompt: ids('P'), triggers },
    ...{ workers: [{ name: 'root', prompt: ids('R') }], stopTokens: ids(';') },
  })

  test('the root goes on in the step behind that in which the last branch ends', async () => {
    const outlines = { short: ids('A'), long: ids('BC') }
    const fork = ({ worker }: TriggerMatch) => {
      for (const [name, prompt] of Object.entries(outlines))
        run.join({ name, prompt, from: worker })
      run.park(worker, async () => {
        await run.stopped(Object.keys(outlines))
        return ids('>')
      })
    }
    const run = runWorkers(rooted([{ text: '<', depth: 0, action: fork }]))
    const events = await play(run)
    const told = events.flatMap((event) =>
      'worker' in event && event.type !== 'token'
        ? [`${event.step} ${event.type} ${event.worker}`]
        : [],
    )
    expect(told).toEqual([
      '0 join root',
      '2 join short',
      '2 join long',
      '2 pause root',
      '4 stop short',
      '5 stop long',
      '6 resume root',
      '7 stop root',
    ])
    const texts = ['root', 'short', 'long'].map((name) =>
      String.fromCharCode(...tokensOf(events, name)),
    )
    expect(texts).toEqual(['R<>x;', 'Aa;', 'BCcd;'])
  })

  test.each([
    [undefined, [0, 1, 2]],
    [1, [0, 1]],
    [0, [0]],
  ])('as deep as %p: %j', async (depth, depths) => {
    const found: number[] = []
    const action = (match: TriggerMatch) => {
      found.push(match.depth)
      run.join({ name: `${match.count}`, prompt: ids('F'), from: match.worker })
    }
    const run = runWorkers(rooted([{ text: '<', limit: 3, depth, action }]))
    await play(run)
    expect(found).toEqual(depths)
  })

  test('who waits for others is told when the run ends before; names are checked', async () => {
    const run = runWorkers(rooted([]))
    expect(await codeOf(() => run.stopped(['Eve']))).toBe('HOGWILD_INVALID_ARGUMENT')
    const waits = codeOf(() => run.stopped(['root']))
    await run.close()
    expect(await waits).toBe('HOGWILD_CLOSED')
    expect(await codeOf(() => run.stopped([]))).toBe('HOGWILD_CLOSED')
    const whole = runWorkers(rooted([]))
    const waited = whole.stopped(['root'])
    for await (const event of whole) {
      if (event.type === 'end') await Promise.all([waited, whole.stopped(['root', 'root'])])
    }
  })
})

describe('append', () => {
  test('text is in the common block before the next step, whatever the chunks', async () => {
    const prompt = new Random(2).tokens(700, 384)
    const later = new Random(3).tokens(600, 384)
    for (const layout of ['contiguous', 'interleaved', 'combined'] as const) {
      for (const share of [true, false]) {
        await using cache = model.createCache({ capacity: 8192 })
        const common = cache.createBlock()
        const run = runWorkers(options({ cache, common, prompt, layout, share, keepBlocks: true }))
        const events = await play(run, (step) => step === 2 && run.append(later))
        expect(Array.from(common.tokens())).toEqual([...prompt, ...later])
        const at = events.findIndex(({ type }) => type === 'append')
        expect(events[at]).toEqual({ type: 'append', step: 3, tokens: 600 })
        const end = events.at(-1)
        const copies = share ? 1 : 3
        expect(end?.type === 'end' && end.usage.promptTokens).toBe(700 + 600 * copies + 3)

        // The same by hand: up to there a run without it, then a step in sight of it.
        const [alice, bob] = ['Alice', 'Bob'].map((name) => tokensOf(events, name))
        const blocks = [alice, bob].map(() => cache.createBlock()) as [Block, Block]
        const bases = share
          ? [common, common]
          : ['Alice', 'Bob'].map((n) => run.blocks.workers[n]?.common)
        const reach = common.fork()
        reach.truncate(700)
        const views = (base: Block) => {
          const sees = share && layout !== 'interleaved'
          return [
            { blocks: [base, ...(sees ? [blocks[1]] : []), blocks[0]] },
            { blocks: [base, ...(sees ? [blocks[0]] : []), blocks[1]] },
          ]
        }
        expect(bases).toHaveLength(2)
        const inputs = [alice as number[], bob as number[]].map((tokens, w) => {
          const first = w === 0 ? 2 : 1
          return [tokens.slice(0, first), ...tokens.slice(first).map((token) => [token])]
        })
        for (let step = 0; step < 9; step++) {
          const base = step < 3 ? reach : common
          const parts = views(base).map((view, w) => ({
            view,
            tokens: inputs[w]?.[step] as number[],
          }))
          const outputs = await model.step(parts)
          if (step === 8) break
          const expected = inputs.map((input) => input[step + 1]?.[0])
          expect(outputs.map(({ token }) => token)).toEqual(expected)
        }
      }
    }
  })

  test('where there is no room it ends the run', async () => {
    const run = runWorkers(options({ capacity: 64 * 4 }))
    expect(
      await codeOf(() => play(run, (step) => step === 1 && run.append(new Array(999).fill(1)))),
    ).toBe('HOGWILD_OUT_OF_PAGES')
  })

  test('wakes a run whose workers are all paused; bad tokens are refused', async () => {
    const run = runWorkers(options({ workers: [{ name: 'Alice', prompt: [1] }] }))
    run.pause('Alice')
    expect(() => run.append([])).toThrow(/at least 1/)
    expect(() => run.append([384])).toThrow(/383/)
    setTimeout(() => run.append([1, 2]), 5)
    const types: string[] = []
    for await (const { type } of run) {
      types.push(type)
      if (type === 'append') run.resume('Alice')
    }
    expect(types.slice(0, 4)).toEqual(['join', 'pause', 'append', 'resume'])
  })
})
