// What runs beside the steps of a run: questions that leave no trace, work that a worker waits for, changes of blocks.

import {
  type Block,
  type Cache,
  loadModel,
  type Model,
  type RunOptions,
  runWorkers,
  type WorkerBlocks,
  type WorkerEvent,
  type WorkerRun,
} from '../lib'
import { codeOf, expectSameBits, oracleFolder, Random } from './fixtures'

let model: Model

beforeAll(async () => {
  model = await loadModel(oracleFolder('llama'), { onWarning: () => {} })
})
afterAll(() => model.close())

const options = (changes: Partial<RunOptions> = {}): RunOptions => ({
  model,
  prompt: [222, 345, 53],
  workers: [
    { name: 'Alice', prompt: [10, 11], sampler: { seed: 1 } },
    { name: 'Bob', prompt: [20], sampler: { seed: 2 } },
  ],
  stopTokens: [],
  maxTokens: 12,
  ...changes,
})

/** Plays a run to its end; `at`: what is done after the step of this number. */
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

const expectSame = (actual: Float32Array, expected: Float32Array) =>
  expectSameBits(actual, expected, 'a probe or block')

const tokensOf = (events: readonly WorkerEvent[], worker: string) =>
  events.flatMap((event) =>
    event.type === 'token' && event.worker === worker ? [event.token] : [],
  )

describe('a probe', () => {
  test('leaves no trace: tokens, draws, blocks and pages are what they would be', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const random = new Random(4)
    const kept: Block[] = [] // or those of the first run are collected while the second one counts free pages
    const probed = async (asks: boolean) => {
      const run = runWorkers(options({ cache, keepBlocks: true }))
      const events = await play(run, async (step) => {
        const before = cache.stats.freePages
        if (!asks || step % 2 === 0) return
        const question = random.tokens(random.int(1, 80), 384)
        const { logits } = await run.probe(random.pick(['Alice', 'Bob']), question)
        expect(logits).toHaveLength(384)
        expect(cache.stats.freePages).toBe(before)
      })
      const { common, workers } = run.blocks
      const blocks = [common, workers.Alice?.own, workers.Bob?.own] as Block[]
      kept.push(...blocks)
      const stored = blocks.map((block) => [Array.from(block.tokens()), block.segments])
      return { events, stored, keys: blocks.map((block) => block.read(1)) }
    }
    const quiet = await probed(false)
    const asked = await probed(true)
    expect(asked.events).toEqual(quiet.events)
    expect(asked.stored).toEqual(quiet.stored)
    for (const [i, { k, v }] of quiet.keys.entries()) {
      expectSame(asked.keys[i]!.k, k)
      expectSame(asked.keys[i]!.v, v)
    }
    for (const block of kept) block.close()
  })

  test('gives the logits of a step on a fork, and the probabilities of answers', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const run = runWorkers(options({ cache }))
    const answers = [[5], [6, 7, 8]]
    let checked = 0
    await play(run, async (step) => {
      if (step !== 3) return
      const view = run.blocks
      const blocks = [view.common, view.workers.Bob?.own, view.workers.Alice?.own] as Block[]
      const result = await run.probe('Alice', [1, 2], { answers })
      const same = await run.probe(blocks, [1, 2])
      expectSame(same.logits, result.logits)
      expect(same.answers).toEqual([])
      const fork = cache.createBlock()
      const [output] = await model.step([
        { view: { blocks: [...blocks, fork] }, tokens: [1, 2], logits: 'last' },
      ])
      expectSame(result.logits, output?.logits as Float32Array)
      for (const [i, answer] of answers.entries()) {
        const apart = cache.createBlock()
        const view = { blocks: [...blocks, apart] }
        let expected = 0
        let input = [1, 2]
        for (const token of answer) {
          const [next] = await model.step([{ view, tokens: input, logits: 'last' }])
          const logits = Array.from(next?.logits as Float32Array)
          const sum = logits.reduce((all, logit) => all + Math.exp(logit), 0)
          expected += (logits[token] as number) - Math.log(sum)
          input = [token]
        }
        expect(result.answers[i]).toBeCloseTo(expected, 3)
        apart.close()
      }
      fork.close()
      checked++
    })
    expect(checked).toBe(1)
  })

  test('runs while no event is asked for, beside other runs', async () => {
    const run = runWorkers(options())
    const iterator = run[Symbol.asyncIterator]()
    while ((await iterator.next()).value?.type !== 'step');
    const other = play(runWorkers(options()))
    const results = await Promise.all([1, 2, 3].map((token) => run.probe('Bob', [token])))
    expect(new Set(results.map(({ logits }) => logits[0])).size).toBe(3)
    const again = await run.probe('Bob', [1])
    expectSame(again.logits, results[0]!.logits)
    expect((await other).at(-1)?.type).toBe('end')
    await run.close()
  })

  test('is refused, and the run goes on', async () => {
    const run = runWorkers(options({ capacity: 64 * 4 }))
    expect(await codeOf(() => run.probe('Alice', [1]))).toBe('HOGWILD_INVALID_ARGUMENT')
    const events = await play(run, async (step) => {
      if (step !== 2) return
      expect(await codeOf(() => run.probe('Eve', [1]))).toBe('HOGWILD_INVALID_ARGUMENT')
      expect(await codeOf(() => run.probe('Bob', []))).toBe('HOGWILD_INVALID_ARGUMENT')
      expect(await codeOf(() => run.probe('Bob', [384]))).toBe('HOGWILD_INVALID_ARGUMENT')
      expect(await codeOf(() => run.probe('Bob', [1], { answers: [[]] }))).toBe(
        'HOGWILD_INVALID_ARGUMENT',
      )
      expect(await codeOf(() => run.probe('Bob', new Array(65).fill(1)))).toBe(
        'HOGWILD_OUT_OF_PAGES',
      )
      run.join({ name: 'Carol', prompt: [1] })
      expect(await codeOf(() => run.probe('Carol', [1]))).toBe('HOGWILD_INVALID_ARGUMENT')
    })
    expect(events.at(-1)?.type).toBe('end')
    expect(await codeOf(() => run.probe('Bob', [1]))).toBe('HOGWILD_CLOSED')
  })

  test('rejects when its run is closed', async () => {
    const run = runWorkers(options())
    const iterator = run[Symbol.asyncIterator]()
    while ((await iterator.next()).value?.type !== 'step');
    const asked = codeOf(() => run.probe('Bob', [1]))
    await run.close()
    expect(['HOGWILD_ABORTED', 'HOGWILD_CLOSED', 'nothing was thrown']).toContain(await asked)
  })
})

describe('a parked worker', () => {
  const wait = (milliseconds: number) =>
    new Promise<void>((resolve) => setTimeout(resolve, milliseconds))

  test('goes on with what the work gives; the others write meanwhile', async () => {
    const run = runWorkers(options({ maxTokens: 400, capacity: 4096 }))
    let whileParked = 0
    let finish = (_: number[]) => {}
    const work = new Promise<number[]>((resolve) => {
      finish = resolve
    })
    const events = await play(run, (step) => {
      if (step === 2) run.park('Alice', () => work)
      if (step === 10) finish([7, 8, 9])
      if (run.workers[0]?.state === 'paused') whileParked++
    })
    expect(whileParked).toBeGreaterThanOrEqual(8)
    const alice = events.flatMap((event) =>
      event.type === 'token' && event.worker === 'Alice' ? [event] : [],
    )
    const given = alice.filter(({ forced }) => forced).map(({ token }) => token)
    expect(given).toEqual([10, 11, 7, 8, 9])
    const [pause, resume] = ['pause', 'resume'].map((type) => events.find((e) => e.type === type))
    expect(pause).toMatchObject({ worker: 'Alice', step: 3 })
    expect(resume).toMatchObject({ worker: 'Alice', step: 3 + whileParked })
    expect(tokensOf(events, 'Bob')).toHaveLength(401)
  })

  test('alone it holds up the run until the work is done', async () => {
    const run = runWorkers(options({ workers: [{ name: 'Alice', prompt: [1] }] }))
    const events = await play(run, (step) => {
      if (step === 1) run.park('Alice', () => wait(10).then(() => [7]))
    })
    expect(tokensOf(events, 'Alice')[2]).toBe(7)
  })

  test('what the work throws ends the run, and so does a timeout, which aborts the work', async () => {
    const mine = new Error('mine')
    const failing = runWorkers(options())
    await expect(
      play(failing, (step) => step === 1 && failing.park('Bob', () => Promise.reject(mine))),
    ).rejects.toBe(mine)
    const slow = runWorkers(options({ maxTokens: 5000 }))
    let aborted = false
    const parks = (step: number) => {
      if (step !== 1) return
      slow.park(
        'Bob',
        (signal) =>
          new Promise((_, reject) => {
            signal.addEventListener('abort', () => {
              aborted = true
              reject(signal.reason)
            })
          }),
        { timeoutMs: 5 },
      )
      slow.pause('Alice')
    }
    await expect(play(slow, parks)).rejects.toMatchObject({ code: 'HOGWILD_TIMEOUT' })
    expect(aborted).toBe(true)
  })

  test('work is aborted when the consumer leaves', async () => {
    let signal: AbortSignal | undefined
    const run = runWorkers(options())
    run.park('Bob', (given) => {
      signal = given
      return new Promise(() => {})
    })
    for await (const event of run) if (event.type === 'step') break
    expect(signal?.aborted).toBe(true)
  })

  test('bad tokens end the run; bad arguments are refused', async () => {
    const run = runWorkers(options())
    expect(() => run.park('Eve', () => Promise.resolve([]))).toThrow(/Alice/)
    expect(() => run.park('Bob', 5 as never)).toThrow(/function/)
    expect(() => run.park('Bob', () => Promise.resolve([]), { timeoutMs: 0 })).toThrow(/timeoutMs/)
    run.park('Bob', () => Promise.resolve([-1]))
    expect(await codeOf(() => play(run))).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})

test('blocks are forked and changed between steps, while another run computes', async () => {
  const cache: Cache = model.createCache({ capacity: 4096 })
  const other = runWorkers(options({ cache, maxTokens: 200 }))
  const others = play(other)
  const run = runWorkers(options({ cache }))
  const forks: Block[] = []
  await play(run, async () => {
    forks.push(
      await run.betweenSteps(({ workers }) => {
        const { own } = workers.Alice as WorkerBlocks
        return own.fork()
      }),
    )
  })
  expect(forks.map(({ length }) => length)).toEqual(forks.map((_, i) => i + 2))
  const mine = new Error('mine')
  const last = runWorkers(options({ cache }))
  await play(last, (step) =>
    step === 1
      ? expect(
          last.betweenSteps(() => {
            throw mine
          }),
        ).rejects.toBe(mine)
      : undefined,
  )
  expect(tokensOf(await others, 'Bob')).toHaveLength(201)
  await cache.close()
})
