// Damaged GGUF files: each is read or refused with an error of ours, at once, and nothing is allocated that is larger
// than the file. `npm run test:long -- gguf` makes 150,000 of them, test/gguf-fuzz.test.ts some.
//
//     node test/gguf/fuzz.cjs SEED COUNT
//
// The files to begin with are those of test/fixtures/gguf. Prints JSON: { inputs, read, refused, faults }.
'use strict'
const { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const gguf = require('../../dist/sources/gguf.js')

/** An input that takes longer has hung. */
const HANG_MS = 5000
const CODES = new Set(['HOGWILD_INVALID_MODEL', 'HOGWILD_UNSUPPORTED'])

const corpus = path.join(__dirname, '..', 'fixtures', 'gguf')
const seeds = readdirSync(corpus)
  .filter((name) => name.endsWith('.gguf'))
  .map((name) => ({ name, bytes: readFileSync(path.join(corpus, name)) }))

function generator(seed) {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    below: (n) => Math.floor(next() * n),
    pick: (list) => list[Math.floor(next() * list.length)],
  }
}

/** Numbers that a length, a count or an offset must not be trusted with. */
const NUMBERS = [
  ...[
    0n,
    1n,
    2n,
    3n,
    7n,
    8n,
    9n,
    31n,
    32n,
    33n,
    255n,
    256n,
    65535n,
    65536n,
    2n ** 24n,
    2n ** 31n - 1n,
  ],
  ...[
    2n ** 31n,
    2n ** 32n - 1n,
    2n ** 32n,
    2n ** 40n,
    2n ** 53n,
    2n ** 63n - 1n,
    2n ** 63n,
    2n ** 64n - 1n,
  ],
]

const MUTATIONS = [
  function flipBit(bytes, random) {
    bytes[random.below(bytes.length)] ^= 1 << random.below(8)
    return bytes
  },
  function setByte(bytes, random) {
    bytes[random.below(bytes.length)] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.below(256)])
    return bytes
  },
  function set32(bytes, random) {
    if (bytes.length < 4) return bytes
    bytes.writeUInt32LE(Number(random.pick(NUMBERS) % 2n ** 32n), random.below(bytes.length - 3))
    return bytes
  },
  function set64(bytes, random) {
    if (bytes.length < 8) return bytes
    bytes.writeBigUInt64LE(random.pick(NUMBERS), random.below(bytes.length - 7))
    return bytes
  },
  // Counts, which all else depends on.
  function setCount(bytes, random) {
    if (bytes.length >= 24) bytes.writeBigUInt64LE(random.pick(NUMBERS), random.pick([8, 16]))
    return bytes
  },
  function cut(bytes, random) {
    return bytes.subarray(0, random.below(bytes.length + 1))
  },
  function remove(bytes, random) {
    const [from, length] = [random.below(bytes.length), 1 + random.below(16)]
    return Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + length)])
  },
  function repeat(bytes, random) {
    const [from, to, length] = [
      random.below(bytes.length),
      random.below(bytes.length),
      1 + random.below(64),
    ]
    return Buffer.concat([
      bytes.subarray(0, to),
      bytes.subarray(from, from + length),
      bytes.subarray(to),
    ])
  },
]

function* inputs(random, count) {
  for (let i = 0; i < count; i++) {
    const { name, bytes } = random.pick(seeds)
    let damaged = Buffer.from(bytes)
    for (let n = 1 + random.below(3); n > 0 && damaged.length > 0; n--) {
      damaged = random.pick(MUTATIONS)(damaged, random)
    }
    yield { name, bytes: damaged }
  }
}

/** Longer than any header of the files. */
const HEADER_BYTES = 2048

/** Each file cut at each byte of its header, and at some of its data. */
function* cuts() {
  for (const { name, bytes } of seeds) {
    for (let end = 0; end < bytes.length; end += end < HEADER_BYTES ? 1 : 16) {
      yield { name, bytes: bytes.subarray(0, end) }
    }
  }
}

/** The header, and all that it says where something lies. */
async function readAll(file) {
  const { metadata } = await gguf.readGguf(file)
  for (const value of metadata.values()) {
    if (typeof value !== 'object') continue
    if (value.type === 'strings') await gguf.readGgufStrings(value)
    else if (value.type === 'numbers') await gguf.readGgufNumbers(value)
    else await gguf.readGgufText(value, 2 ** 20)
  }
}

function isPart(name) {
  return name.startsWith('split')
}

/** The largest buffer since it was set to 0. */
let largest = 0
const allocate = Buffer.alloc
Buffer.alloc = (size, ...rest) => {
  largest = Math.max(largest, size)
  return allocate(size, ...rest)
}

async function main(seed, count) {
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-fuzz-'))
  const result = { inputs: 0, read: 0, refused: {}, faults: [] }
  // The other parts of a split file are as they were.
  for (const { name, bytes } of seeds) writeFileSync(path.join(folder, name), bytes)
  const largestPart = Math.max(...seeds.map(({ name, bytes }) => (isPart(name) ? bytes.length : 0)))
  try {
    for (const { name, bytes } of count > 0 ? inputs(generator(seed), count) : cuts()) {
      const file = path.join(folder, name)
      const sizeClass = Math.max(bytes.length, isPart(name) ? largestPart : 0)
      writeFileSync(file, bytes)
      result.inputs++
      largest = 0
      const begin = performance.now()
      const error = await readAll(file).catch((thrown) => thrown)
      const fault =
        (error !== undefined && !CODES.has(error?.code) && `${error?.stack ?? error}`) ||
        (performance.now() - begin > HANG_MS && `took ${performance.now() - begin} ms`) ||
        (largest > sizeClass && `allocated ${largest} bytes for a file of ${bytes.length}`)
      if (fault) result.faults.push({ seed, input: result.inputs, name, fault })
      if (error === undefined) result.read++
      else result.refused[error.code] = (result.refused[error.code] ?? 0) + 1
      if (isPart(name)) writeFileSync(file, seeds.find((seed) => seed.name === name).bytes)
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
  console.log(JSON.stringify(result))
}

void main(Number(process.argv[2] ?? 1), Number(process.argv[3] ?? 0))
