// Experiments: definitions, cells, results that are cut, resumed, split and merged, and the numbers of the committed one.

import { spawnSync } from 'node:child_process'
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import Ajv from 'ajv/dist/2020'
import { ModuleKind, ScriptTarget, transpileModule } from 'typescript'
import { loadModel, loadTokenizer, type Tokenizer } from '../lib'
import { cellsOf, listCells, listSettings } from '../lib/experiment/cells'
import { loadItems } from '../lib/experiment/data'
import { checkExperiment, type Experiment, loadExperiment } from '../lib/experiment/definition'
import * as library from '../lib/experiment/index'
import type { Grader } from '../lib/experiment/item'
import { type CellResult, type Results, readResults } from '../lib/experiment/results-file'
import { mergeResults, runExperiment, writeSummary } from '../lib/experiment/run'
import { vote } from '../lib/experiment/schemes'
import { summarise, summaryCsv } from '../lib/experiment/summary'
import { codeOf, temporaryFolder } from './fixtures'
import { type Script, writeScriptedModel } from './scripted-model'

const root = join(__dirname, '..')
const main = join(root, 'dist', 'cli', 'main.js')
const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8'))

/** Paragraphs of " no."; in the finisher's braces stands 42. */
const PARAGRAPHS: Script['follows'] = {
  ...{ ':': ' no', '*': ' no', e: ' no', l: ' no', ' no': '.', '.': '\n\n', '\n\n': ' no' },
  ...{ '{': '4', '4': '2', '2': '}' },
}
/** The same, but each paragraph gives an answer. */
const ANSWERS: Script['follows'] = { ...PARAGRAPHS, ' no': '\\boxed{', '\\boxed{': '4', '}': '.' }

const SMALL = {
  data: {
    items: [
      { question: 'What is 40 + 2?', answer: 42 },
      { question: '1?', answer: 1 },
    ],
  },
  prompt: '{{question}}',
  grader: 'numeric',
  models: ['.'],
  budgets: [3, 8, 20],
} satisfies Partial<Experiment>

describe('definitions', () => {
  const ajv = new Ajv({ strict: false })
  const schema = ajv.compile(readJson(join(root, 'docs', 'experiment.schema.json')))
  const accepted = (definition: object) => {
    try {
      checkExperiment(definition, 'x')
      return true
    } catch (error) {
      if ((error as { code?: string }).code !== 'HOGWILD_INVALID_ARGUMENT') throw error
      return false
    }
  }

  test.each<[boolean, object]>([
    [true, {}],
    [true, { name: 'x', expected: 'right', workers: [1, 16], share: [true, false], finish: 0 }],
    [true, { layouts: ['combined', 'contiguous'], schemes: ['plain', 'collaborate'] }],
    [true, { data: { generate: 'needles', documents: [10, 8000], depths: [0, 1], count: 2 } }],
    [true, { data: { generate: 'memory', messages: 3, every: 5 }, late: 'late' }],
    [true, { data: { generate: 'superposition', examples: 26, mixture: { copy: 2, upper: 1 } } }],
    [true, { grader: { type: 'worf-chain', threshold: 0.5 } }],
    [true, { grader: { type: 'retrieval', k: 1 } }],
    [true, { grader: { type: 'superposition' } }],
    [false, { data: { generate: 'needles', documents: [] } }],
    [false, { data: { generate: 'needles', questions: 1 } }],
    [false, { data: { generate: 'memory', every: -1 } }],
    [false, { data: { generate: 'superposition', mixture: {} } }],
    [false, { data: { generate: 'superposition', mixture: { sing: 1 } } }],
    [false, { grader: { type: 'worf-graph', threshold: 2 } }],
    [false, { grader: { type: 'memory', k: 1 } }],
    [false, { grader: { type: 'retrieval', k: 0 } }],
    [false, { late: 3 }],
    [true, { data: { file: 'x.jsonl' } }],
    [true, { data: { file: 'x.csv', limit: 3 } }],
    [true, { data: { file: 'x.txt', format: 'csv' } }],
    [true, { data: { generate: 'gsm', questions: 5, seed: 1, count: 3 } }],
    [true, { models: [{ model: 'a/b', name: 'c', dtype: 'f32', ignoreFields: ['x'] }, 'a/d'] }],
    [true, { sampler: { temperature: 0.7, topP: 0.9 }, seeds: [1, 2] }],
    [true, { collaborate: { checkEvery: 0, rulesAs: 'system', chat: {}, texts: {} } }],
    [true, { plain: { opening: '', answer: 'text', stop: ['\n'] }, keepTexts: true }],
    [true, { plain: { answer: { opening: '<', closing: '>' } }, capacity: 100 }],
    [true, { plain: { turnEnds: ['\n', 'x'] } }],
    [false, { plain: { turnEnds: [''] } }],
    [false, { plain: { turnEnds: 'x' } }],
    [true, { grader: { type: 'regex', pattern: 'a', flags: 'i', of: 'texts' } }],
    [true, { grader: { type: 'choice', choices: 'list' } }],
    [true, { grader: { type: 'numeric', tolerance: 0, all: true } }],
    [false, { budget: [3] }],
    [false, { data: {} }],
    [false, { data: { file: 'x.txt' } }],
    [false, { data: { file: 'x.csv', items: [] } }],
    [false, { data: { generate: 'mmlu' } }],
    [false, { data: { generate: 'gsm', questions: 0 } }],
    [false, { data: { items: [3] } }],
    [false, { grader: 'regex' }],
    [false, { grader: { type: 'exact', of: 'x' } }],
    [false, { models: [] }],
    [false, { models: [{ model: 'x', dtype: 'int8' }] }],
    [false, { workers: [0] }],
    [false, { workers: [17] }],
    [false, { workers: [2, 2] }],
    [false, { layouts: ['star'] }],
    [false, { schemes: [] }],
    [false, { budgets: [] }],
    [false, { budgets: [0] }],
    [false, { budgets: 5 }],
    [false, { sampler: { temperature: -1 } }],
    [false, { sampler: { seed: 1 } }],
    [false, { plain: { answer: { opening: '', closing: '>' } } }],
    [false, { share: ['yes'] }],
    [false, { keepTexts: 1 }],
  ])('%j: %j, by the schema too', (right, change) => {
    const definition = { ...SMALL, ...change }
    expect(accepted(definition)).toBe(right)
    expect(schema(definition)).toBe(right)
  })

  test('what a schema cannot say is refused as well', () => {
    const refused = (change: object) => () => checkExperiment({ ...SMALL, ...change }, 'x')
    expect(refused({ budgets: [3, 2] })).toThrow('ascending')
    expect(refused({ seeds: [1, 2] })).toThrow('seeds')
    expect(refused({ models: ['a/x', 'b/x'] })).toThrow('each once')
  })

  test.each(['gsm.json'])('examples/experiments/%s is one', async (file) => {
    const path = join(root, 'examples', 'experiments', file)
    expect(schema(readJson(path))).toBe(true)
    await loadExperiment(path)
  })

  const document = readFileSync(join(root, 'docs', 'experiments.md'), 'utf8')
  const blocks = (language: string) =>
    [...document.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, 'gm'))].map(
      ([, code = '']) => code,
    )

  test('those of docs/experiments.md', async () => {
    const definitions = blocks('json').map((json) => JSON.parse(json))
    expect(definitions.map((definition) => schema(definition))).toEqual([true, true])
    for (const { $schema, ...definition } of definitions) checkExperiment(definition, 'x')
    const [module = ''] = blocks('js')
    const { outputText } = transpileModule(module, {
      compilerOptions: { module: ModuleKind.CommonJS, target: ScriptTarget.ES2022 },
    })
    const exports: { default?: unknown } = {}
    new Function('require', 'exports', outputText)(() => library, exports)
    const { grader, data } = checkExperiment(exports.default, 'x')
    const [item = {}] = await loadItems(data, root)
    const outcome = { answer: '1: pour tea\n2: boil it', early: false, texts: {} }
    const graded = (grader as Grader)({ ...outcome, steps: 1, tokens: 1 }, item, item.steps)
    expect(graded).toMatchObject({ score: 1 / 2 })
  })

  test.each([
    ['bash', (text: string) => text, { SLURM_ARRAY_TASK_ID: '3', SLURM_ARRAY_TASK_COUNT: '16' }],
    [
      'yaml',
      (text: string) => /args: \['(.*)'\]$/m.exec(text)?.[1] ?? '',
      { JOB_COMPLETION_INDEX: '2' },
    ],
  ])('the third shard of the %s script in docs/experiments.md', (language, scriptOf, env) => {
    const folder = temporaryFolder()
    writeFileSync(join(folder, 'npx'), '#!/bin/sh\necho "$@"\n', { mode: 0o755 })
    const script = scriptOf(blocks(language)[0] as string)
    const { stdout } = spawnSync('sh', ['-c', script], {
      encoding: 'utf8',
      env: { ...process.env, ...env, PATH: `${folder}:${process.env.PATH}` },
    })
    expect(stdout).toMatch(/^hogwild experiment gsm\.json .*--shard 3\/16\b/)
  })

  test('files: JSONL, CSV, and what is wrong with them', async () => {
    const folder = temporaryFolder()
    const write = (name: string, text: string) => {
      writeFileSync(join(folder, name), text)
      return join(folder, name)
    }
    const define = (data: object) => write('x.json', JSON.stringify({ ...SMALL, data }))
    write('a.jsonl', '{"question":"1?","answer":1}\n{"question":"2?","answer":2}\n')
    const { items, experiment } = await loadExperiment(define({ file: 'a.jsonl', limit: 1 }))
    expect([items, experiment.name]).toEqual([[{ question: '1?', answer: 1 }], 'x'])
    write('a.csv', 'question,answer\n1?,1\n')
    expect((await loadExperiment(define({ file: 'a.csv' }))).items).toEqual([
      { question: '1?', answer: '1' },
    ])
    const refusals: [string, object][] = [
      ['a.jsonl, line 2', { file: write('a.jsonl', '{"question":1}\nno\n') && 'a.jsonl' }],
      ['item 0 has no "question"', { file: write('b.jsonl', '{"q":1}\n') && 'b.jsonl' }],
      ['at least one item', { file: write('c.jsonl', '') && 'c.jsonl' }],
      ['none.jsonl', { file: 'none.jsonl' }],
    ]
    for (const [message, data] of refusals) {
      await expect(loadExperiment(define(data))).rejects.toThrow(message)
      expect(await codeOf(() => loadExperiment(define(data)))).toBe('HOGWILD_INVALID_ARGUMENT')
    }
    await expect(loadExperiment(write('x.yaml', ''))).rejects.toThrow('.json')
    await expect(loadExperiment(write('y.json', '{'))).rejects.toThrow('is not JSON')
  })
})

describe('cells', () => {
  const experiment = checkExperiment(
    {
      ...SMALL,
      ...{ workers: [1, 2], layouts: ['combined', 'interleaved'], share: [true, false] },
    },
    'x',
  )

  test('each setting once: layouts only where workers see one another', () => {
    expect(listSettings(experiment).map((one) => [one.workers, one.layout, one.share])).toEqual([
      [1, null, false],
      [2, 'combined', true],
      [2, null, false],
      [2, 'interleaved', true],
    ])
  })

  test.each([1, 2, 3, 7, 50])('%d shards have every cell once', (count) => {
    const cells = listCells(experiment, 5)
    expect(cells.map(({ cell }) => cell)).toEqual(cells.map((_, i) => i))
    const shards = Array.from({ length: count }, (_, i) => cellsOf(cells, { index: i + 1, count }))
    const sizes = shards.map(({ length }) => length)
    expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1)
    expect(shards.flat().sort((a, b) => a.cell - b.cell)).toEqual(cells)
  })
})

test.each([
  [['4', '5', '5'], '5'],
  [['4', '5'], '4'],
  [[undefined, '5', '4', '4', '5'], '5'],
  [[undefined, '7'], '7'],
  [[undefined, undefined], undefined],
])('the vote of %j', (answers, winner) => {
  expect(vote(answers.map((answer) => ({ answer, early: false }))).answer).toBe(winner)
})

/** Runs an experiment on a scripted model. */
async function run(
  follows: Script['follows'],
  change: Partial<Experiment> = {},
  options: Partial<Parameters<typeof runExperiment>[1]> = {},
): Promise<Results> {
  const folder = writeScriptedModel({ follows })
  const path = join(folder, 'x.json')
  writeFileSync(path, JSON.stringify({ ...SMALL, models: [{ model: '.', name: 'm' }], ...change }))
  return await runExperiment(await loadExperiment(path), {
    ...{ out: join(folder, 'out'), version: '1', findModel: (model) => Promise.resolve(model) },
    loadModel: (model) => loadModel(model, { device: 'cpu', threads: 1 }),
    ...options,
  })
}

describe('runs', () => {
  test('answers at each budget are the finisher’s where nobody has given one', async () => {
    const { cells } = await run(PARAGRAPHS, { keepTexts: true })
    expect(cells).toHaveLength(2)
    expect(cells[0]?.points).toMatchObject(
      [3, 8, 20].map((steps) => ({
        ...{ budget: steps, steps, tokens: 2 * (steps - 1), answer: '42', early: true, score: 1 },
      })),
    )
    expect(cells[1]?.points.map(({ score }) => score)).toEqual([0, 0, 0])
    const { Alice, Bob } = cells[0]!.points[0]!.texts as Record<string, string>
    expect(Alice).toMatch(/^\n\n\*\*Alice \[1\]:\*\* Alice here\. I suggest that we no\.$/)
    expect(Bob).toMatch(/^\n\n\*\*Bob \[1\]:\*\* Bob here\. I will no\.$/)
    expect((await run(PARAGRAPHS, { finish: 0 })).cells[0]?.points[2]?.answer).toBeNull()
  })

  test('an answer ends the run, and later budgets have it too', async () => {
    const { cells } = await run(ANSWERS, { budgets: [2, 50, 90] })
    const [early, ...late] = cells[0]!.points as CellResult['points']
    expect(early).toMatchObject({ budget: 2, steps: 2, early: true })
    expect(late[0]?.steps).toBeLessThan(12)
    expect(late[1]).toEqual({ ...late[0], budget: 90 })
    expect(late[0]).toMatchObject({ answer: '42', early: false, score: 1 })
  })

  test('workers that do not see one another vote', async () => {
    const { cells } = await run(ANSWERS, { share: [false], workers: [3], budgets: [50] })
    expect(cells[0]).toMatchObject({ layout: null, workers: 3, share: false })
    expect(cells[0]?.points[0]).toMatchObject({ answer: '42', early: false })
  })

  test('plain: the prompt as it is, and texts as answers', async () => {
    const plain = { opening: '{{worker}}{{index}}e', answer: 'text', stop: ['.'] } as const
    const change = { schemes: ['plain'], plain, grader: 'exact', workers: [2] } as const
    const data = { items: [{ question: 'abc', answer: 'no no' }] }
    const { cells } = await run(PARAGRAPHS, { ...change, data, keepTexts: true })
    expect(cells[0]?.points[2]).toMatchObject({ answer: 'no\nno', score: 1, early: false })
    expect(cells[0]?.points[2]?.texts).toEqual({ Alice: 'Alice0e no', Bob: 'Bob1e no' })
    const format = { ...plain, stop: [], answer: { opening: 'n', closing: '.' } }
    const given = await run(PARAGRAPHS, { ...change, data, plain: format })
    expect(given.cells[0]?.points[2]).toMatchObject({ answer: 'o', early: false })
    expect(given.cells[0]?.points[2]?.steps).toBeLessThan(6)
  })

  test('plain: turns that end with a text, in layouts that have turns', async () => {
    const out = temporaryFolder()
    const change: Partial<Experiment> = {
      ...{ schemes: ['plain'], workers: [2], share: [true, false], budgets: [12] },
      layouts: ['contiguous', 'interleaved', 'combined'],
      data: { items: SMALL.data.items.slice(0, 1) },
    }
    const plain = { opening: 'e', turnEnds: ['o.', 'never'] }
    const { cells } = await run(PARAGRAPHS, { ...change, plain }, { out, traces: true })
    const turns = cells.map(({ cell, layout }) => {
      const trace = readFileSync(join(out, 'traces', `${cell}.jsonl`), 'utf8')
      const lines = trace
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line))
      return [layout, lines.filter(({ event }) => event === 'turn').map(({ step }) => step)]
    })
    // Both write " no", ".", a blank line and again; a turn ends with each full stop.
    expect(turns).toEqual([
      ['contiguous', []],
      [null, []],
      ['interleaved', [1, 1, 4, 4, 7, 7, 10, 10]],
      ['combined', [1, 1, 4, 4, 7, 7, 10, 10]],
    ])
  })

  test('seeds: the same again, others with another seed, whatever else is in the experiment', async () => {
    const change = { sampler: { temperature: 30 }, schemes: ['plain'], keepTexts: true } as const
    const textsOf = ({ cells }: Results, seed: number) =>
      cells.filter((cell) => cell.seed === seed).map(({ points }) => points[2]?.texts)
    const both = await run(PARAGRAPHS, { ...change, seeds: [5, 6] })
    expect(textsOf(both, 5)).not.toEqual(textsOf(both, 6))
    expect(textsOf(await run(PARAGRAPHS, { ...change, seeds: [6] }), 6)).toEqual(textsOf(both, 6))
  })

  test('late messages come into the common block, where the finisher has them too', async () => {
    const late = [
      { step: 6, text: '\n\nUser: two' },
      { step: 3, text: '\n\nUser: one' },
      { step: 99, text: 'never' },
    ]
    const data = { items: [{ question: 'x', answer: 42, late }] }
    const out = temporaryFolder()
    const change = { data, late: 'late', budgets: [4, 12], workers: [2] }
    const finished: number[] = []
    const tokenizers: Tokenizer[] = []
    const { cells } = await run(PARAGRAPHS, change, {
      ...{ out, traces: true },
      loadModel: async (path) => {
        tokenizers.push(await loadTokenizer(path))
        const model = await loadModel(path, { device: 'cpu', threads: 1 })
        const prefill = model.prefill.bind(model)
        jest.spyOn(model, 'prefill').mockImplementation((block, tokens, options) => {
          finished.push(...Array.from(tokens))
          return prefill(block, tokens, options)
        })
        return model
      },
    })
    // What the finisher reads: once behind 4 steps, once behind 12.
    const read = tokenizers[0]!.decode(finished)
    expect(read.match(/User: one/g)).toHaveLength(2)
    expect(read).toMatch(
      /Bob \[1\]:.* no\.\n\nUser: one\n\n\*\*Alice \[2\]:.*\n\n\*\*Bob \[2\]:.* no\.\n\nUser: two\n\n\*\*Alice \[3\]/,
    )
    expect(cells[0]!.points.map(({ answer }) => answer)).toEqual(['42', '42'])
    const trace = readFileSync(join(out, 'traces', '0.jsonl'), 'utf8')
      .trim()
      .split('\n')
    const lines = trace.map((line) => JSON.parse(line))
    const appends = lines.filter(({ event }) => event === 'append')
    expect(appends.map(({ step, tokens }) => [step, tokens])).toEqual([
      [3, 11],
      [6, 11],
    ])
  })

  test('traces, and the place of an error', async () => {
    const out = temporaryFolder()
    await run(PARAGRAPHS, {}, { out, traces: true })
    expect(readFileSync(join(out, 'traces', '1.jsonl'), 'utf8')).toMatch(/^{"trace":2,/)
    const failing = () => run(PARAGRAPHS, { capacity: 64 })
    await expect(failing()).rejects.toThrow('cell 0 (m, 2 workers, item 0): ')
    expect(await codeOf(failing)).toBe('HOGWILD_OUT_OF_PAGES')
  })
})

/** What must be the same: all but times and machines. */
const numbersOf = (cells: readonly CellResult[]) =>
  cells.map(({ milliseconds, on, ...numbers }) => numbers)

describe('results', () => {
  const change = { workers: [1, 2, 3], share: [true, false], budgets: [2, 6] }
  let whole: Results
  let folder: string

  beforeAll(async () => {
    folder = temporaryFolder()
    whole = await run(PARAGRAPHS, change, { out: folder })
  })

  test('a file says all that is needed to repeat it', async () => {
    const { head, cells } = await readResults(join(folder, 'results.jsonl'))
    expect(head).toMatchObject({ experiment: 1, name: 'x', hogwild: '1', cells: 10 })
    expect(checkExperiment(head.definition, 'y')).toEqual(head.definition)
    expect(cells).toEqual(whole.cells)
    expect(cells[0]).toMatchObject({
      ...{ fingerprint: expect.stringMatching(/^[0-9a-f]{64}$/), seed: 0 },
      on: { type: 'cpu', threads: 1, node: process.version },
    })
  })

  test.each([0, 1, 40, 0.3, 0.5, 0.999, 1])('cut at %d of it and resumed: the same', async (at) => {
    const out = temporaryFolder()
    const text = readFileSync(join(folder, 'results.jsonl'), 'utf8')
    const kept = text.slice(0, at <= 1 ? Math.floor(text.length * at) : at)
    writeFileSync(join(out, 'results.jsonl'), kept)
    const finished = Math.max(0, kept.split('\n').length - 2)
    const seen: number[] = []
    const onProgress = (done: number) => seen.push(done)
    const { cells } = await run(PARAGRAPHS, change, { out, onProgress })
    expect(numbersOf(cells)).toEqual(numbersOf(whole.cells))
    expect(numbersOf((await readResults(join(out, 'results.jsonl'))).cells)).toEqual(
      numbersOf(whole.cells),
    )
    expect(seen).toEqual(
      finished === 10 ? [] : Array.from({ length: 11 - finished }, (_, i) => finished + i),
    )
  })

  test('three shards, merged in any order: the same, to the bit', async () => {
    const out = temporaryFolder()
    for (const index of [3, 1, 2]) {
      await run(PARAGRAPHS, change, { out, shard: { index, count: 3 } })
    }
    const paths = [2, 3, 1].map((index) => join(out, `results.${index}-of-3.jsonl`))
    const merged = await mergeResults(paths)
    expect(merged.head).toEqual(whole.head)
    expect(numbersOf(merged.cells)).toEqual(numbersOf(whole.cells))
    const [one, other] = [temporaryFolder(), temporaryFolder()]
    await writeSummary(whole, one, false)
    await writeSummary(merged, other, true)
    for (const name of ['summary.json', 'summary.csv']) {
      expect(readFileSync(join(other, name))).toEqual(readFileSync(join(one, name)))
    }
    expect(await readResults(join(other, 'results.jsonl'))).toEqual(merged)
    const foreign = { ...merged, head: { ...merged.head, identity: 'x', name: 'y' } }
    await expect(writeSummary(foreign, other, true)).rejects.toThrow('differs in: name')
    expect(await readResults(join(other, 'results.jsonl'))).toEqual(merged)
    await expect(mergeResults(paths.slice(1))).rejects.toThrow('3 of 10 cells are missing')
    await expect(mergeResults([paths[0] as string, main])).rejects.toThrow('main.js, line 1')
  })

  test('results of something else are refused, and stay as they are, but for those without a cell', async () => {
    const path = join(folder, 'results.jsonl')
    const before = readFileSync(path)
    const refused = async (message: string, ...args: Parameters<typeof run>) => {
      await expect(run(...args)).rejects.toThrow(message)
      expect(readFileSync(path)).toEqual(before)
    }
    await refused('differs in: definition', PARAGRAPHS, { ...change, finish: 3 }, { out: folder })
    await refused('differs in: hogwild', PARAGRAPHS, change, { out: folder, version: '2' })
    const cut = temporaryFolder()
    const text = readFileSync(path, 'utf8').split('\n')
    writeFileSync(join(cut, 'results.jsonl'), `${text[0]}\n{"cell":0`)
    const begun = await run(PARAGRAPHS, { ...change, finish: 3 }, { out: cut })
    expect(await readResults(join(cut, 'results.jsonl'))).toEqual(begun)
    writeFileSync(join(cut, 'results.jsonl'), `${text.slice(0, 3).join('\n')}\n`)
    await expect(run(ANSWERS, change, { out: cut })).rejects.toThrow(
      'another model of the name "m"',
    )
    appendFileSync(join(cut, 'results.jsonl'), '{"cell":99,"points":[]}\n')
    await expect(readResults(join(cut, 'results.jsonl'))).rejects.toThrow(
      'line 4: expected the result',
    )
  })

  test('a row for each setting and budget: means over items of means over seeds', () => {
    const cell = (number: number, item: number, seed: number, score: number): CellResult => ({
      ...(whole.cells[0] as CellResult),
      ...{ cell: number, item, seed },
      points: [
        {
          ...{ budget: 9, steps: 2 * item + 2, tokens: 5, answer: 'x', early: seed === 1, score },
          metrics: { twice: number },
        },
      ],
    })
    const definition = { ...whole.head.definition, workers: [1], budgets: [9], seeds: [1, 2] }
    const head = { ...whole.head, definition }
    // Item 0: 1 and 0; item 1: 0 and 0.
    const cells = [cell(3, 1, 2, 0), cell(0, 0, 1, 1), cell(1, 1, 1, 0), cell(2, 0, 2, 0)]
    const rows = summarise({ head, cells })
    expect(rows).toEqual([
      {
        ...{ model: 'm', scheme: 'collaborate', layout: null, workers: 1, share: false, budget: 9 },
        ...{
          items: 2,
          accuracy: 0.25,
          answered: 0.5,
          steps: 3,
          tokens: 5,
          metrics: { twice: 1.5 },
        },
        low: expect.closeTo(0.026677, 5),
        high: expect.closeTo(0.802133, 5),
      },
    ])
    expect(summaryCsv(rows)).toMatch(
      /^model,scheme,layout,workers,share,budget,items,accuracy,low,high,answered,steps,tokens,twice\nm,collaborate,,1,false,9,2,0\.25,0\.026.*,0\.80.*,0\.5,3,5,1\.5\n$/,
    )
  })
})

const hogwild = (...args: string[]) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], {
    encoding: 'utf8',
  })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  return stdout
}
const cpu = ['--device', 'cpu', '--threads', '1', '--quiet']
const linesOf = async (folder: string, file = 'results.jsonl') =>
  numbersOf((await readResults(join(folder, file))).cells)

describe('the committed experiment on the demo model', () => {
  const experiment = join(root, 'examples', 'experiments', 'demo.mjs')
  const committed = join(root, 'examples', 'experiments', 'demo.results')

  test('three shards, one of them cut and resumed, give the committed numbers', async () => {
    if (!existsSync(main)) throw new Error('npm run build:ts first')
    const out = temporaryFolder()
    const cut = join(out, 'results.2-of-3.jsonl')
    hogwild('experiment', experiment, '--out', out, ...cpu, '--shard', '2/3')
    const text = readFileSync(cut, 'utf8')
    writeFileSync(cut, text.slice(0, Math.floor(0.6 * text.length)))
    for (const index of [1, 2, 3]) {
      hogwild('experiment', experiment, '--out', out, ...cpu, '--shard', `${index}/3`)
    }
    const shards = [1, 2, 3].map((index) => join(out, `results.${index}-of-3.jsonl`))
    const table = hogwild('experiment', 'merge', ...shards, '--out', out)
    expect(table).toContain('Wilson interval of accuracy over items · 60 cells\n')
    expect(await linesOf(out)).toEqual(await linesOf(committed))
    const csv = readFileSync(join(out, 'summary.csv'), 'utf8')
    expect(csv).toBe(readFileSync(join(committed, 'summary.csv'), 'utf8'))
    // All of it is there already: nothing is computed again.
    const before = readFileSync(join(out, 'results.jsonl'))
    const rows = JSON.parse(hogwild('experiment', experiment, '--out', out, ...cpu, '--json'))
    expect(rows).toEqual(readJson(join(committed, 'summary.json')).rows)
    expect(readFileSync(join(out, 'results.jsonl'))).toEqual(before)
  })

  test('what it shows: workers that see one another need fewer steps, and do nothing twice', () => {
    const { rows } = readJson(join(committed, 'summary.json')) as {
      rows: ReturnType<typeof summarise>
    }
    const at = (workers: number, share: boolean, budget: number) =>
      rows.find((row) => row.workers === workers && row.share === share && row.budget === budget)!
    expect(at(4, true, 30).accuracy).toBeGreaterThan(0.95)
    expect(at(4, true, 30).accuracy).toBeGreaterThan(at(1, false, 30).high)
    expect(at(4, true, 80).metrics.twice).toBeLessThan(0.5)
    expect(at(4, false, 80).metrics.twice).toBeGreaterThan(7)
  })
})

describe('the committed experiment on dependent work', () => {
  const experiment = join(root, 'examples', 'experiments', 'graph.mjs')
  const committed = join(root, 'examples', 'experiments', 'graph.results')

  test('an eleventh of it gives the committed numbers', async () => {
    const out = temporaryFolder()
    hogwild('experiment', experiment, '--out', out, ...cpu, '--shard', '1/11')
    const cells = await linesOf(out, 'results.1-of-11.jsonl')
    expect(cells.length).toBeGreaterThan(15)
    const all = await linesOf(committed)
    expect(cells).toEqual(all.filter(({ cell }) => cell % 11 === 0))
  })

  test('what it shows: four workers near the ideal, token by token better than turn by turn', () => {
    const { rows } = readJson(join(committed, 'summary.json')) as {
      rows: ReturnType<typeof summarise>
    }
    const last = Math.max(...rows.map(({ budget }) => budget))
    const at = (workers: number, layout: string | null, share = true) =>
      rows.find(
        (row) =>
          row.workers === workers &&
          row.layout === layout &&
          row.share === share &&
          row.budget === last,
      )!
    for (const layout of ['contiguous', 'combined']) {
      expect(at(4, layout).accuracy).toBeGreaterThanOrEqual(0.98)
      expect(at(4, layout).metrics.ofIdeal).toBeGreaterThanOrEqual(0.8)
      expect(at(4, layout).steps).toBeLessThan(0.9 * at(4, 'interleaved').steps)
    }
    expect(at(4, null, false).steps).toBeGreaterThan(3 * at(4, 'contiguous').steps)
  })
})

test.each([
  [['experiment'], /missing required argument 'file'/],
  [['experiment', 'x.json', '--shard', '0/3'], /Expected i\/n/],
  [['experiment', 'x.json', '--shard', '4/3'], /Expected i\/n/],
  [['experiment', 'merge', 'x'], /required option '--out/],
])('usage: %j', (args, message) => {
  const { status, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })
  expect([status, stderr]).toEqual([2, expect.stringMatching(message)])
})
