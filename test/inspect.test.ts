// What `inspectModel` tells of every fixture is what loading it shows.

import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import { join } from 'node:path'
import { demoModelPath, inspectModel, loadModel } from '../lib'
import { codeOf, temporaryFolder } from './fixtures'
import { CONVERTED_FAMILIES, writeGgufModel } from './gguf-models'

const families = join(__dirname, 'fixtures', 'families')
const oracle = join(__dirname, 'oracle', 'models')
const folders = [
  ...[families, oracle].flatMap((parent) =>
    readdirSync(parent, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => join(parent, name)),
  ),
  demoModelPath,
]
const tokenizers = join(__dirname, 'fixtures', 'gguf-tokenizers')

const weightFiles = (path: string) =>
  path.endsWith('.gguf')
    ? [path]
    : readdirSync(path)
        .filter((file) => file.endsWith('.safetensors'))
        .map((file) => join(path, file))

afterEach(() => jest.restoreAllMocks())

test.each(folders.filter((path) => weightFiles(path).length > 0))('%s', expectAsLoaded)

test.each(CONVERTED_FAMILIES)('%s as a GGUF file', async (family) => {
  const path = join(temporaryFolder(), 'model.gguf')
  await writeGgufModel(join(families, family), path)
  await expectAsLoaded(path)
})

test.each(readdirSync(tokenizers).filter((file) => file.endsWith('.gguf')))(
  'the tokenizer %s',
  async (file) => {
    const { model, tokenizer, refusals } = await inspectModel(join(tokenizers, file))
    expect(model).toBeUndefined()
    expect(tokenizer).toMatchObject({ tokens: expect.any(Number), chatTemplates: ['default'] })
    expect(refusals).toMatchObject([{ part: 'model', code: 'HOGWILD_INVALID_MODEL' }])
  },
)

async function expectAsLoaded(path: string): Promise<void> {
  const report = await inspectModel(path, { context: 1000, workers: 3 })
  const { model, tokenizer, refusals } = report
  expect(report.path).toBe(path)
  expect(refusals.filter(({ part }) => part !== 'tokenizer')).toEqual([])
  const hasTokenizer = existsSync(join(path, 'tokenizer.json'))
  if (hasTokenizer && tokenizer !== undefined) expect(tokenizer.tokens).toBeGreaterThan(0)
  if (!hasTokenizer) expect(refusals).toMatchObject([{ part: 'tokenizer' }])
  if (model === undefined) throw new Error('no model')

  await using loaded = await loadModel(path, { device: 'cpu', threads: 1, onWarning: () => {} })
  expect(model.config).toEqual(loaded.config)
  for (const dtype of ['f32', 'bf16', 'int8'] as const) {
    await using cache = loaded.createCache({ capacity: 1000, dtype })
    const { bytesPerPage, pageSize, pages } = cache.stats
    expect(model.cacheBytesPerToken[dtype]).toBe(bytesPerPage / pageSize)
    expect(model.memory.cache[dtype]).toBe((pages + 3) * bytesPerPage)
  }

  // Files hold the header and buffers besides; matrices that are used twice count once.
  const size = weightFiles(path).reduce((sum, file) => sum + readFileSync(file).length, 0)
  expect(model.storedBytes).toBeLessThan(size)
  const { mapped, own } = model.memory.weights
  const vectors = model.roles.filter(({ role }) => /norm|bias|sinks|router_bias/.test(role))
  const matrices = model.storedBytes - vectors.reduce((sum, { bytes }) => sum + bytes, 0)
  expect(mapped + own).toBeGreaterThanOrEqual(matrices)
  expect(model.parameters).toBeGreaterThan(loaded.config.vocabSize * loaded.config.hiddenSize)
}

test('roles of the demo', async () => {
  const { model, tokenizer } = await inspectModel(demoModelPath)
  const roles = Object.fromEntries((model?.roles ?? []).map((one) => [one.role, one]))
  expect(roles.embed).toMatchObject({ tensors: 1 })
  expect(roles.down_proj).toMatchObject({ tensors: model?.config.layers.length })
  expect(tokenizer).toEqual({ kind: 'BPE', tokens: 68, chatTemplates: [] })
})

test('conversion takes memory besides', async () => {
  const [stored, read, converted] = await Promise.all([
    inspectModel(demoModelPath),
    inspectModel(demoModelPath, { mapped: false }),
    inspectModel(demoModelPath, { dtype: 'f32' }),
  ])
  const of = ({ model }: typeof stored) => model?.memory.weights as { mapped: number; own: number }
  expect(of(stored).mapped).toBeGreaterThan(0)
  expect(of(read)).toEqual({ mapped: 0, own: of(stored).mapped + of(stored).own })
  expect(of(converted).own).toBeGreaterThan(of(read).own)
})

describe('what would be refused, and why', () => {
  const changed = (fields: object) => {
    const folder = temporaryFolder()
    cpSync(demoModelPath, folder, { recursive: true })
    const path = join(folder, 'config.json')
    const config = JSON.parse(readFileSync(path, 'utf8'))
    writeFileSync(path, JSON.stringify({ ...config, ...fields }))
    return folder
  }

  test.each([
    [{ architectures: ['MambaForCausalLM'] }, 'HOGWILD_UNSUPPORTED', /MambaForCausalLM.*supported/],
    [{ residual_gate: 0.5 }, 'HOGWILD_UNSUPPORTED', /"residual_gate"/],
    [{ hidden_size: 64 }, 'HOGWILD_INVALID_MODEL', /tensor/],
  ])('%j', async (fields, code, message) => {
    const path = changed(fields)
    const { model, tokenizer, refusals } = await inspectModel(path)
    expect(model).toBeUndefined()
    expect(tokenizer?.tokens).toBe(68)
    expect(refusals).toEqual([{ part: 'model', code, message: expect.stringMatching(message) }])
    expect(await codeOf(() => loadModel(path))).toBe(code)
  })

  test('ignored fields', async () => {
    const path = changed({ residual_gate: 0.5 })
    const { refusals } = await inspectModel(path, { ignoreFields: ['residual_gate'] })
    expect(refusals).toEqual([])
  })

  test('a tokenizer that cannot be read', async () => {
    const path = changed({})
    writeFileSync(join(path, 'tokenizer.json'), '{"model": {"type": "Magic"}}')
    const { model, refusals } = await inspectModel(path)
    expect(model).toBeDefined()
    expect(refusals).toMatchObject([{ part: 'tokenizer', code: 'HOGWILD_INVALID_MODEL' }])
  })

  test('memory', async () => {
    jest.spyOn(os, 'freemem').mockReturnValue(1e6)
    const { refusals } = await inspectModel(demoModelPath, { context: 2 ** 20 })
    expect(refusals).toMatchObject([{ part: 'memory', code: 'HOGWILD_OUT_OF_MEMORY' }])
  })

  test('nothing there, wrong options', async () => {
    expect(await codeOf(() => inspectModel('/none'))).toBe('HOGWILD_INVALID_MODEL')
    for (const options of [{ workers: 0 }, { context: 1.5 }, { dtype: 'q4' }, { worker: 1 }]) {
      const work = () => inspectModel(demoModelPath, options as object)
      expect(await codeOf(work)).toBe('HOGWILD_INVALID_ARGUMENT')
    }
  })
})
