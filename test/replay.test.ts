// Every scenario of the oracle through `replay`, and the ops that the oracle does not have.

import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { HogwildError, type HogwildErrorCode, loadModel } from '../lib'
import { largest, replayScript, tensorShapes } from '../lib/cli/replay'
import { replay } from '../lib/cli/replay/replay'
import { writeSafetensors } from '../lib/cli/replay/write-safetensors'
import { parseScript, type ReplayOp } from '../lib/replay/script'
import {
  codeOf,
  expectClose,
  loadReference,
  oracleFolder,
  oracleModels,
  Random,
  readSafetensors,
  readScenario,
  replayOnReference,
  temporaryFolder,
  writeModel,
} from './fixtures'
import { expectSameChoices, number, results, scenarios, script } from './oracle'
import { argmax } from './reference'

// Logits have a standard deviation near 4; float32 arithmetic over 2-4 layers stays well below this.
const TOLERANCE_F32 = 2e-4

describe.each(oracleModels)('the oracle, %s', (name) => {
  const own = scenarios(name)
  /** The same model with the configuration as transformers 5 writes it. */
  const version5 = (): string => {
    const folder = temporaryFolder()
    copyFileSync(join(oracleFolder(name), 'model.safetensors'), join(folder, 'model.safetensors'))
    copyFileSync(join(oracleFolder(name), 'config.v5.json'), join(folder, 'config.json'))
    return folder
  }

  test.each([
    ['config.json', () => oracleFolder(name)],
    ['config.v5.json', version5],
  ])('every logit and every argmax in float32, %s', async (_, folder) => {
    const model = await loadModel(folder(), { device: 'cpu', dtype: 'f32' })
    for (const scenario of own) {
      const { exact } = readScenario(name, scenario)
      const found = await results(model, script(name, scenario))
      expect(found.map(({ op }) => number(op))).toEqual([...exact.keys()].sort())
      for (const { op, logits } of found) {
        exact.get(number(op))?.forEach((row, worker) => {
          const what = `${name} ${scenario} op ${op} worker ${worker}`
          expectClose(logits[worker] ?? [], row, TOLERANCE_F32, what)
          expect(`${what}: ${argmax(logits[worker] ?? [])}`).toBe(`${what}: ${argmax(row)}`)
        })
      }
    }
    await model.close()
  })

  test('bf16: the argmax wherever the margin exceeds twice the error', async () => {
    const model = await loadModel(oracleFolder(name), { device: 'cpu', dtype: 'bf16' })
    await expectSameChoices(model, name)
    await model.close()
  })
})

describe('the ops that the oracle does not have', () => {
  test('clear, truncate, fork, insert, forget and compact agree with lists of tokens', async () => {
    const folder = writeModel({ seed: 5 })
    const random = new Random(17)
    const tokens = (count: number) => random.tokens(count, 53)
    const step: () => ReplayOp = () => ({
      op: 'step',
      workers: ['A', 'B'],
      inputs: [tokens(random.int(1, 3)), tokens(random.int(1, 3))],
    })
    const ops = parseScript({
      ops: [
        { op: 'block', name: 'common' },
        { op: 'block', name: 'a' },
        { op: 'block', name: 'b' },
        { op: 'worker', name: 'A', view: ['common', 'b', 'a'] },
        { op: 'worker', name: 'B', view: ['common', 'a', 'b'], write_to: 'b' },
        { op: 'prefill', block: 'common', tokens: tokens(70) },
        step(),
        {
          op: 'worker',
          name: 'A',
          view: ['common', { block: 'b', at: 70, lag: 1 }, { block: 'a', at: 70, bias: 0.5 }],
        },
        {
          op: 'worker',
          name: 'B',
          view: [{ block: 'common', temperature: 2 }, { block: 'a', at: 90 }, { block: 'b' }],
        },
        step(),
        { op: 'fork', block: 'common', name: 'other' },
        { op: 'insert', target: 'common', at: 31, source: 'b' },
        step(),
        { op: 'forget', block: 'common', begin: 3, end: 20 },
        step(),
        { op: 'truncate', block: 'a', length: 2 },
        step(),
        { op: 'compact', block: 'common' },
        step(),
        { op: 'clear', block: 'b' },
        { op: 'worker', name: 'B', view: ['a', 'other', 'b'] },
        step(),
        { op: 'append_from', target: 'other', source: 'a', clear_source: true },
        step(),
      ],
    })
    const expected = [...replayOnReference(loadReference(folder), ops).values()].flat()
    const model = await loadModel(folder, { device: 'cpu' })
    const actual = (await results(model, ops)).flatMap(({ logits }) => logits)
    await model.close()
    expect(actual).toHaveLength(expected.length)
    actual.forEach((row, index) => {
      expectClose(row, expected[index] ?? [], TOLERANCE_F32, `row ${index}`)
    })
  })
})

describe('scripts that are refused', () => {
  const block = { op: 'block', name: 'b' }
  const refusals: [string, unknown, RegExp][] = [
    ['no ops', { steps: [] }, /expected a script/],
    ['null', null, /expected a script/],
    ['an unknown op', { ops: [block, { op: 'swap' }] }, /op 1: .*one of block, worker.*"swap"/],
    ['a name of Object.prototype', { ops: [{ op: 'constructor' }] }, /op 0: .*"constructor"/],
    ['null for an op', { ops: [null] }, /op 0/],
    [
      'a missing field',
      { ops: [{ op: 'truncate', block: 'b' }] },
      /op 0 \(truncate\).*length.*nothing/,
    ],
    ['a fraction', { ops: [{ op: 'truncate', block: 'b', length: 1.5 }] }, /non-negative integer/],
    ['a negative id', { ops: [{ op: 'prefill', block: 'b', tokens: [-1] }] }, /token ids/],
    ['a number for op', { ops: [{ op: 5 }] }, /op 0: expected "op" to be one of .*received 5/],
    [
      'an array for op',
      { ops: [{ op: ['block'], name: 'b' }] },
      /op 0: expected "op".*\["block"\]/,
    ],
    ['an array for an op', { ops: [['block']] }, /op 0: expected "op"/],
    ['a text for an op', { ops: ['block'] }, /op 0: expected "op"/],
    [
      'an unknown field',
      { ops: [{ ...block, nmae: 'b' }] },
      /op 0 \(block\): unknown field "nmae"; known: op, name$/,
    ],
    [
      "another op's field",
      { ops: [{ op: 'clear', block: 'b', length: 0 }] },
      /op 0 \(clear\): unknown field "length"/,
    ],
    [
      'a field named like a prototype',
      JSON.parse('{"ops":[{"op":"block","name":"b","__proto__":1}]}'),
      /unknown field "__proto__"/,
    ],
    [
      'a field that only the prototype has',
      { ops: [Object.assign(Object.create({ name: 'b' }), { op: 'block' })] },
      /op 0 \(block\): expected name .*received nothing/,
    ],
    ['an empty name', { ops: [{ op: 'block', name: '' }] }, /op 0 \(block\): expected name/],
    ['a number for a name', { ops: [{ op: 'block', name: 1 }] }, /expected name .*received 1$/],
    ['null for a name', { ops: [{ op: 'block', name: null }] }, /expected name .*received null$/],
    [
      'an empty view',
      { ops: [{ op: 'worker', name: 'A', view: [] }] },
      /op 0 \(worker\): expected view to be a non-empty array of names/,
    ],
    [
      'null for write_to',
      { ops: [{ op: 'worker', name: 'A', view: ['b'], write_to: null }] },
      /expected write_to/,
    ],
    ['no tokens', { ops: [{ op: 'prefill', block: 'b', tokens: [] }] }, /expected tokens/],
    [
      'a text for tokens',
      { ops: [{ op: 'prefill', block: 'b', tokens: '12' }] },
      /expected tokens/,
    ],
    ['a step of nobody', { ops: [{ op: 'step', workers: [], inputs: [] }] }, /expected workers/],
    [
      'a worker without tokens',
      { ops: [{ op: 'step', workers: ['A', 'B'], inputs: [[1], []] }] },
      /op 0 \(step\): expected inputs/,
    ],
    [
      'a text for a boolean',
      { ops: [{ op: 'append_from', target: 'b', source: 'c', clear_source: 'false' }] },
      /expected clear_source to be a boolean/,
    ],
    ['a huge number', { ops: [{ op: 'truncate', block: 'b', length: 1e300 }] }, /expected length/],
    ['infinity', { ops: [{ op: 'insert', target: 'b', at: 1 / 0, source: 'c' }] }, /expected at/],
    [
      'a negative number',
      { ops: [{ op: 'forget', block: 'b', begin: 0, end: -1 }] },
      /expected end to be a non-negative integer, received -1/,
    ],
    [
      'a value of megabytes, cut in the message',
      { ops: [{ op: 'block', name: ['x'.repeat(1e6)] }] },
      /^.{1,200}$/,
    ],
    [
      'inputs for fewer workers',
      { ops: [{ op: 'step', workers: ['A', 'B'], inputs: [[1]] }] },
      /op 0 \(step\): .*2 workers, received 1/,
    ],
  ]
  /** A worker's view of the block b and of an entry, which is its second. */
  const viewing = (entry: unknown) => ({
    ops: [block, { op: 'worker', name: 'A', view: ['b', entry], write_to: 'b' }],
  })
  const field = (name: string, values: unknown[]): typeof refusals =>
    values.map((value) => [
      `an entry with ${name} ${JSON.stringify(value)}`,
      viewing({ block: 'b', [name]: value }),
      new RegExp(`^op 1 \\(worker\\): expected view\\[1\\]\\.${name} to be `),
    ])
  refusals.push(
    ...field('at', [-1, 0.5, 2 ** 24 + 1, 1e300, Infinity, null, '3', true, [], {}]),
    ...field('lag', [2, -1, 0.5, null, '1', true, false]),
    ...field('temperature', [0, -1, 9.9e-7, 1.1e6, Infinity, null, '1', true, [1]]),
    ...field('bias', [Infinity, -Infinity, null, '0', false, {}]),
    ...field('block', [null, '', 3, ['b'], { block: 'b' }]),
    ['an entry without a block', viewing({ at: 3 }), /expected view\[1\]\.block to be a string/],
    [
      'an entry with a misspelt field',
      viewing({ block: 'b', tempreture: 1 }),
      /op 1 \(worker\): view\[1\] has no "tempreture"; it knows block, at, lag, temperature, bias$/,
    ],
    [
      'an array for an entry',
      viewing(['b']),
      /op 1 \(worker\): expected view\[1\] to be an object/,
    ],
    ['a number for an entry', viewing(3), /op 1 \(worker\): expected view\[1\] to be a name or/],
    ['null for an entry', viewing(null), /op 1 \(worker\): expected view\[1\] to be a name or/],
    ['no name for an entry', viewing(''), /op 1 \(worker\): expected view\[1\] to be a name or/],
  )
  const accepted: object[] = [
    { block: 'b' },
    { block: 'b', at: 0, lag: 0, temperature: 1, bias: 0 },
    { block: 'b', at: 2 ** 24, lag: 1, temperature: 1e-6, bias: -1e5 },
    { block: 'b', temperature: 1e6, bias: 1e300 },
    { temperature: 0.7, bias: -0.5, lag: 1, at: 40, block: 'b' },
  ]
  test.each(accepted)('%j is an entry', (entry) => {
    expect(parseScript(viewing(entry)).at(-1)).toMatchObject({ view: ['b', entry] })
  })
  test.each(refusals)('%s', (_, input, message) => {
    expect(() => parseScript(input)).toThrow(message)
    try {
      parseScript(input)
    } catch (error) {
      expect((error as HogwildError).code).toBe('HOGWILD_INVALID_ARGUMENT')
    }
  })

  const blocks = [block, { op: 'block', name: 'c' }]
  const filled = [...blocks, { op: 'prefill', block: 'b', tokens: [1, 2, 3] }]
  const inTheRun: [string, unknown[], RegExp, HogwildErrorCode?][] = [
    [
      'a block appended to itself',
      [...filled, { op: 'append_from', target: 'b', source: 'b' }],
      /op 3 \(append_from\): expected source to be another block than target, received "b"/,
    ],
    [
      'a block inserted into itself',
      [...filled, { op: 'insert', target: 'b', at: 0, source: 'b' }],
      /op 3 \(insert\): expected source/,
    ],
    [
      'an unknown source',
      [...blocks, { op: 'append_from', target: 'b', source: 'd' }],
      /op 2 \(append_from\): unknown block "d" in source; defined: "b", "c"/,
    ],
    [
      'an unknown block in a view',
      [...blocks, { op: 'worker', name: 'A', view: ['b', 'd'] }],
      /op 2 \(worker\): unknown block "d" in view\[1\]/,
    ],
    [
      'an unknown block in an entry of a view',
      [...blocks, { op: 'worker', name: 'A', view: ['b', { block: 'd', at: 3 }] }],
      /op 2 \(worker\): unknown block "d" in view\[1\]\.block; defined: "b", "c"/,
    ],
    [
      'an entry that shows a token beyond 2^24',
      [
        ...filled,
        {
          op: 'worker',
          name: 'A',
          view: [
            { block: 'b', at: 2 ** 24 - 1 },
            { block: 'c', at: 0 },
          ],
        },
        { op: 'step', workers: ['A'], inputs: [[1]] },
      ],
      /op 4 \(step\): view\[0\] of worker "A" shows a token at view position 16777217: .* 16777216$/,
    ],
    [
      'a new token beyond 2^24',
      [
        ...filled,
        { op: 'worker', name: 'A', view: [{ block: 'b', at: 2 ** 24 - 2 }, 'c'] },
        { op: 'step', workers: ['A'], inputs: [[1]] },
      ],
      /op 4 \(step\): view\[1\] of worker "A" shows a token at view position 16777217/,
    ],
    [
      'a block in a view before it is there',
      [block, { op: 'worker', name: 'A', view: ['c'] }, { op: 'block', name: 'c' }],
      /op 1 \(worker\): unknown block "c"/,
    ],
    [
      'a target outside of the view',
      [...blocks, { op: 'worker', name: 'A', view: ['b'], write_to: 'c' }],
      /op 2 \(worker\): expected write_to to be one of the blocks of the view, received "c"/,
    ],
    [
      'a fork of nothing',
      [block, { op: 'fork', block: 'c', name: 'd' }],
      /op 1 \(fork\): unknown block "c" in block/,
    ],
    [
      'a fork under a name that is taken',
      [...blocks, { op: 'fork', block: 'b', name: 'c' }],
      /op 2 \(fork\): there is a block "c" already \(field "name"\)/,
    ],
    [
      'a worker twice in a step',
      [
        block,
        { op: 'worker', name: 'A', view: ['b'] },
        { op: 'step', workers: ['A', 'A'], inputs: [[1], [2]] },
      ],
      /op 2 \(step\): worker "A" stands twice in workers/,
    ],
    [
      'two writers of one block',
      [
        block,
        { op: 'worker', name: 'A', view: ['b'] },
        { op: 'worker', name: 'B', view: ['b'] },
        { op: 'step', workers: ['A', 'B'], inputs: [[1], [2]] },
      ],
      /op 3 \(step\): "A" and "B" in workers write to the same block, "b"/,
      'HOGWILD_WRITE_CONFLICT',
    ],
    [
      'a token out of range, late',
      [
        ...filled,
        { op: 'worker', name: 'A', view: ['b'] },
        { op: 'step', workers: ['A'], inputs: [[1, 53]] },
      ],
      /op 4 \(step\): expected inputs\[0\]\[1\] to be a token id in \[0, 52\], received 53/,
    ],
    [
      'a range that ends before it begins',
      [...filled, { op: 'forget', block: 'b', begin: 2, end: 1 }],
      /op 3 \(forget\): expected begin to be an integer in \[0, 1\]/,
    ],
    [
      'a length that an earlier op has taken away',
      [...filled, { op: 'clear', block: 'b' }, { op: 'truncate', block: 'b', length: 3 }],
      /op 4 \(truncate\): expected length to be an integer in \[0, 0\] for block "b", received 3/,
    ],
    [
      'blocks that double without end',
      [
        ...filled,
        ...Array.from({ length: 80 }, (_, i) =>
          i % 2
            ? { op: 'append_from', target: 'b', source: 'c' }
            : { op: 'append_from', target: 'c', source: 'b' },
        ),
      ],
      /op \d+ \(append_from\): expected all blocks together to hold at most \d+ tokens/,
    ],
    [
      'many names, of which the message lists some',
      [
        ...Array.from({ length: 1000 }, (_, i) => ({ op: 'block', name: `block ${i}` })),
        { op: 'clear', block: 'c' },
      ],
      /op 1000 \(clear\): unknown block "c" in block; .*"block 9" and 990 more$/,
    ],
    ['an unknown block', [block, { op: 'clear', block: 'c' }], /op 1 \(clear\): unknown block "c"/],
    [
      'an unknown worker',
      [{ op: 'step', workers: ['A'], inputs: [[1]] }],
      /op 0 .*unknown worker "A"/,
    ],
    ['a block twice', [block, block], /op 1 \(block\): there is a block "b" already/],
    [
      'a token out of range',
      [block, { op: 'prefill', block: 'b', tokens: [53] }],
      /op 1 \(prefill\)/,
    ],
    ['a wrong length', [block, { op: 'truncate', block: 'b', length: 1 }], /op 1 \(truncate\)/],
    [
      'a wrong place',
      [block, { op: 'insert', target: 'b', at: 1, source: 'b' }],
      /op 1 \(insert\)/,
    ],
    ['a wrong range', [block, { op: 'forget', block: 'b', begin: 0, end: 1 }], /op 1 \(forget\)/],
  ]
  const rows = inTheRun.map(
    ([what, ops, message, code = 'HOGWILD_INVALID_ARGUMENT']) =>
      [what, ops, message, code] as const,
  )
  test.each(rows)('%s, with the index of the op', async (_, ops, message, code) => {
    const model = await loadModel(writeModel(), { device: 'cpu' })
    const step = jest.spyOn(model, 'step')
    const run = () => results(model, parseScript({ ops }))
    await expect(run()).rejects.toThrow(message)
    expect(await codeOf(run)).toBe(code)
    // Known before the first op.
    expect(step).not.toHaveBeenCalled()
    await model.close()
  })

  test('what is late, empty or behind the write entry may stand at the end of all positions', async () => {
    const model = await loadModel(writeModel(), { device: 'cpu', onWarning: () => {} })
    const last = (block: string) => ({ block, at: 2 ** 24 })
    const ops = [
      ...filled,
      { op: 'block', name: 'd' },
      {
        op: 'worker',
        name: 'A',
        view: [last('c'), { block: 'b', at: 0 }, last('b')],
        write_to: 'b',
      },
      { op: 'step', workers: ['A'], inputs: [[1, 2]] },
      { op: 'worker', name: 'B', view: ['d'] },
      {
        op: 'worker',
        name: 'A',
        view: [
          { ...last('d'), lag: 1 },
          { block: 'b', at: 3 },
        ],
      },
      { op: 'step', workers: ['A', 'B'], inputs: [[1], [1, 2]] },
    ]
    expect(await results(model, parseScript({ ops }))).toHaveLength(3)
    await model.close()
  })

  test('what runs out in the run names the op', async () => {
    const model = await loadModel(writeModel(), { device: 'cpu' })
    const tokens = Array.from({ length: 65 }, (_, i) => i % 53)
    const run = async () => {
      for await (const _ of replay(
        model,
        parseScript({ ops: [block, { op: 'prefill', block: 'b', tokens }] }),
        64,
      ));
    }
    await expect(run()).rejects.toThrow(/^op 1 \(prefill\): /)
    expect(await codeOf(run)).toBe('HOGWILD_OUT_OF_PAGES')
    await model.close()
  })
})

describe('what a script can need fits into the cache made for it', () => {
  test('many compactions, forks and cuts', async () => {
    const model = await loadModel(writeModel(), { device: 'cpu' })
    const random = new Random(3)
    for (let round = 0; round < 20; round++) {
      const ops: unknown[] = [
        { op: 'block', name: 'b0' },
        { op: 'prefill', block: 'b0', tokens: random.tokens(150, 53) },
      ]
      for (let i = 1; i < 12; i++) {
        const other = `b${random.int(0, i - 1)}`
        ops.push({ op: 'fork', block: other, name: `b${i}` })
        ops.push({ op: 'prefill', block: `b${i}`, tokens: random.tokens(random.int(1, 70), 53) })
        ops.push({ op: 'insert', target: other, at: random.int(0, 100), source: `b${i}` })
        ops.push({ op: 'forget', block: other, begin: random.int(0, 40), end: random.int(40, 90) })
        ops.push({ op: 'compact', block: random.int(0, 1) ? other : `b${i}` })
      }
      await results(model, parseScript({ ops }))
    }
    await model.close()
  })

  test('an empty script', async () => {
    const model = await loadModel(writeModel(), { device: 'cpu' })
    expect(await results(model, parseScript({ ops: [] }))).toEqual([])
    await model.close()
  })
})

describe('the command, before the first op', () => {
  const ops = [
    { op: 'block', name: 'b' },
    { op: 'prefill', block: 'b', tokens: [1, 2] },
  ]
  let model: string
  let folder: string
  let script: string
  let output: string[]

  beforeEach(() => {
    model = writeModel()
    folder = temporaryFolder()
    script = join(folder, 'script.json')
    writeFileSync(script, JSON.stringify({ ops }))
    output = []
    jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
      output.push(String(text))
      return true
    })
  })
  afterEach(() => {
    jest.restoreAllMocks()
  })

  const run = (path: string, out?: string) =>
    replayScript(path, { model, device: 'cpu', dtype: 'auto', ...(out !== undefined && { out }) })

  async function refused(promise: Promise<void>, reason: RegExp): Promise<void> {
    const error: HogwildError = await promise.then(
      () => new Error('it ran'),
      (error) => error,
    )
    expect(error.message).toMatch(reason)
    expect(error.code).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(output).toEqual([])
  }

  test('--out: a file that is there is replaced, through a link', async () => {
    const out = join(folder, 'logits.safetensors')
    writeFileSync(out, 'before')
    symlinkSync(out, join(folder, 'link'))
    await run(script, join(folder, 'link'))
    expect(output).toHaveLength(1)
    expect([...readSafetensors(out).keys()]).toEqual(['001'])
    expect(readdirSync(folder).sort()).toEqual(['link', 'logits.safetensors', 'script.json'])
  })

  const outs: [string, () => string, RegExp][] = [
    ['in a folder that is not there', () => join(folder, 'no', 'x'), /--out .*ENOENT/],
    ['in a file', () => join(script, 'x'), /--out .*(ENOTDIR|is no folder)/],
    ['a folder', () => folder, /--out .* no regular file/],
    ['a folder by its name', () => join(folder, 'x/'), /--out .*received a folder/],
    ['a device', () => '/dev/null', /--out .* no regular file/],
    ['a pipe', () => pipe(), /--out .* no regular file/],
    ['the script', () => script, /--out .* is the script/],
    ['the weights', () => join(model, 'model.safetensors'), /--out .*the model's folder/],
    ['a name that is too long', () => join(folder, 'x'.repeat(300)), /--out .*ENAMETOOLONG/],
    ['a NUL in the name', () => join(folder, 'a\0b'), /--out .*null bytes/],
  ]
  const pipe = () => {
    const path = join(folder, 'pipe')
    execFileSync('mkfifo', [path])
    return path
  }
  test.each(outs)('--out: %s', async (_, out, reason) => {
    const before = readFileSync(join(model, 'model.safetensors'))
    await refused(run(script, out()), reason)
    expect(readFileSync(join(model, 'model.safetensors')).equals(before)).toBe(true)
    expect(readdirSync(folder).filter((name) => name !== 'pipe')).toEqual(['script.json'])
  })

  test('--out is looked at before the model is', async () => {
    const options = { model: folder, device: 'cpu', dtype: 'auto', out: folder } as const
    await refused(replayScript(script, options), /--out/)
  })

  const scripts: [string, () => string, RegExp][] = [
    ['that is not there', () => join(folder, 'no.json'), /expected a JSON file.*ENOENT/],
    ['that is a folder', () => folder, /expected a JSON file.*regular file/],
    ['that is a pipe', () => pipe(), /expected a JSON file.*regular file/],
    ['that is a device without end', () => '/dev/zero', /expected a JSON file.*regular file/],
    ['of 65 MB', () => written(65 * 2 ** 20), /expected a JSON file.*bytes/],
    ['that is nested deeply', () => written('['.repeat(1e6)), /expected a JSON file.*nested/],
    ['that is no JSON', () => written('{"ops": [}'), /expected a JSON file.*not JSON/],
    ['that is no UTF-8', () => written(Buffer.of(0x22, 0xff, 0x22)), /expected a JSON file.*UTF-8/],
    ['that is a number', () => written('5'), /expected a script/],
    ['with Python numbers', () => written('{"ops": [{"op": NaN}]}'), /op 0: expected "op"/],
  ]
  const written = (content: string | Buffer | number) => {
    const path = join(folder, 'other.json')
    writeFileSync(path, typeof content === 'number' ? '' : content)
    if (typeof content === 'number') truncateSync(path, content)
    return path
  }
  test.each(scripts)('a script %s', async (_, path, reason) => {
    await refused(run(path()), reason)
  })
})

describe('what is printed and written', () => {
  test('the largest logits, the smaller index first among equals', () => {
    expect(largest(Float32Array.of(1, 5, -2, 5, 3, 5), 4)).toEqual([1, 3, 5, 4])
    expect(largest(Float32Array.of(2, 1), 8)).toEqual([0, 1])
    expect(largest(Float32Array.of(-Infinity, -1), 2)).toEqual([1, 0])
  })

  test('logits as safetensors, one tensor per prefill and step', async () => {
    const folder = writeModel()
    const ops = parseScript({
      ops: [
        { op: 'block', name: 'a' },
        { op: 'block', name: 'b' },
        { op: 'worker', name: 'A', view: ['b', 'a'] },
        { op: 'worker', name: 'B', view: ['a', 'b'] },
        { op: 'prefill', block: 'a', tokens: [1, 2, 3] },
        { op: 'step', workers: ['A', 'B'], inputs: [[4], [5, 6]] },
      ],
    })
    const model = await loadModel(folder, { device: 'cpu' })
    const found = await results(model, ops)
    await model.close()
    const path = join(temporaryFolder(), 'logits.safetensors')
    async function* rows() {
      for (const { logits } of found) yield* logits
    }
    await writeSafetensors(path, tensorShapes(ops, 53), rows())
    const tensors = readSafetensors(path)
    expect([...tensors].map(([name, { shape }]) => [name, shape])).toEqual([
      ['004', [1, 53]],
      ['005', [2, 53]],
    ])
    const expected = found.map(({ logits }) => logits.flatMap((row) => [...row]))
    expect([...(tensors.get('004')?.data ?? [])]).toEqual(expected[0])
    expect([...(tensors.get('005')?.data ?? [])]).toEqual(expected[1])
  })

  test('a file that cannot be completed does not appear', async () => {
    const folder = temporaryFolder()
    const path = join(folder, 'logits.safetensors')
    writeFileSync(path, 'what was there')
    async function* rows(): AsyncGenerator<Float32Array> {
      yield await Promise.resolve(new Float32Array(3))
      throw new HogwildError('no more', 'HOGWILD_OUT_OF_PAGES')
    }
    const write = () => writeSafetensors(path, [{ name: '000', shape: [2, 3] }], rows())
    expect(await codeOf(write)).toBe('HOGWILD_OUT_OF_PAGES')
    expect(readFileSync(path, 'utf8')).toBe('what was there')
    expect(readdirSync(folder)).toEqual(['logits.safetensors'])
  })
})
