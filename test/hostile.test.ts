import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { FAMILIES } from '../lib/families'
import { ropeFrequencies } from '../lib/rope'
import { parseConfig } from '../lib/sources/huggingface-config'
import { readHeader, readTensors } from '../lib/sources/safetensors'
import { codeOf, Random, temporaryFolder } from './fixtures'

// Folders as strangers may write them: each is read, or refused at once with an error of ours.

const fixture = (name: string) => join(__dirname, 'fixtures', 'families', name)
const refusals = ['HOGWILD_INVALID_MODEL', 'HOGWILD_UNSUPPORTED', 'nothing was thrown']
const values: unknown[] = [
  ...[null, true, false, 0, -0, -1, 1, 2, 7, 0.5, 1e-300, 1e300, 2 ** 31, 2 ** 53, 2 ** 63],
  ...[Number.NaN, Infinity, -Infinity, '', 'silu', 'default', '\0', 'constructor', '__proto__'],
  ...[[], [[]], ['full_attention'], [1e9], {}, { rope_type: 'yarn' }, { toString: null }],
]

describe.each(Object.values(FAMILIES).map(({ modelType }) => modelType))('%s', (family) => {
  test('a config.json with other values in its fields', async () => {
    const text = readFileSync(join(fixture(family), 'config.json'), 'utf8')
    const seed = 1
    const random = new Random(seed)
    let read = 0
    for (let i = 0; i < 500; i++) {
      const config = JSON.parse(text)
      const within = random.chance(0.3) ? config.rope_parameters : config
      const fields = [...Object.keys(within), 'factor', 'type', 'rope_scaling', 'layer_types']
      for (let change = random.int(1, 2); change > 0; change--) {
        within[random.pick(fields)] = random.pick(values)
      }
      let rope: ReturnType<typeof ropeFrequencies> | undefined
      const code = await codeOf(() => {
        rope = ropeFrequencies(parseConfig(config).ropes[0]!)
      })
      expect({ seed, i, config, refused: refusals.includes(code) }).toMatchObject({ refused: true })
      if (rope === undefined) continue
      read++
      expect([...rope.inverseFrequencies].every((x) => x >= 0 && x <= 1)).toBe(true)
      expect(rope.inverseFrequencies.some((x) => x > 0)).toBe(true)
    }
    expect(read).toBeGreaterThan(20)
  })
})

function headerFile(header: string | Uint8Array, dataSize = 0): string {
  const json = Buffer.from(header)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  const path = join(temporaryFolder(), 'model.safetensors')
  writeFileSync(path, Buffer.concat([length, json, Buffer.alloc(dataSize)]))
  return path
}

async function refusedQuickly(path: string, message: RegExp): Promise<void> {
  const start = performance.now()
  const error = await readHeader(path).catch((thrown) => thrown)
  expect(performance.now() - start).toBeLessThan(1500)
  expect(error).toMatchObject({ code: 'HOGWILD_INVALID_MODEL' })
  expect(error.message).toMatch(message)
  expect(error.message.length).toBeLessThan(400)
}

describe('a header of a safetensors file', () => {
  test('with any byte changed', async () => {
    const bytes = readFileSync(join(fixture('llama'), 'model.safetensors'))
    const path = join(temporaryFolder(), 'model.safetensors')
    const seed = 2
    const random = new Random(seed)
    const headerEnd = 8 + Number(bytes.readBigUInt64LE())
    for (let i = 0; i < 300; i++) {
      const changed = Buffer.from(bytes)
      changed[random.int(0, headerEnd - 1)] = random.pick([
        ...Buffer.from('{}[]:",0-9\\eN '),
        0,
        255,
      ])
      writeFileSync(path, random.chance(0.1) ? changed.subarray(0, random.int(0, 3000)) : changed)
      const code = await codeOf(() => readHeader(path))
      expect({ seed, i, refused: refusals.includes(code) }).toMatchObject({ refused: true })
    }
  })

  const one = (patch: object) =>
    JSON.stringify({ x: { dtype: 'F32', shape: [0], data_offsets: [0, 0], ...patch } })
  test.each<[string, () => string, RegExp]>([
    [
      '400,000 dimensions',
      () => headerFile(one({ shape: Array(400_000).fill(2 ** 53 - 1) })),
      /400000 dimensions; at most 8/,
    ],
    ['9 dimensions', () => headerFile(one({ shape: Array(9).fill(0) })), /9 dimensions/],
    [
      'a name of 12 million characters',
      () => headerFile(`{"${'\\n'.repeat(6e6)}":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}`),
      /does not fill 0 bytes/,
    ],
    [
      'a dtype of a million characters',
      () => headerFile(one({ dtype: 'F'.repeat(1e6), data_offsets: [0, 1] })),
      /not within/,
    ],
    ['a million brackets', () => headerFile('['.repeat(1e6)), /nested deeper/],
    ['16 MB and a byte', () => headerFile(' '.repeat(2 ** 24 + 1)), /at most 16777216/],
    ['bytes that no tensor has', () => headerFile(one({}), 4), /no tensor has bytes 0 to 4/],
    [
      'a hole',
      () => headerFile(one({ shape: [1], data_offsets: [4, 8] }), 8),
      /no tensor has bytes 0 to 4/,
    ],
    [
      'a key of an entry twice',
      () => headerFile(one({}).replace('{"d', '{"dtype":"F16","d')),
      /"dtype" occurs twice/,
    ],
    ['a note twice', () => headerFile('{"__metadata__":{"a":"1","a":"2"}}'), /"a" occurs twice/],
  ])('with %s', async (_, make, message) => {
    await refusedQuickly(make(), message)
  })

  test('of 50,000 tensors is read', async () => {
    const entries = Array.from(
      { length: 50_000 },
      (_, i) => `"t${i}":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}`,
    )
    const start = performance.now()
    expect((await readHeader(headerFile(`{${entries.join(',')}}`))).size).toBe(50_000)
    expect(performance.now() - start).toBeLessThan(3000)
  })
})

test('a tensor that two files hold', async () => {
  const folder = temporaryFolder()
  const entry = JSON.stringify({ x: { dtype: 'F32', shape: [0], data_offsets: [0, 0] } })
  for (const file of ['a.safetensors', 'b.safetensors']) {
    writeFileSync(join(folder, file), readFileSync(headerFile(entry)))
  }
  const index = { weight_map: { x: 'a.safetensors', y: 'b.safetensors' } }
  writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify(index))
  await expect(readTensors(folder)).rejects.toThrow(/both hold "x"/)
})

describe('ropeFrequencies', () => {
  const good = { type: 'default', rotaryDim: 8, theta: 1e4 }
  const yarn = { ...good, type: 'yarn', factor: 4, originalMaxPositions: 64 }
  test.each<[unknown, RegExp]>([
    [undefined, /config\.type/],
    [5, /config\.type/],
    [{ ...good, type: 'longrope' }, /config\.type/],
    [{ ...good, rotaryDim: 7 }, /rotaryDim/],
    [{ ...good, rotaryDim: 0 }, /rotaryDim/],
    [{ ...good, rotaryDim: 2 ** 30 }, /rotaryDim/],
    [{ ...good, theta: 1 }, /theta/],
    [{ ...good, theta: Number.NaN }, /theta/],
    [{ ...good, theta: '10000' }, /theta/],
    [{ ...good, factor: 1 }, /"factor"/],
    [{ ...good, type: 'linear' }, /factor/],
    [{ ...good, type: 'linear', factor: 0 }, /factor/],
    [{ ...yarn, type: 'llama3', lowFreqFactor: 4, highFreqFactor: 1 }, /highFreqFactor/],
    [{ ...yarn, originalMaxPositions: 0.5 }, /originalMaxPositions/],
    [{ ...yarn, betaFast: 0 }, /betaFast/],
    [{ ...yarn, attentionFactor: Infinity }, /attentionFactor/],
    [{ ...yarn, truncate: 'no' }, /truncate/],
    [{ ...yarn, mScale: 1 }, /"mScale"/],
  ])('refuses %j', async (config, message) => {
    const call = () => ropeFrequencies(config as never)
    expect(call).toThrow(message)
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})
