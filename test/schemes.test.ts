// The scripts in examples/schemes, on a model whose text is known: which blocks each worker sees in every step, from
// where on and how many tokens of them, and where its new tokens stand, against tables written by hand. Then on a random
// model, whose logits are those of the float64 reference in every step.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Model } from '../lib'
import * as hogwild from '../lib'
import { Block } from '../lib/block'
import { loadExample } from './examples'
import { expectClose, loadReference, writeModel } from './fixtures'
import type { Block as Expected, ReferenceModel } from './reference'
import { writeScriptedModel } from './scripted-model'

const folder = join(__dirname, '../examples/schemes')
const scripts = readdirSync(folder).filter((file) => file.endsWith('.mjs'))

interface Outcome {
  texts: Record<string, number[]>
  steps: number
}
type Scheme = (options: object) => Promise<Outcome>

/** What a script exports. */
const load = (file: string) =>
  loadExample<Record<string, Scheme & ((...values: unknown[]) => never)>>(`schemes/${file}`)

/**
 * Follows the steps of a model. A line for each worker of each step: the step, the worker's block, its view as
 * block@start+tokens shown (~: a step late), and the positions of its new tokens. Blocks have the names given, in the order
 * in which views first show them; behind those, '?'. Drafts come last: their positions and how many were kept. With a
 * reference, logits are compared in each step. `afterStep` is called when a step has ended and before its results are known.
 */
function follow(
  model: Model,
  names: string,
  reference?: ReferenceModel,
  afterStep: (step: number) => void = () => {},
): string[] {
  const lines: string[] = []
  const waiting = names.split(' ')
  const known = new Map<Block, { name: string; expected: Expected }>()
  const of = (block: Block) => {
    if (!known.has(block)) known.set(block, { name: waiting.shift() ?? '?', expected: [] })
    return known.get(block)!
  }
  const step = model.timedStep.bind(model)
  let count = 0
  jest.spyOn(model, 'timedStep').mockImplementation(async (parts, ...rest) => {
    const workers = parts.map((part) => {
      const { view, tokens, drafts = [] } = part as hogwild.StepWorker
      const entries = view.blocks.map((each) => ('block' in each ? each : { block: each }))
      const own = entries.at(-1)!.block
      return { entries, own, tokens: Array.from(tokens), drafts: Array.from(drafts) }
    })
    for (const { entries, own, tokens, drafts } of workers) {
      let end = 0
      const shown = entries.map(({ block, at = end, lag }) => {
        const late = lag === 1 && block !== own
        const writer = late ? undefined : workers.find((worker) => worker.own === block)
        const length = block.length + (writer?.tokens.length ?? 0)
        end = at + length
        return `${of(block).name}${late ? '~' : ''}@${at}+${length}`
      })
      const first = end - tokens.length
      const positions = tokens.length === 1 ? `${first}` : `${first}-${end - 1}`
      const behind = drafts.length === 0 ? '' : ` ~${end}-${end + drafts.length - 1}`
      lines.push(`${count} ${of(own).name}: ${shown.join(' ')} | ${positions}${behind}`)
    }
    count++
    const asked = parts.map((part) => ({ ...part, logits: 'last' as const }))
    const result = await step(asked, ...rest)
    workers.forEach((worker, i) => {
      const { drafted } = result.outputs[i]!
      if (drafted === undefined) return
      lines[lines.length - workers.length + i] += ` kept ${drafted.kept}`
      worker.tokens.push(...worker.drafts.slice(0, drafted.kept))
    })
    afterStep(count - 1)
    // What it has set off comes first.
    await new Promise(setImmediate)
    const expected = reference?.step(
      workers.map(({ entries, tokens }) => ({
        view: entries.map(({ block, ...fields }) => ({ ...fields, block: of(block).expected })),
        tokens,
      })),
    )
    expected?.forEach((rows, i) => {
      expectClose(result.outputs[i]!.logits!, rows.at(-1)!, 2e-4, lines.at(i - parts.length)!)
    })
    return result
  })
  const appendFrom = Block.prototype.appendFrom
  jest.spyOn(Block.prototype, 'appendFrom').mockImplementation(function (
    this: Block,
    source,
    options,
  ) {
    appendFrom.call(this, source, options)
    of(this).expected.push(...of(source).expected)
    if (options?.clearSource) of(source).expected.length = 0
  })
  const { truncate } = Block.prototype
  jest.spyOn(Block.prototype, 'truncate').mockImplementation(function (this: Block, length) {
    truncate.call(this, length)
    of(this).expected.length = length
  })
  return lines
}

const table = (text: string): string[] => text.trim().split(/\n\s*/)
const ids = (text: string): number[] => Array.from(text, (byte) => byte.charCodeAt(0))
const texts = ({ texts }: Outcome) =>
  Object.fromEntries(
    Object.entries(texts).map(([name, tokens]) => [name, String.fromCharCode(...tokens)]),
  )
/** Every scripted text ends with a semicolon. */
const atSemicolon = (tokens: readonly number[]) => tokens.at(-1) === 59

const opened: Model[] = []
afterEach(async () => {
  jest.restoreAllMocks()
  for (const model of opened.splice(0)) await model.close()
})

/** Of each pair, the first character is followed by the second. */
async function scripted(pairs: string): Promise<Model> {
  const follows = Object.fromEntries(pairs.split(' ').map(([a, b]) => [a, b]))
  const path = writeScriptedModel({ follows, otherwise: ';' })
  const model = await hogwild.loadModel(path, { threads: 1, onWarning: () => {} })
  opened.push(model)
  return model
}

async function random(seed: number): Promise<{ model: Model; reference: ReferenceModel }> {
  const path = writeModel({ seed, family: 'qwen3' })
  const model = await hogwild.loadModel(path, { threads: 1, onWarning: () => {} })
  opened.push(model)
  return { model, reference: loadReference(path) }
}

/** The steps that one worker alone takes for as many tokens. */
async function stepsAlone(model: Model, { texts }: Outcome): Promise<number> {
  const { withPrompt, writer, writeTogether } = load('common.mjs')
  const total = Object.values(texts).reduce((sum, { length }) => sum + length, 0)
  return await withPrompt!(model, ids('P'), (common: Block, cache: hogwild.Cache) =>
    writeTogether!(model, [
      writer!([common, cache.createBlock()], [1], (tokens: number[]) => tokens.length === total),
    ]),
  )
}

test.each(scripts.filter((file) => file !== 'common.mjs'))('%s is short', (file) => {
  expect(readFileSync(join(folder, file), 'utf8').trim().split('\n').length).toBeLessThanOrEqual(60)
})

describe('as programs, on the demo model', () => {
  const { argv } = process
  afterEach(() => {
    process.argv = argv
  })
  test.each(scripts.filter((file) => file !== 'common.mjs'))('%s', async (file) => {
    process.argv = ['node', file]
    const printed: string[] = []
    await new Promise<void>((resolve, reject) => {
      jest.spyOn(console, 'error').mockImplementation(reject)
      jest.spyOn(console, 'log').mockImplementation((line: string) => {
        printed.push(line)
        if (/^\d+ tokens in \d+ steps$/.test(line)) resolve()
      })
      load(file)
    })
    expect(printed.length).toBeGreaterThan(2)
    if (file !== 'group-think.mjs') return
    // The demo model finds its words in ranges too.
    expect(printed.slice(0, 2)).toEqual([
      'Alice: "A=manyAliceC=makeAlice."',
      'Bob: "B=handsBobD=lightBob."',
    ])
  })
})

/** Texts and lines of a scheme, its steps, and those of one worker that writes as many tokens alone. */
async function check(
  model: Model,
  names: string,
  scheme: () => Promise<Outcome>,
  expected: { texts: Record<string, string>; steps: number; alone: number; lines: string },
  afterStep?: (step: number) => void,
): Promise<void> {
  const lines = follow(model, names, undefined, afterStep)
  const outcome = await scheme()
  expect(texts(outcome)).toEqual(expected.texts)
  expect(lines).toEqual(table(expected.lines))
  expect(outcome.steps).toBe(expected.steps)
  expect(await stepsAlone(model, outcome)).toBe(expected.alone)
}

describe('the tables', () => {
  // Up to the end of A's first turn: the prompt, then both in sight of each other.
  const asTheyGrow = `
    0 prompt: prompt@0+3 | 0-2
    1 A: prompt@0+3 B@3+1 A@4+1 | 4
    1 B: prompt@0+3 A@3+1 B@4+1 | 4
    2 A: prompt@0+3 B@3+2 A@5+2 | 6
    2 B: prompt@0+3 A@3+2 B@5+2 | 6`.trim()
  const layouts = {
    contiguous: [
      'prompt B A',
      `
        ${asTheyGrow}
        3 A: prompt@0+3 B@3+3 A@6+3 | 8
        3 B: prompt@0+3 A@3+3 B@6+3 | 8
        4 A: prompt@0+3 B@3+4 A@7+4 | 10
        4 B: prompt@0+3 A@3+4 B@7+4 | 10
        5 B: prompt@0+3 A@3+4 B@7+5 | 11`,
    ],
    // A's turn 'Aa' goes to the prompt behind step 2, B's 'Bbc' behind step 3; what ends a turn opens the next.
    interleaved: [
      'prompt A B',
      `
        0 prompt: prompt@0+3 | 0-2
        1 A: prompt@0+3 A@3+1 | 3
        1 B: prompt@0+3 B@3+1 | 3
        2 A: prompt@0+3 A@3+2 | 4
        2 B: prompt@0+3 B@3+2 | 4
        3 A: prompt@0+5 A@5+1 | 5
        3 B: prompt@0+5 B@5+3 | 7
        4 A: prompt@0+8 A@8+2 | 9
        4 B: prompt@0+8 B@8+1 | 8
        5 B: prompt@0+8 B@8+2 | 9`,
    ],
    combined: [
      'prompt B A',
      `
        ${asTheyGrow}
        3 A: prompt@0+5 B@5+3 A@8+1 | 8
        3 B: prompt@0+5 A@5+1 B@6+3 | 8
        4 A: prompt@0+8 B@8+1 A@9+2 | 10
        4 B: prompt@0+8 A@8+2 B@10+1 | 10
        5 B: prompt@0+8 A@8+2 B@10+2 | 11`,
    ],
  } as const
  test.each(Object.entries(layouts))('hogwild, %s', async (layout, [names, lines]) => {
    const model = await scripted('Aa a/ Bb bc c/')
    const { hogwild } = load('hogwild.mjs')
    const scheme = () =>
      hogwild!({
        ...{ model, layout, prompt: ids('PQR'), workers: { A: ids('A'), B: ids('B') } },
        turnEnds: (tokens: number[]) => tokens.at(-1) === 47,
        stopTokens: [59],
      })
    await check(model, names, scheme, {
      texts: { A: 'a/;', B: 'bc/;' },
      steps: 5,
      alone: 8,
      lines,
    })
  })

  test('group-think', async () => {
    const model = await scripted('Aa Cc cd')
    const { groupThink } = load('group-think.mjs')
    const thinkers = { A: ids('A'), B: ids('BC') }
    const scheme = () =>
      groupThink!({ model, prompt: ids('PQR'), thinkers, range: 10, until: atSemicolon })
    await check(model, 'prompt B A', scheme, {
      texts: { A: 'a;', B: 'cd;' },
      steps: 4,
      alone: 6,
      lines: `
        0 prompt: prompt@0+3 | 0-2
        1 A: prompt@0+3 B@13+2 A@3+1 | 3
        1 B: prompt@0+3 A@3+1 B@13+2 | 13-14
        2 A: prompt@0+3 B@13+3 A@3+2 | 4
        2 B: prompt@0+3 A@3+2 B@13+3 | 15
        3 A: prompt@0+3 B@13+4 A@3+3 | 5
        3 B: prompt@0+3 A@3+3 B@13+4 | 16
        4 B: prompt@0+3 A@3+3 B@13+5 | 17`,
    })
  })

  test('group-think: a range that is full ends the text', async () => {
    const model = await scripted('Aa aa')
    const thinkers = { A: ids('A'), B: ids('AA') }
    const { groupThink } = load('group-think.mjs')
    const outcome = await groupThink!({
      ...{ model, prompt: [], thinkers, range: 4, until: () => false },
    })
    expect(texts(outcome)).toEqual({ A: 'aaa', B: 'aa' })
  })

  test('skeleton-of-thought', async () => {
    const model = await scripted('Sx xy Ff fk Gg gh Zz')
    const { skeletonOfThought } = load('skeleton-of-thought.mjs')
    const asks: Record<string, string> = { x: 'EF', y: 'G' }
    const pointsOf = (tokens: number[]) =>
      tokens.slice(0, -1).map((token) => ids(asks[String.fromCharCode(token)]!))
    const scheme = () =>
      skeletonOfThought!({
        ...{ model, prompt: ids('PQ'), begin: ids('S'), pointsOf, closing: ids('Z') },
        until: atSemicolon,
      })
    await check(model, 'prompt skeleton p1 p2 end', scheme, {
      texts: { skeleton: 'xy;', 'point 1': 'fk;', 'point 2': 'gh;', closing: 'z;' },
      steps: 11,
      alone: 12,
      lines: `
        0 prompt: prompt@0+2 | 0-1
        1 skeleton: prompt@0+2 skeleton@2+1 | 2
        2 skeleton: prompt@0+2 skeleton@2+2 | 3
        3 skeleton: prompt@0+2 skeleton@2+3 | 4
        4 skeleton: prompt@0+2 skeleton@2+4 | 5
        5 p1: prompt@0+2 skeleton@2+4 p1@6+2 | 6-7
        5 p2: prompt@0+2 skeleton@2+4 p2@6+1 | 6
        6 p1: prompt@0+2 skeleton@2+4 p1@6+3 | 8
        6 p2: prompt@0+2 skeleton@2+4 p2@6+2 | 7
        7 p1: prompt@0+2 skeleton@2+4 p1@6+4 | 9
        7 p2: prompt@0+2 skeleton@2+4 p2@6+3 | 8
        8 p1: prompt@0+2 skeleton@2+4 p1@6+5 | 10
        8 p2: prompt@0+2 skeleton@2+4 p2@6+4 | 9
        9 end: prompt@0+2 skeleton@2+4 p1@6+5 p2@11+4 end@15+1 | 15
        10 end: prompt@0+2 skeleton@2+4 p1@6+5 p2@11+4 end@15+2 | 16
        11 end: prompt@0+2 skeleton@2+4 p1@6+5 p2@11+4 end@15+3 | 17`,
    })
  })

  test('streams', async () => {
    const model = await scripted('Aa Bb bc')
    const { multiStream } = load('streams.mjs')
    const streams = { A: ids('A'), B: ids('B') }
    const scheme = () => multiStream!({ model, prompt: ids('PQR'), streams, until: atSemicolon })
    await check(model, 'prompt B A', scheme, {
      texts: { A: 'a;', B: 'bc;' },
      steps: 4,
      alone: 6,
      lines: `
        0 prompt: prompt@0+3 | 0-2
        1 A: prompt@0+3 B~@3+0 A@3+1 | 3
        1 B: prompt@0+3 A~@3+0 B@3+1 | 3
        2 A: prompt@0+3 B~@3+1 A@3+2 | 4
        2 B: prompt@0+3 A~@3+1 B@3+2 | 4
        3 A: prompt@0+3 B~@3+2 A@3+3 | 5
        3 B: prompt@0+3 A~@3+2 B@3+3 | 5
        4 B: prompt@0+3 A~@3+3 B@3+4 | 6`,
    })
  })

  test('async-reasoning', async () => {
    const model = await scripted('Tt tu uv Ww ?y')
    const { asyncReasoning } = load('async-reasoning.mjs')
    const decisions = [false, true, true, false]
    const scheme = () =>
      asyncReasoning!({
        ...{ model, prompt: ids('PQ'), thinker: ids('T'), answerer: ids('W'), question: ids('?') },
        // The logits are those behind the question.
        mayWrite: (logits: Float32Array) =>
          logits.indexOf(Math.max(...logits)) === ids('y')[0] && decisions.shift(),
        input: (step: number) => (step === 2 ? ids('IJ') : undefined),
        until: atSemicolon,
      })
    await check(model, 'prompt answer inputs thoughts', scheme, {
      texts: { thoughts: 'tuv;', answer: 'w;' },
      steps: 6,
      alone: 7,
      lines: `
        0 prompt: prompt@0+2 | 0-1
        1 thoughts: prompt@0+2 answer@2+0 inputs@2+0 thoughts@2+1 | 2
        2 ?: prompt@0+2 inputs@2+0 thoughts@2+1 answer@3+0 ?@3+1 | 3
        3 thoughts: prompt@0+2 answer@2+0 inputs@2+0 thoughts@2+2 | 3
        4 inputs: inputs@0+2 | 0-1
        5 ?: prompt@0+2 inputs@2+2 thoughts@4+2 answer@6+0 ?@6+1 | 6
        6 thoughts: prompt@0+2 answer@2+1 inputs@3+2 thoughts@5+3 | 7
        6 answer: prompt@0+2 inputs@2+2 thoughts@4+3 answer@7+1 | 7
        7 ?: prompt@0+2 inputs@2+2 thoughts@4+3 answer@7+1 ?@8+1 | 8
        8 thoughts: prompt@0+2 answer@2+2 inputs@4+2 thoughts@6+4 | 9
        8 answer: prompt@0+2 inputs@2+2 thoughts@4+4 answer@8+2 | 9
        9 ?: prompt@0+2 inputs@2+2 thoughts@4+4 answer@8+2 ?@10+1 | 10
        10 thoughts: prompt@0+2 answer@2+2 inputs@4+2 thoughts@6+5 | 10
        11 answer: prompt@0+2 inputs@2+2 thoughts@4+5 answer@9+3 | 11`,
    })
  })

  test('fastcot: the answer comes behind guesses', async () => {
    const model = await scripted('Tt tu uu Aa')
    const { fastCot } = load('fastcot.mjs')
    const scheme = () =>
      fastCot!({
        ...{ model, prompt: ids('PQ'), begin: ids('T'), window: 3, passes: 2, ask: ids('A') },
        until: atSemicolon,
      })
    // Guesses: T T T, then t t t, at last u u u, which are what would come.
    await check(model, 'prompt thoughts answer', scheme, {
      texts: { thoughts: 't', glance: 'uuuu', answer: 'a;' },
      steps: 5,
      alone: 8,
      lines: `
        0 prompt: prompt@0+2 | 0-1
        1 thoughts: prompt@0+2 thoughts@2+1 | 2 ~3-5 kept 0
        2 thoughts: prompt@0+2 thoughts@2+2 | 3 ~4-6 kept 0
        3 answer: prompt@0+2 thoughts@2+2 answer@4+5 | 4-8
        4 answer: prompt@0+2 thoughts@2+2 answer@4+6 | 9
        5 answer: prompt@0+2 thoughts@2+2 answer@4+7 | 10`,
    })
  })

  test('fastcot: guesses that are right are kept', async () => {
    const model = await scripted('Tt tu uu Aa')
    const { fastCot } = load('fastcot.mjs')
    const scheme = () =>
      fastCot!({
        ...{ model, prompt: ids('PQ'), begin: ids('T'), window: 3, passes: 9, ask: ids('A') },
        until: (tokens: number[]) => tokens.length === 7 || atSemicolon(tokens),
      })
    await check(model, 'prompt thoughts answer', scheme, {
      texts: { thoughts: 'tuuuuuu', glance: '', answer: 'a;' },
      steps: 7,
      alone: 10,
      lines: `
        0 prompt: prompt@0+2 | 0-1
        1 thoughts: prompt@0+2 thoughts@2+1 | 2 ~3-5 kept 0
        2 thoughts: prompt@0+2 thoughts@2+2 | 3 ~4-6 kept 0
        3 thoughts: prompt@0+2 thoughts@2+3 | 4 ~5-7 kept 3
        4 thoughts: prompt@0+2 thoughts@2+7 | 8 ~9-11 kept 3
        5 answer: prompt@0+2 thoughts@2+8 answer@10+1 | 10
        6 answer: prompt@0+2 thoughts@2+8 answer@10+2 | 11
        7 answer: prompt@0+2 thoughts@2+8 answer@10+3 | 12`,
    })
  })

  test('multiverse', async () => {
    const model = await scripted('Tt t# Ee ek kl lm m) Gg gh h) +j')
    const { multiverse } = load('multiverse.mjs')
    const scheme = () =>
      multiverse!({
        ...{ model, prompt: ids('PQ'), begin: ids('T'), join: ids('+') },
        outlinesOf: (tokens: number[]) => (tokens.at(-1) === 35 ? [ids('E'), ids('FG')] : []),
        untilFork: (tokens: number[]) => tokens.at(-1) === 35 || atSemicolon(tokens),
        untilPathEnds: (tokens: number[]) => tokens.at(-1) === 41,
      })
    await check(model, 'prompt trunk b1 b2 join', scheme, {
      texts: { trunk: 't#', '1.1': 'eklm)', '1.2': 'gh)', 'join 1': 'j;' },
      steps: 12,
      alone: 13,
      lines: `
        0 prompt: prompt@0+2 | 0-1
        1 trunk: prompt@0+2 trunk@2+1 | 2
        2 trunk: prompt@0+2 trunk@2+2 | 3
        3 trunk: prompt@0+2 trunk@2+3 | 4
        4 b1: prompt@0+2 trunk@2+3 b1@5+1 | 5
        4 b2: prompt@0+2 trunk@2+3 b2@5+2 | 5-6
        5 b1: prompt@0+2 trunk@2+3 b1@5+2 | 6
        5 b2: prompt@0+2 trunk@2+3 b2@5+3 | 7
        6 b1: prompt@0+2 trunk@2+3 b1@5+3 | 7
        6 b2: prompt@0+2 trunk@2+3 b2@5+4 | 8
        7 b1: prompt@0+2 trunk@2+3 b1@5+4 | 8
        7 b2: prompt@0+2 trunk@2+3 b2@5+5 | 9
        8 b1: prompt@0+2 trunk@2+3 b1@5+5 | 9
        9 b1: prompt@0+2 trunk@2+3 b1@5+6 | 10
        10 join: prompt@0+2 trunk@2+3 b1@5+6 b2@5+5 join@11+1 | 11
        11 join: prompt@0+2 trunk@2+3 b1@5+6 b2@5+5 join@11+2 | 12
        12 join: prompt@0+2 trunk@2+3 b1@5+6 b2@5+5 join@11+3 | 13`,
    })
  })
})

describe('the tables of tools', () => {
  /** Work that is done when the step of this number has ended. */
  function gates() {
    const open = new Map<number, () => void>()
    const gate = (step: number) => new Promise<void>((resolve) => open.set(step, resolve))
    return { gate, afterStep: (step: number) => open.get(step)?.() }
  }

  test('llm-compiler', async () => {
    const model = await scripted('Tw wx xy yz +j')
    const { llmCompiler } = load('llm-compiler.mjs')
    const { gate, afterStep } = gates()
    const [third, sixth, seventh] = [gate(3), gate(6), gate(7)]
    const calls: string[][] = []
    const merged = hogwild.mergeCalls(async (names: readonly string[]) => {
      calls.push([...names])
      await seventh
      return [ids('Y'), ids('ZZ')]
    })
    const asks = (name: string) => async (given: number[]) => {
      return await merged(`${name}(${String.fromCharCode(...given)})`)
    }
    const tasks = [
      { needs: [], call: () => third.then(() => ids('WW')) },
      { needs: [], call: () => sixth.then(() => ids('X')) },
      { needs: [1], call: asks('y') },
      { needs: [1], call: asks('z') },
    ]
    const scheme = () =>
      llmCompiler!({
        ...{ model, prompt: ids('PQ'), begin: ids('T'), join: ids('+'), until: atSemicolon },
        tasksOf: (plan: number[]) => tasks.slice(0, plan.filter((token) => token !== 59).length),
        plansAgain: () => false,
      })
    const expected = {
      texts: {
        'plan 1': 'wxyz;',
        'result 1.1': 'WW',
        'result 1.2': 'X',
        'result 1.3': 'Y',
        'result 1.4': 'ZZ',
        'joiner 1': 'j;',
      },
      steps: 11,
      alone: 14,
      lines: `
        0 prompt: prompt@0+2 | 0-1
        1 plan: prompt@0+2 plan@2+1 | 2
        2 plan: prompt@0+2 plan@2+2 | 3
        3 plan: prompt@0+2 plan@2+3 | 4
        4 plan: prompt@0+2 plan@2+4 | 5
        4 w: prompt@0+2 plan@2+4 w@6+2 | 6-7
        5 plan: prompt@0+2 plan@2+5 | 6
        6 plan: prompt@0+2 plan@2+6 | 7
        7 x: prompt@0+2 plan@2+6 x@8+1 | 8
        8 y: prompt@0+2 plan@2+6 y@8+1 | 8
        8 z: prompt@0+2 plan@2+6 z@8+2 | 8-9
        9 join: prompt@0+2 plan@2+6 w@8+2 x@10+1 y@11+1 z@12+2 join@14+1 | 14
        10 join: prompt@0+2 plan@2+6 w@8+2 x@10+1 y@11+1 z@12+2 join@14+2 | 15
        11 join: prompt@0+2 plan@2+6 w@8+2 x@10+1 y@11+1 z@12+2 join@14+3 | 16`,
    }
    await check(model, 'prompt plan w x y z join', scheme, expected, afterStep)
    expect(calls).toEqual([['y(X)', 'z(X)']])
  })

  test('llm-compiler: another plan reads all that was before', async () => {
    const model = await scripted('Tx')
    const { llmCompiler } = load('llm-compiler.mjs')
    const tasksOf = (plan: number[]) =>
      plan.includes(59) ? [{ needs: [], call: () => Promise.resolve(ids('R')) }] : []
    const lines = follow(model, 'prompt plan r join plan2')
    await llmCompiler!({
      ...{ model, prompt: ids('P'), begin: ids('T'), join: ids('+'), until: atSemicolon, tasksOf },
      ...{ plansAgain: () => true, mostPlans: 2 },
    })
    expect(lines.find((line) => line.includes('plan2'))).toBe(
      '7 plan2: prompt@0+1 plan@1+3 r@4+1 join@5+2 plan2@7+1 | 7',
    )
  })

  test('llm-compiler: what a tool throws comes out', async () => {
    const model = await scripted('Tx')
    const { llmCompiler } = load('llm-compiler.mjs')
    const mine = new Error('mine')
    const scheme = llmCompiler!({
      ...{ model, prompt: [], begin: ids('T'), join: ids('+'), until: atSemicolon },
      tasksOf: () => [
        { needs: [], call: () => Promise.reject(mine) },
        { needs: [0], call: () => Promise.resolve(ids('R')) },
      ],
      plansAgain: () => false,
    })
    await expect(scheme).rejects.toBe(mine)
  })

  test('roles', async () => {
    const model = await scripted('Nn Cc Ss st tu')
    const { playRoles } = load('roles.mjs')
    const { gate, afterStep } = gates()
    const eleventh = gate(11)
    const decisions = ['caller', 'summarizer', 'summarizer']
    const scheme = () =>
      playRoles!({
        ...{ model, prompt: ids('PQ'), questions: [ids('AB'), ids('D')], until: atSemicolon },
        roles: {
          planner: { instructions: ids('1'), begin: ids('N') },
          caller: { instructions: ids('22'), begin: ids('C') },
          summarizer: { instructions: ids('3'), begin: ids('S') },
        },
        decide: () => decisions.shift(),
        tool: (call: number[]) => eleventh.then(() => [...call.slice(0, 1), 82]),
      })
    const expected = {
      texts: {
        '1.1 planner': 'n;',
        '1.2 caller': 'c;',
        '1.3 planner': 'n;',
        '1.4 summarizer': 'stu;',
        '2.1 planner': 'n;',
        '2.2 summarizer': 'stu;',
      },
      steps: 17,
      alone: 17,
      // Histories q1, q2 grow by the turns N n ; and C c ; and by the result c R.
      lines: `
        0 prompt: prompt@0+2 | 0-1
        1 H1: H1@0+1 | 0
        2 H2: H2@0+2 | 0-1
        3 H3: H3@0+1 | 0
        4 q1: prompt@0+2 q1@2+2 | 2-3
        4 q2: prompt@0+2 q2@2+1 | 2
        5 n1: prompt@0+2 H1@2+1 q1@3+2 n1@5+1 | 5
        5 n2: prompt@0+2 H1@2+1 q2@3+1 n2@4+1 | 4
        6 n1: prompt@0+2 H1@2+1 q1@3+2 n1@5+2 | 6
        6 n2: prompt@0+2 H1@2+1 q2@3+1 n2@4+2 | 5
        7 n1: prompt@0+2 H1@2+1 q1@3+2 n1@5+3 | 7
        7 n2: prompt@0+2 H1@2+1 q2@3+1 n2@4+3 | 6
        8 c1: prompt@0+2 H2@2+2 q1@4+5 c1@9+1 | 9
        8 s2: prompt@0+2 H3@2+1 q2@3+4 s2@7+1 | 7
        9 c1: prompt@0+2 H2@2+2 q1@4+5 c1@9+2 | 10
        9 s2: prompt@0+2 H3@2+1 q2@3+4 s2@7+2 | 8
        10 c1: prompt@0+2 H2@2+2 q1@4+5 c1@9+3 | 11
        10 s2: prompt@0+2 H3@2+1 q2@3+4 s2@7+3 | 9
        11 s2: prompt@0+2 H3@2+1 q2@3+4 s2@7+4 | 10
        12 q1: prompt@0+2 q1@2+10 | 10-11
        12 s2: prompt@0+2 H3@2+1 q2@3+4 s2@7+5 | 11
        13 n3: prompt@0+2 H1@2+1 q1@3+10 n3@13+1 | 13
        14 n3: prompt@0+2 H1@2+1 q1@3+10 n3@13+2 | 14
        15 n3: prompt@0+2 H1@2+1 q1@3+10 n3@13+3 | 15
        16 s1: prompt@0+2 H3@2+1 q1@3+13 s1@16+1 | 16
        17 s1: prompt@0+2 H3@2+1 q1@3+13 s1@16+2 | 17
        18 s1: prompt@0+2 H3@2+1 q1@3+13 s1@16+3 | 18
        19 s1: prompt@0+2 H3@2+1 q1@3+13 s1@16+4 | 19
        20 s1: prompt@0+2 H3@2+1 q1@3+13 s1@16+5 | 20`,
    }
    const names = 'prompt H1 H2 H3 q1 q2 n1 n2 c1 s2 n3 s1'
    await check(model, names, scheme, expected, afterStep)
  })
})

describe('on a random model every step is that of the reference', () => {
  const given = { A: [10, 11], B: [20], C: [30, 31, 32] }
  const hogwildOf = (layout: string) => ({
    ...{ layout, workers: given, maxTokens: 12, stopTokens: [] },
    turnEnds: (tokens: number[]) => tokens.at(-1)! % 3 === 0,
  })
  const until = (tokens: number[]) => tokens.length === 6 || tokens.at(-1)! % 5 === 0
  test.each<[string, string, object]>([
    ['fastcot.mjs', 'fastCot', { begin: [7, 8], window: 4, passes: 6, ask: [9], until }],
    ['hogwild.mjs', 'hogwild', hogwildOf('contiguous')],
    ['hogwild.mjs', 'hogwild', hogwildOf('interleaved')],
    ['hogwild.mjs', 'hogwild', hogwildOf('combined')],
    ['group-think.mjs', 'groupThink', { thinkers: given, range: 16, until }],
    [
      'skeleton-of-thought.mjs',
      'skeletonOfThought',
      {
        begin: [7],
        pointsOf: (tokens: number[]) => tokens.map((t) => [t, 8]),
        closing: [9],
        until,
      },
    ],
    ['streams.mjs', 'multiStream', { streams: given, until }],
    [
      'async-reasoning.mjs',
      'asyncReasoning',
      {
        ...{ thinker: [10], answerer: [20, 21], question: [30, 31], until },
        mayWrite: (logits: Float32Array) => logits[0]! > logits[1]!,
        input: (step: number) => (step % 2 === 1 ? [40, step] : []),
      },
    ],
    [
      'llm-compiler.mjs',
      'llmCompiler',
      {
        ...{ begin: [7], join: [8, 9], until, plansAgain: () => true, mostPlans: 2 },
        tasksOf: (plan: number[]) =>
          plan.map((token, i) => ({
            needs: i > 1 ? [0, i - 1] : [],
            call: (...given: number[][]) => Promise.resolve([token, given.length]),
          })),
      },
    ],
    [
      'roles.mjs',
      'playRoles',
      {
        questions: given.A.map((token) => [token, 12]),
        roles: {
          planner: { instructions: [13, 14], begin: [15] },
          caller: { instructions: [16], begin: [17, 18] },
          summarizer: { instructions: [19], begin: [21] },
        },
        decide: (plan: number[]) => (plan.length === 6 ? 'summarizer' : 'caller'),
        tool: (call: number[]) => Promise.resolve(call.slice(0, 2)),
        ...{ until, mostTurns: 5 },
      },
    ],
    [
      'multiverse.mjs',
      'multiverse',
      {
        ...{ begin: [7], join: [8, 9], outlinesOf: () => [[1], [2, 3], [4]], mostForks: 2 },
        ...{ untilFork: until, untilPathEnds: until },
      },
    ],
  ])('%s', async (file, name, options) => {
    for (const seed of [1, 2]) {
      const { model, reference } = await random(seed)
      const lines = follow(model, '', reference)
      const { texts, steps } = await load(file)[name]!({ model, prompt: [1, 2, 3, 4], ...options })
      expect(Object.values(texts).flat().length).toBeGreaterThanOrEqual(4)
      expect(lines.length).toBeGreaterThanOrEqual(steps)
      jest.restoreAllMocks()
    }
  })
})

describe('what the scripts read from text', () => {
  test('numbered lines', () => {
    const { numberedLines } = load('skeleton-of-thought.mjs')
    const text = 'Points:\n1. One 2.\n 2) two\nno 3. three\n10: ten\n4.\n5. \nfive'
    expect(numberedLines!(text)).toEqual(['One 2.', 'two', 'ten'])
    expect(numberedLines!(text, 2)).toEqual(['One 2.', 'two'])
  })

  test('a tag, across tokens and at the end alone', async () => {
    const path = writeScriptedModel({ follows: {} })
    const tokenizer = await hogwild.loadTokenizer(path)
    const ends = load('common.mjs').atTag!(tokenizer, '</Goal>', 12) as (ids: number[]) => boolean
    const found = ['x</Goal>', '</Goal', '</Goal>x', 'xxxxxxxxxxxx'].map((text) => ends(ids(text)))
    expect(found).toEqual([true, false, false, true])
    await tokenizer.close()
  })
})
