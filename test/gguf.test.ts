import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import {
  type Gguf,
  type LocatedValue,
  readGguf,
  readGgufNumbers,
  readGgufStrings,
  readGgufText,
} from '../lib/sources/gguf'
import { temporaryFolder } from './fixtures'
import {
  array,
  type GgufWriterTensor,
  ggufBytes,
  type Metadata,
  string,
  uint32,
  type Value,
} from './gguf-writer'

const root = join(__dirname, 'fixtures', 'gguf')

function write(bytes: Uint8Array, name = 'model.gguf'): string {
  const path = join(temporaryFolder(), name)
  writeFileSync(path, bytes)
  return path
}

const zeros = (name: string, shape: number[], type = 0, bytes?: number): GgufWriterTensor => {
  const size = bytes ?? 4 * shape.reduce((product, n) => product * n, 1)
  return { name, shape, type, bytes: size, read: () => new Uint8Array(size) }
}

async function values({ metadata }: Gguf): Promise<Record<string, unknown>> {
  const all: Record<string, unknown> = {}
  for (const [key, value] of metadata) {
    if (typeof value !== 'object') all[key] = value
    else if (value.type === 'strings') all[key] = await readGgufStrings(value)
    else all[key] = await readGgufNumbers(value)
  }
  return all
}

interface Described {
  metadata: Record<string, unknown>
  tensors: {
    name: string
    path: string
    type: string
    shape: number[]
    offset: number
    bytes: number
    sum: number
  }[]
}

// A second opinion: what the Python package `gguf` wrote and reads (fixtures/gguf-files.py).
const described = readdirSync(root).filter((file) => file.endsWith('.json'))

test('there are files', () => {
  expect(described.length).toBeGreaterThanOrEqual(4)
})

test.each(described)('%s: values and tensors as the Python package reads them', async (file) => {
  const expected = JSON.parse(readFileSync(join(root, file), 'utf8')) as Described
  const path = join(root, file.replace('.json', '.gguf'))
  const gguf = await readGguf(path)
  const numbers = Object.entries(expected.metadata).map(([key, value]) => {
    const flags = Array.isArray(value) && typeof value[0] === 'boolean'
    return [key, flags ? value.map(Number) : value]
  })
  expect(await values(gguf)).toEqual(Object.fromEntries(numbers))
  const found = await Promise.all(
    [...gguf.tensors.values()].map(async ({ name, path, format, shape, offset, bytes }) => {
      const data = (await readFile(path)).subarray(offset, offset + bytes)
      const sum = data.reduce((total, byte) => total + byte, 0)
      return { name, path: basename(path), type: format.toUpperCase(), shape, offset, bytes, sum }
    }),
  )
  expect(found).toEqual(expected.tensors)
})

describe('what is read', () => {
  test('integers beyond 2^53 are kept as bigint, long texts and arrays are located only', async () => {
    const long = 'é'.repeat(40_000)
    const bytes = await ggufBytes([
      ['a', { type: 'uint64', value: 2 ** 63 }],
      ['b', string(long)],
      ['c', array('string', ['x', 'y'])],
      ['d', uint32(7)],
    ])
    const { metadata } = await readGguf(write(bytes))
    expect(metadata.get('a')).toBe(2n ** 63n)
    const located = metadata.get('b') as LocatedValue
    expect(located).toMatchObject({ type: 'string', count: 1 })
    expect(await readGgufText(located, 100_000)).toBe(long)
    await expect(readGgufText(located, 1000)).rejects.toThrow(/text|value of 80000 bytes/)
    expect(await readGgufStrings(metadata.get('c') as LocatedValue)).toEqual(['x', 'y'])
    expect(metadata.get('d')).toBe(7)
  })

  test('tensors beyond 4 GiB', async () => {
    const columns = 2 ** 20
    const bytes = await ggufBytes([], [zeros('a', [1200, columns], 0, 64), zeros('b', [8])])
    // The first tensor is as large as its shape says, in a file with a hole.
    const offset = bytes.indexOf(Buffer.from('b')) + 1 + 4 + 8 + 4
    const size = 4 * 1200 * columns
    bytes.writeBigUInt64LE(BigInt(size), offset)
    const dataStart = bytes.length - 64 - 32
    const path = write(bytes)
    const file = await open(path, 'r+')
    await file.write(Buffer.from('last'), 0, 4, dataStart + size + 28)
    await file.close()
    const { tensors } = await readGguf(path)
    expect(tensors.get('a')).toMatchObject({ offset: dataStart, bytes: size })
    expect(tensors.get('b')).toMatchObject({ offset: dataStart + size, bytes: 32 })
    expect(size).toBeGreaterThan(2 ** 32)
  })

  test('is stopped by a signal', async () => {
    const signal = AbortSignal.abort(new Error('enough'))
    await expect(readGguf(join(root, 'values.gguf'), { signal })).rejects.toMatchObject({
      code: 'HOGWILD_ABORTED',
    })
  })
})

const one = zeros('one', [2, 32])
const bytesOf =
  (
    metadata: Metadata = [],
    tensors: readonly GgufWriterTensor[] = [],
    edit: (bytes: Buffer) => unknown = () => {},
  ) =>
  async () => {
    const bytes = await ggufBytes(metadata, tensors)
    const edited = edit(bytes)
    return edited instanceof Uint8Array ? (edited as Buffer) : bytes
  }
/** With another 64-bit number `behind` bytes after the name of the tensor. */
const patched = (name: string, behind: number, value: bigint) =>
  bytesOf([], [one, zeros('two', [2, 32])], (bytes) => {
    bytes.writeBigUInt64LE(value, bytes.indexOf(name) + name.length + behind)
    return bytes
  })
const FIRST_DIMENSION = 4
const OFFSET = 4 + 8 + 8 + 4

describe('refused', () => {
  test.each<[string, () => Promise<Buffer>, RegExp, string?]>([
    ['an empty file', async () => Buffer.alloc(0), /ends at byte 0, within its header/],
    ['another format', async () => Buffer.from('PK\x03\x04'.padEnd(64)), /is not a GGUF file/],
    ['a short text', async () => Buffer.from('hello\n'), /is not a GGUF file/],
    [
      'version 1',
      bytesOf([], [], (b) => b.writeUInt32LE(1, 4)),
      /GGUF version 1; supported: versions 2 and 3/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'big-endian numbers',
      bytesOf([], [], (b) => b.writeUInt32BE(3, 4)),
      /big-endian GGUF file; supported/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'more tensors than bytes',
      bytesOf([], [], (b) => b.writeBigUInt64LE(2n ** 40n, 8)),
      /promises 1099511627776 tensors, and \d+ bytes follow/,
    ],
    [
      'more values than bytes',
      bytesOf([], [], (b) => b.writeBigUInt64LE(2n ** 64n - 1n, 16)),
      /promises 18446744073709552000 values/,
    ],
    [
      'a value twice',
      bytesOf([
        ['a', uint32(1)],
        ['a', uint32(1)],
      ]),
      /has "a" twice/,
    ],
    [
      'a value of no type',
      bytesOf([['key', uint32(1)]], [], (b) => b.writeUInt32LE(13, b.indexOf('key') + 3)),
      /"key" has the type 13, which GGUF does not have/,
    ],
    [
      'an array of arrays',
      bytesOf([['key', array('uint32', [1])]], [], (b) => b.writeUInt32LE(9, b.indexOf('key') + 7)),
      /"key" has the type 9/,
    ],
    [
      'an array that is longer than the file',
      bytesOf([['key', array('float64', [1])]], [], (b) =>
        b.writeUInt32LE(2 ** 31, b.indexOf('key') + 11),
      ),
      /promises 2147483648 elements of "key"/,
    ],
    [
      'a text that is longer than the file',
      bytesOf([['key', string('text')]], [], (b) => b.writeUInt32LE(2 ** 31, b.indexOf('key') + 7)),
      /promises 2147483648 bytes of "key"/,
    ],
    [
      'a text of an array that is longer than the file',
      bytesOf([['key', array('string', ['text'])]], [], (b) =>
        b.writeUInt32LE(99, b.indexOf('text') - 8),
      ),
      /promises 99 bytes of a text/,
    ],
    [
      'a text that is no UTF-8',
      bytesOf([['key', string('text')]], [], (b) =>
        b.fill(0xff, b.indexOf('text'), b.indexOf('text') + 1),
      ),
      /not UTF-8/,
    ],
    [
      'a long name',
      bytesOf([['k'.repeat(2000), uint32(1)]], [one]),
      /promises 2000 bytes of a name/,
    ],
    [
      'an alignment of 24',
      bytesOf([['general.alignment', uint32(24)]]),
      /alignment" = 24, which is no power of two/,
    ],
    ['an alignment of 0', bytesOf([['general.alignment', uint32(0)]]), /alignment" = 0/],
    ['an alignment in words', bytesOf([['general.alignment', string('32')]]), /alignment" = "32"/],
    ['a tensor twice', bytesOf([], [one, one]), /tensor "one": there are two of this name/],
    ['no dimensions', bytesOf([], [zeros('one', [])]), /"one": 0 dimensions; 1 to 4 are read/],
    ['five dimensions', bytesOf([], [zeros('one', [1, 1, 1, 1, 1])]), /"one": 5 dimensions/],
    [
      'no elements',
      patched('one', FIRST_DIMENSION, 0n),
      /"one": a shape without elements, \[2,0\]/,
    ],
    [
      'a dimension of 2^64 - 1',
      patched('one', FIRST_DIMENSION, 2n ** 64n - 1n),
      /are not within the/,
    ],
    [
      'an offset beyond the file',
      patched('two', OFFSET, 2n ** 40n),
      /"two": 256 bytes from 1099511627904 on are not within/,
    ],
    [
      'an offset of 2^64 - 32',
      patched('two', OFFSET, 2n ** 64n - 32n),
      /"two": 256 bytes from 1844674407370955\d+ on/,
    ],
    ['an odd offset', patched('two', OFFSET, 9n), /"two": offset 9 is no multiple of 32/],
    ['tensors that overlap', patched('two', OFFSET, 224n), /"two": it overlaps "one"/],
    [
      'half a block',
      bytesOf([], [zeros('one', [2, 48], 8)]),
      /"one": rows of 48 elements are no whole blocks of Q8_0/,
    ],
    [
      'a K-quant of 32 columns',
      bytesOf([], [zeros('one', [2, 32], 12)]),
      /no whole blocks of Q4_K/,
    ],
    [
      'a type of the future',
      bytesOf([], [zeros('one', [2, 32], 99)]),
      /"one" has the type 99, which is not known/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'data that are cut',
      bytesOf([], [one], (b) => b.subarray(0, -1)),
      /"one": 256 bytes from \d+ on are not within/,
    ],
  ])('%s', async (_, make, message, code = 'HOGWILD_INVALID_MODEL') => {
    const error = await readGguf(write(await make())).catch((thrown) => thrown)
    expect(error).toMatchObject({ code })
    expect(error.message).toMatch(message)
  })
})

describe('split files', () => {
  const part = (no: number, count: number, extra: [string, Value][] = [], name = `t${no}`) =>
    ggufBytes(
      [['split.no', uint32(no)], ['split.count', uint32(count)], ...extra],
      [zeros(name, [4])],
    )
  const total = (n: number): [string, Value] => ['split.tensors.count', uint32(n)]
  const folderOf = (files: Record<string, Buffer>) => {
    const folder = temporaryFolder()
    for (const [name, bytes] of Object.entries(files)) writeFileSync(join(folder, name), bytes)
    return folder
  }

  test.each<[string, () => Promise<Record<string, Buffer>>, string, RegExp]>([
    [
      'a part is missing',
      async () => ({ 'm-00001-of-00002.gguf': await part(0, 2, [total(2)]) }),
      'm-00001-of-00002.gguf',
      /has 2 parts, but there is no .*m-00002-of-00002\.gguf/,
    ],
    [
      'not the first part',
      async () => ({ 'm-00002-of-00002.gguf': await part(1, 2, [total(2)]) }),
      'm-00002-of-00002.gguf',
      /is not the first part; that is m-00001-of-00002\.gguf/,
    ],
    [
      'another name',
      async () => ({ 'm.gguf': await part(0, 2, [total(2)]) }),
      'm.gguf',
      /is one of 2 parts, which are named like model-00001-of-0000N\.gguf/,
    ],
    [
      'parts of two models',
      async () => ({
        'm-00001-of-00002.gguf': await part(0, 2, [total(2)]),
        'm-00002-of-00002.gguf': await part(1, 3),
      }),
      'm-00001-of-00002.gguf',
      /is not part 2 of 2/,
    ],
    [
      'a tensor in two parts',
      async () => ({
        'm-00001-of-00002.gguf': await part(0, 2, [total(2)], 'same'),
        'm-00002-of-00002.gguf': await part(1, 2, [], 'same'),
      }),
      'm-00001-of-00002.gguf',
      /both hold "same"/,
    ],
    [
      'too few tensors',
      async () => ({
        'm-00001-of-00002.gguf': await part(0, 2, [total(3)]),
        'm-00002-of-00002.gguf': await part(1, 2),
      }),
      'm-00001-of-00002.gguf',
      /promises 3 tensors, and all parts have 2/,
    ],
    [
      'a thousand and one parts',
      async () => ({ 'm-00001-of-01001.gguf': await part(0, 1001) }),
      'm-00001-of-01001.gguf',
      /"split.count" = 1001; at most 1000 parts are read/,
    ],
    [
      'a name of many parts, and a file that says nothing of them',
      async () => ({ 'm-00001-of-00002.gguf': await ggufBytes([], [zeros('a', [4])]) }),
      'm-00001-of-00002.gguf',
      /says nothing of its other parts/,
    ],
  ])('%s', async (_, make, name, message) => {
    const error = await readGguf(join(folderOf(await make()), name)).catch((thrown) => thrown)
    expect(error).toMatchObject({ code: 'HOGWILD_INVALID_MODEL' })
    expect(error.message).toMatch(message)
  })
})
