// Every scenario of the oracle through `replay`, and the ops that the oracle does not have.

import { copyFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { HogwildError, loadModel } from '../lib'
import { largest, tensorShapes } from '../lib/cli/replay'
import { parseScript, type ReplayOp } from '../lib/cli/replay/script'
import { writeSafetensors } from '../lib/cli/replay/write-safetensors'
import {
  codeOf,
  expectClose,
  loadReference,
  oracleFolder,
  oracleModels,
  Random,
  readSafetensors,
  readScenario,
  temporaryFolder,
  writeModel,
} from './fixtures'
import { expectSameChoices, number, results, scenarios, script } from './oracle'
import { argmax, type Block, type Worker } from './reference'

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
  /** The definition: blocks are lists of tokens with their keys and values. */
  function onReference(folder: string, ops: readonly ReplayOp[]): Float64Array[] {
    const model = loadReference(folder)
    const blocks = new Map<string, Block>()
    const views = new Map<string, Omit<Worker, 'tokens'>>()
    const block = (name: string) => blocks.get(name) as Block
    const rows: Float64Array[] = []
    const step = (workers: Worker[]) => {
      for (const logits of model.step(workers)) rows.push(logits.at(-1) as Float64Array)
    }
    for (const op of ops) {
      if (op.op === 'block') blocks.set(op.name, [])
      else if (op.op === 'fork') blocks.set(op.name, [...block(op.block)])
      else if (op.op === 'clear') block(op.block).length = 0
      else if (op.op === 'truncate') block(op.block).length = op.length
      else if (op.op === 'forget') block(op.block).splice(op.begin, op.end - op.begin)
      else if (op.op === 'insert') block(op.target).splice(op.at, 0, ...block(op.source))
      else if (op.op === 'append_from') {
        block(op.target).push(...block(op.source))
        if (op.clear_source) block(op.source).length = 0
      } else if (op.op === 'worker') {
        const target = op.write_to === undefined ? {} : { target: block(op.write_to) }
        views.set(op.name, { view: op.view.map(block), ...target })
      } else if (op.op === 'prefill') step([{ view: [block(op.block)], tokens: op.tokens }])
      else if (op.op === 'step') {
        step(
          op.workers.map((name, worker) => ({
            ...(views.get(name) as Omit<Worker, 'tokens'>),
            tokens: op.inputs[worker] as number[],
          })),
        )
      }
    }
    return rows
  }

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
    const expected = onReference(folder, ops)
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
    [
      'inputs for fewer workers',
      { ops: [{ op: 'step', workers: ['A', 'B'], inputs: [[1]] }] },
      /op 0 \(step\): .*2 workers, received 1/,
    ],
  ]
  test.each(refusals)('%s', (_, input, message) => {
    expect(() => parseScript(input)).toThrow(message)
    try {
      parseScript(input)
    } catch (error) {
      expect((error as HogwildError).code).toBe('HOGWILD_INVALID_ARGUMENT')
    }
  })

  const inTheRun: [string, unknown[], RegExp][] = [
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
  test.each(inTheRun)('%s, with the index of the op', async (_, ops, message) => {
    const model = await loadModel(writeModel(), { device: 'cpu' })
    const run = () => results(model, parseScript({ ops }))
    await expect(run()).rejects.toThrow(message)
    expect(await codeOf(run)).toBe('HOGWILD_INVALID_ARGUMENT')
    await model.close()
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
      yield new Float32Array(3)
      throw new HogwildError('no more', 'HOGWILD_OUT_OF_PAGES')
    }
    const write = () => writeSafetensors(path, [{ name: '000', shape: [2, 3] }], rows())
    expect(await codeOf(write)).toBe('HOGWILD_OUT_OF_PAGES')
    expect(readFileSync(path, 'utf8')).toBe('what was there')
    expect(readdirSync(folder)).toEqual(['logits.safetensors'])
  })
})
