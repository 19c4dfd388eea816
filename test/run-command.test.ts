// `hogwild run` on a model whose text is known beforehand: names, checks, answers, budgets, the finisher.

import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import {
  collaborate,
  loadModel,
  loadTokenizer,
  type RunUsage,
  runWorkers,
  type SpeculationUsage,
} from '../lib'
import { RunReport } from '../lib/cli/run/report'
import { readTimeline } from '../lib/timeline/read'
import { temporaryFolder } from './fixtures'
import { type Script, writeScriptedModel } from './scripted-model'

const main = join(__dirname, '..', 'dist', 'cli', 'main.js')

async function run(model: string, ...args: string[]): Promise<string> {
  const all = ['run', 'What is 2 + 2?', '--model', model, '--device', 'cpu', '--threads', '1']
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [main, ...all, ...args])
  expect(stderr).toBe('')
  return stdout
}

async function events(model: string, ...args: string[]): Promise<Record<string, unknown>[]> {
  const lines = (await run(model, ...args, '--json')).trim().split('\n')
  return lines.map((line) => JSON.parse(line))
}

/** Paragraphs of " no."; in the finisher's braces stands 42. */
const PARAGRAPHS: Script['follows'] = {
  ...{ ':': ' no', '*': ' no', e: ' no', l: ' no', ' no': '.', '.': '\n\n', '\n\n': ' no' },
  ...{ '{': '4', '4': '2', '2': '}' },
}
/** The same, but each paragraph gives an answer. */
const ANSWERS: Script['follows'] = { ...PARAGRAPHS, ' no': '\\boxed{', '\\boxed{': '4', '}': '.' }

const ofType = (list: Record<string, unknown>[], type: string) =>
  list.filter((event) => event.type === type)

test.each([
  ['combined', 5],
  ['interleaved', 5],
  ['contiguous', 0],
] as const)('%s: turns, checks and the answer at the end', async (layout, checkEvery) => {
  const model = writeScriptedModel({ follows: PARAGRAPHS })
  const args = ['--layout', layout, '--names', 'Ann, Ben', '--max-tokens', '20']
  const list = await events(model, ...args, '--check-every', `${checkEvery}`)
  const texts = ['Ann', 'Ben'].map((name) =>
    ofType(list, 'token')
      .filter(({ worker }) => worker === name)
      .map(({ text }) => text)
      .join(''),
  )
  expect(texts[0]).toMatch(/^\n\n\*\*Ann \[1\]:\*\* Ann here\. I suggest that we no\.\n\n/)
  expect(texts[1]).toMatch(/^\n\n\*\*Ben \[1\]:\*\* Ben here\. I will no\.\n\n/)
  const isInTurns = layout !== 'contiguous'
  expect(ofType(list, 'turn').length > 0).toBe(isInTurns)
  for (const [i, name] of ['Ann', 'Ben'].entries()) {
    expect(texts[i]?.includes(`\n\n**${name} [2]:**`)).toBe(isInTurns)
    expect(/am I repeating .* \(yes\/no\): no\.\n\n/.test(texts[i] as string)).toBe(isInTurns)
  }
  const [answer, ...more] = ofType(list, 'answer')
  const { steps } = list.at(-1) as { steps: number }
  expect([answer, more]).toEqual([{ type: 'answer', step: steps, early: true, answer: '42' }, []])
  expect(list.at(-1)).toMatchObject({ type: 'end' })
})

test('a trace, and where workers look', async () => {
  const model = writeScriptedModel({ follows: PARAGRAPHS })
  const trace = join(temporaryFolder(), 'run.jsonl')
  const list = await events(model, '--max-tokens', '12', '--trace', trace, '--attention')
  const steps = readTimeline(readFileSync(trace, 'utf8')).steps
  expect(steps.numbers).toHaveLength(ofType(list, 'step').length)
  expect(steps.attention).toHaveLength(
    ofType(list, 'token').filter((event) => 'attentionMass' in event).length,
  )
  expect(steps.attention).toHaveLength(steps.workers.length)
})

test('budgets: answers on the way, and the same tokens as without', async () => {
  const model = writeScriptedModel({ follows: PARAGRAPHS })
  const args = ['--workers', '3', '--max-tokens', '12']
  const list = await events(model, ...args, '--budget', '8,3')
  const answers = ofType(list, 'answer')
  expect(answers).toMatchObject([
    { budget: 3, early: true, answer: '42' },
    { budget: 8, early: true, answer: '42' },
    { early: true, answer: '42' },
  ])
  const plain = await events(model, ...args, '--finish', '0')
  expect(ofType(plain, 'answer')).toEqual([])
  expect(ofType(list, 'token')).toEqual(ofType(plain, 'token'))
  const text = await run(model, ...args, '--budget', '3', '--finish', '2')
  expect(text).toContain('\nearly after 3 tokens, no answer yet\n')
  expect(await run(model, ...args)).toMatch(/\nearly, answer: 42\n.* tokens in .* steps/)
})

test('an answer ends the work of all who see it', async () => {
  const model = writeScriptedModel({ follows: ANSWERS })
  const list = await events(model, '--workers', '3', '--max-tokens', '50')
  expect(ofType(list, 'answer')[0]).toMatchObject({ worker: 'Alice', early: false, answer: '42' })
  expect(ofType(list, 'answer').every(({ early }) => early === false)).toBe(true)
  expect(ofType(list, 'stop').map(({ reason }) => reason)).toEqual(new Array(3).fill('stopped'))
  const { steps } = list.at(-1) as { steps: number }
  expect(steps).toBeLessThan(12)
  expect(await run(model, '--max-tokens', '50')).toMatch(/^Alice · answer: 42$/m)
})

test('workers that see nobody else answer each for itself', async () => {
  const answering = writeScriptedModel({ follows: ANSWERS })
  const given = await events(answering, '--no-share', '--max-tokens', '50')
  expect(ofType(given, 'answer')).toMatchObject([
    { worker: 'Alice', early: false, answer: '42' },
    { worker: 'Bob', early: false, answer: '42' },
  ])
  const model = writeScriptedModel({ follows: PARAGRAPHS })
  const extracted = await events(model, '--no-share', '--max-tokens', '5')
  expect(ofType(extracted, 'answer')).toMatchObject([
    { worker: 'Alice', early: true, answer: '42' },
    { worker: 'Bob', early: true, answer: '42' },
  ])
})

test('a cache that is full gives no early answer, and the run ends as it would', async () => {
  const path = writeScriptedModel({ follows: PARAGRAPHS })
  await using model = await loadModel(path, { threads: 1, onWarning: () => {} })
  await using tokenizer = await loadTokenizer(path)
  const team = await collaborate({ tokenizer, problem: 'What is 2 + 2?', workers: 2 })
  const pages = Math.ceil(team.run.prompt.length / 64) + 6
  await using cache = model.createCache({ capacity: 64 * pages })
  const session = runWorkers({ model, ...team.run, cache })
  const options = { json: true, budgets: [], finishTokens: 32 }
  const report = new RunReport(model, team, session, options)
  let printed = ''
  jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed += text
    return true
  })
  for await (const event of session) await report.take(event)
  jest.restoreAllMocks()
  const list = printed
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(ofType(list, 'stop').map(({ reason }) => reason)).toContain('out-of-pages')
  expect(ofType(list, 'answer')).toMatchObject([{ early: true, answer: null }])
  expect(list.at(-1)).toMatchObject({ type: 'end' })
})

test('without a chat template the finisher has to be asked for', async () => {
  const model = writeScriptedModel({ follows: PARAGRAPHS, chatTemplate: null })
  const args = ['--workers', '1', '--max-tokens', '5']
  expect(ofType(await events(model, ...args), 'answer')).toEqual([])
  expect(ofType(await events(model, ...args, '--finish', '9'), 'answer')).toMatchObject([
    { worker: 'Alice', early: true, answer: '42' },
  ])
})

test.each(['lookup', 'jacobi'] as const)(
  '--speculate %s: the same tokens, and what it came to',
  async (by) => {
    const model = writeScriptedModel({ follows: PARAGRAPHS })
    // Each for itself: guesses of workers that see each other are kept together.
    const args = ['--workers', '2', '--no-share', '--layout', 'contiguous', '--max-tokens', '60']
    const [plain, fast] = [
      await events(model, ...args),
      await events(model, ...args, '--speculate', by),
    ]
    const untimed = (list: Record<string, unknown>[], type: string) =>
      ofType(list, type).map(({ milliseconds, usage, ...event }) => event)
    for (const type of ['token', 'turn', 'stop', 'step', 'end']) {
      expect(untimed(fast, type)).toEqual(untimed(plain, type))
    }
    const { steps, usage } = fast.at(-1) as { steps: number; usage: RunUsage }
    const { passes, drafted, accepted } = usage.speculation as SpeculationUsage
    expect((plain.at(-1) as { usage: RunUsage }).usage.speculation).toBeUndefined()
    // Repetitive text: at least 1.5 times fewer passes by lookup; with Jacobi iteration no more than without.
    expect(passes).toBeLessThanOrEqual(by === 'lookup' ? steps / 1.5 : steps)
    const text = await run(model, ...args, '--speculate', by)
    const share = Math.round((100 * accepted) / drafted)
    expect(text).toMatch(
      new RegExp(
        `\\d+ tokens in ${steps} steps of ${passes} passes, .* s; ${accepted} of ${drafted} guesses were right \\(${share} %\\)`,
      ),
    )
  },
)

test('checks where there are no turns are refused', async () => {
  const model = writeScriptedModel({ follows: PARAGRAPHS })
  await expect(run(model, '--layout', 'contiguous', '--check-every', '5')).rejects.toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/^hogwild: .*'contiguous', which has no turns.*\]\n$/),
  })
})
