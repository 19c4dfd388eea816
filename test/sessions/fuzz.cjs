// Damaged files of blocks: each is refused with an error of ours, or gives blocks that can be used; then nothing of it
// stays. Half of them have the hash of their head made right again, so that what comes behind it is reached.
// `npm run test:long -- sessions` makes many, test/session-fuzz.test.ts some.
//
//     node test/sessions/fuzz.cjs SEED COUNT
//
// Prints JSON: { inputs, read, refused, faults }.
'use strict'
const { createHash } = require('node:crypto')
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { createCache, ropeFrequencies } = require('../../dist/index.js')

/** An input that takes longer has hung. */
const HANG_MS = 5000
const CODES = new Set(['HOGWILD_INVALID_SESSION', 'HOGWILD_UNSUPPORTED', 'HOGWILD_OUT_OF_PAGES'])
const [LAYERS, HEADS, DIM] = [2, 1, 8]

function generator(seed) {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    next,
    below: (n) => Math.floor(next() * n),
    pick: (list) => list[Math.floor(next() * list.length)],
  }
}

const openCache = () =>
  createCache({
    ...{ layers: LAYERS, kvHeads: HEADS, headDim: DIM, capacity: 4096, device: 'cpu' },
    rope: ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: DIM }),
    dtype: { keys: 'f16', values: 'int8' },
  })

async function append(block, tokens) {
  const pass = block.cache.beginPass([{ view: { blocks: [block] }, tokens }])
  const floats = new Float32Array(tokens * HEADS * DIM).fill(0.25)
  for (let layer = 0; layer < LAYERS; layer++) await pass.append(layer, floats, floats)
  pass.commit()
}

/** Blocks that share pages, with holes and parts of others. */
async function writeGood(file) {
  const cache = openCache()
  const [a, b] = [cache.createBlock(), cache.createBlock()]
  await append(a, 100)
  const c = a.fork()
  await append(c, 5)
  await append(b, 70)
  b.forget(3, 60)
  b.insert(4, a)
  a.truncate(80)
  await cache.export([a, b, c, cache.createBlock()], file, { data: { some: ['names', 1] } })
  await cache.close()
  return readFileSync(file)
}

const NUMBERS = [
  0n,
  1n,
  2n,
  63n,
  64n,
  65n,
  128n,
  2n ** 31n,
  2n ** 32n,
  2n ** 40n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
]

function damage(good, random) {
  const bytes = Buffer.from(good)
  const header = Number(bytes.readBigUInt64LE(16))
  const index = Number(bytes.readBigUInt64LE(24))
  const headEnd = 40 + header + index
  const regions = [
    [0, 40],
    [40, 40 + header],
    [40 + header, headEnd],
    [40 + header, headEnd], // the index has the most to be read wrong
    [headEnd, bytes.length],
  ]
  for (let n = 1 + random.below(3); n > 0; n--) {
    const [begin, end] = random.pick(regions)
    const at = begin + random.below(end - begin)
    switch (random.below(4)) {
      case 0:
        bytes[at] ^= 1 << random.below(8)
        break
      case 1:
        bytes[at] = random.below(256)
        break
      case 2: {
        const aligned = begin + Math.floor((at - begin) / 8) * 8
        if (aligned + 8 <= bytes.length) bytes.writeBigUInt64LE(random.pick(NUMBERS), aligned)
        break
      }
      case 3: {
        // A piece of the same part stands where another one stood.
        const length = Math.min(1 + random.below(32), end - at)
        const from = begin + random.below(end - begin - length + 1)
        good.copy(bytes, at, from, from + length)
      }
    }
  }
  if (random.below(2) === 0) {
    const hash = createHash('sha256').update(bytes.subarray(0, headEnd)).digest()
    hash.copy(bytes, headEnd)
  }
  return random.below(10) === 0 ? bytes.subarray(0, random.below(bytes.length + 1)) : bytes
}

/** What can be done to blocks is done to these. */
async function use(blocks, random) {
  for (const block of blocks) {
    const { length } = block
    if (block.tokens().length !== length) throw new Error('tokens')
    block.read(random.below(LAYERS))
    if (length > 600) continue
    if (random.below(2) === 0) block.truncate(random.below(length + 1))
    await append(block, 1 + random.below(70))
    if (random.below(3) === 0) await block.compact()
  }
  for (const block of blocks) block.close()
}

async function main([seed, count]) {
  const random = generator(Number(seed))
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-fuzz-'))
  const result = { inputs: 0, read: 0, refused: {}, faults: [] }
  const cache = openCache()
  try {
    const good = await writeGood(path.join(folder, 'good'))
    const file = path.join(folder, 'bad')
    for (let i = 0; i < Number(count); i++) {
      const bytes = damage(good, random)
      writeFileSync(file, bytes)
      const begin = performance.now()
      let code
      try {
        const { blocks } = await cache.import(file)
        result.read++
        await use(blocks, random)
      } catch (error) {
        code = error.code ?? `no code: ${error}`
        result.refused[code] = (result.refused[code] ?? 0) + 1
      }
      result.inputs++
      const { pages, freePages } = cache.stats
      const late = performance.now() - begin > HANG_MS
      const wrong = code !== undefined && !CODES.has(code)
      if (late || wrong || pages !== freePages) {
        result.faults.push({ input: i, code, late, lost: pages - freePages })
        if (pages !== freePages) break
      }
    }
  } finally {
    await cache.close()
    rmSync(folder, { recursive: true })
  }
  console.log(JSON.stringify(result))
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error)
  process.exit(1)
})
