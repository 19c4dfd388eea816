// `hogwild random-model`: models of random weights that can be used at once.

import { execFile } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { generate, loadModel, loadTokenizer } from '../lib'
import { type RandomModelOptions, randomModel } from '../lib/cli/random-model'
import { FAMILY_NAMES } from '../lib/cli/random-model/config'
import { FAMILIES } from '../lib/families'
import { temporaryFolder } from './fixtures'

const main = join(__dirname, '..', 'dist', 'cli', 'main.js')

async function hogwild(...args: string[]): Promise<string> {
  return (await promisify(execFile)(process.execPath, [main, ...args])).stdout
}

/** As the command writes it, in this process. */
async function write(options: Partial<RandomModelOptions>): Promise<string> {
  const folder = join(temporaryFolder(), 'not', 'there', 'yet')
  const silent = jest.spyOn(process.stdout, 'write').mockReturnValue(true)
  const defaults = { family: 'llama', layers: 1, hidden: 32, vocabulary: 600, seed: 0 }
  try {
    await randomModel(folder, { ...defaults, ...options })
  } finally {
    silent.mockRestore()
  }
  return folder
}

test('every family of hogwild', () => {
  expect([...FAMILY_NAMES].sort()).toEqual(
    Object.values(FAMILIES)
      .map(({ modelType }) => modelType)
      .sort(),
  )
})

test.each(FAMILY_NAMES)('%s: loads and writes words', async (family) => {
  const folder = await write({ family, layers: 2, hidden: 48 })
  await using model = await loadModel(folder, { device: 'cpu', threads: 1 })
  expect(FAMILIES[model.config.architecture].modelType).toBe(family)
  expect(model.config.layers).toHaveLength(2)
  expect(model.config.hiddenSize).toBe(48)
  await using tokenizer = await loadTokenizer(folder)
  const messages = [{ role: 'user', content: 'Hello, world! größe 世界' }]
  const { text } = await generate({ model, tokenizer, messages, maxTokens: 24 }).result
  expect(text).toMatch(/^[ -~]+$/)
  expect(text).toMatch(/[a-z]{4}/)
})

test('what the command says to try, tried', async () => {
  const folder = join(temporaryFolder(), "it's tiny")
  const said = await hogwild('random-model', folder)
  expect(said).toMatch(/: llama, 4 layers, 328,256 parameters, 657 kB\n/)
  const [command = ''] = said.trim().split('\n').slice(-1)
  const { stdout } = await promisify(execFile)('sh', ['-c', command])
  expect(stdout).toMatch(/^Bob {3}\| \*\*Bob \[1\]:\*\* Bob here\./m)
  expect(stdout).toMatch(/^Alice · stopped: max-tokens$/m)
})

test('a seed gives the same weights, another one others', async () => {
  const weights: string[] = []
  for (const seed of [7, 7, 8]) {
    const folder = await write({ seed })
    weights.push(readFileSync(join(folder, 'model.safetensors')).toString('base64'))
  }
  const [one, same, other] = weights
  expect(same).toBe(one)
  expect(other).not.toBe(one)
})

test('a vocabulary of any size: text is what it was', async () => {
  const text = 'bako dilu: größe 世界\n'
  for (const vocabulary of [512, 7000]) {
    await using tokenizer = await loadTokenizer(await write({ vocabulary }))
    expect(tokenizer.size).toBe(vocabulary)
    const ids = tokenizer.encodeSync(text)
    expect(ids.length).toBeLessThan(Buffer.byteLength(text))
    expect(tokenizer.decode(ids)).toBe(text)
  }
})

test('nothing that is there is lost, and nothing is left behind', async () => {
  const folder = temporaryFolder()
  const file = join(folder, 'precious')
  writeFileSync(file, 'text')
  await expect(hogwild('random-model', folder)).rejects.toThrow(
    /expected a folder that is empty or not there yet; .* holds a file \[HOGWILD_INVALID_ARGUMENT\]/,
  )
  expect(readdirSync(folder)).toEqual(['precious'])
  await expect(hogwild('random-model', file)).rejects.toThrow(/ENOTDIR/)
  expect(readFileSync(file, 'utf8')).toBe('text')
})

test.each([
  [['--hidden', '40'], 'Expected a multiple of 16 from 16'],
  [['--family', 'mamba'], 'Allowed choices are llama, mistral'],
  [['--vocabulary', '100'], 'Expected an integer from 512'],
])('%j is refused', async (options, reason) => {
  const folder = join(temporaryFolder(), 'x')
  await expect(hogwild('random-model', folder, ...options)).rejects.toThrow(reason)
})
