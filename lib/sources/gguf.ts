// Reads the headers of GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3:
// metadata, and where each tensor lies. Files come from strangers, so every count and length is checked against the
// bytes that are left before anything of that size is allocated. Arrays and long texts are located only; they are
// read when somebody asks for them.
//
// Why not a library: @huggingface/gguf 0.4.6 accepts files that end within their header or data, checks no sizes,
// and reads all arrays.

import { basename, dirname, join } from 'node:path'
import { HogwildError } from '../errors'
import { describe } from '../validate'
import { damaged, decodeText, exists, MAX_BYTES, type RegularFile, withFile } from './files'

/** ggml's types of tensors by their numbers: the name, elements per block, bytes per block. */
const TENSOR_TYPES = new Map<number, readonly [name: string, elements: number, bytes: number]>([
  [0, ['F32', 1, 4]],
  [1, ['F16', 1, 2]],
  [2, ['Q4_0', 32, 18]],
  [3, ['Q4_1', 32, 20]],
  [6, ['Q5_0', 32, 22]],
  [7, ['Q5_1', 32, 24]],
  [8, ['Q8_0', 32, 34]],
  [9, ['Q8_1', 32, 36]],
  [10, ['Q2_K', 256, 84]],
  [11, ['Q3_K', 256, 110]],
  [12, ['Q4_K', 256, 144]],
  [13, ['Q5_K', 256, 176]],
  [14, ['Q6_K', 256, 210]],
  [15, ['Q8_K', 256, 292]],
  [16, ['IQ2_XXS', 256, 66]],
  [17, ['IQ2_XS', 256, 74]],
  [18, ['IQ3_XXS', 256, 98]],
  [19, ['IQ1_S', 256, 50]],
  [20, ['IQ4_NL', 32, 18]],
  [21, ['IQ3_S', 256, 110]],
  [22, ['IQ2_S', 256, 82]],
  [23, ['IQ4_XS', 256, 136]],
  [24, ['I8', 1, 1]],
  [25, ['I16', 1, 2]],
  [26, ['I32', 1, 4]],
  [27, ['I64', 1, 8]],
  [28, ['F64', 1, 8]],
  [29, ['IQ1_M', 256, 56]],
  [30, ['BF16', 1, 2]],
  [34, ['TQ1_0', 256, 54]],
  [35, ['TQ2_0', 256, 66]],
  [39, ['MXFP4', 32, 17]],
  [40, ['NVFP4', 64, 36]],
  [41, ['Q1_0', 128, 18]],
])

/** Types of metadata by their numbers: bytes of a value and how it is read. */
const SCALARS: readonly (readonly [bytes: number, read: (data: Buffer, at: number) => Scalar])[] = [
  [1, (data, at) => data.readUInt8(at)],
  [1, (data, at) => data.readInt8(at)],
  [2, (data, at) => data.readUInt16LE(at)],
  [2, (data, at) => data.readInt16LE(at)],
  [4, (data, at) => data.readUInt32LE(at)],
  [4, (data, at) => data.readInt32LE(at)],
  [4, (data, at) => data.readFloatLE(at)],
  [1, (data, at) => data.readUInt8(at) !== 0],
]
const WIDE_SCALARS: Record<number, (data: Buffer, at: number) => Scalar> = {
  10: (data, at) => toNumber(data.readBigUInt64LE(at)),
  11: (data, at) => toNumber(data.readBigInt64LE(at)),
  12: (data, at) => data.readDoubleLE(at),
}
const STRING = 8
const ARRAY = 9

const WINDOW_BYTES = 2 ** 18
/** Most bytes before the data; the arrays of the largest vocabularies take 20 MiB. */
const MAX_HEADER_BYTES = 2 * MAX_BYTES.tokenizer
/** Longer texts are located only. */
const MAX_EAGER_TEXT = 2 ** 16
const MAX_NAME_BYTES = 1024
/** Most values, and most tensors. */
const MAX_COUNT = 2 ** 16
const MAX_RANK = 4
const MAX_PARTS = 1000

type Scalar = number | bigint | boolean

/** An array or a long text that has not been read. */
export interface LocatedValue {
  readonly path: string
  /** 'string': one text. */
  readonly type: 'strings' | 'numbers' | 'string'
  /** Elements; 1 for a text. */
  readonly count: number
  /** The number of the elements' type. */
  readonly element: number
  /** [begin, end) in the file. */
  readonly begin: number
  readonly end: number
}

/** Integers beyond 2^53 are bigint. */
export type GgufValue = Scalar | string | LocatedValue

export interface GgufTensor {
  name: string
  /** The file that holds it. */
  path: string
  /** Bytes from the start of the file. */
  offset: number
  bytes: number
  /** In lower case, e.g. "q4_k". */
  format: string
  /** The fastest index last. */
  shape: readonly number[]
}

export interface Gguf {
  path: string
  metadata: ReadonlyMap<string, GgufValue>
  tensors: ReadonlyMap<string, GgufTensor>
}

interface Options {
  signal?: AbortSignal | undefined
}

/**
 * The header of a file, or those of all parts of a split one: then `path` is the first part, whose metadata counts.
 *
 * Throws HOGWILD_INVALID_MODEL for anything that the format forbids, naming file and tensor, HOGWILD_UNSUPPORTED for
 * another version and tensors of unknown types, HOGWILD_ABORTED.
 */
export async function readGguf(path: string, options: Options = {}): Promise<Gguf> {
  const first = await readPart(path, options)
  const paths = partPaths(first)
  const tensors = new Map(first.tensors)
  for (const [no, part] of paths.entries()) {
    if (no === 0) continue
    if (!(await exists(part)))
      throw damaged(path, `has ${paths.length} parts, but there is no ${part}`)
    const { metadata, tensors: more } = await readPart(part, options)
    if (metadata.get('split.no') !== no || metadata.get('split.count') !== paths.length) {
      throw damaged(part, `is not part ${no + 1} of ${paths.length}`)
    }
    for (const [name, tensor] of more) {
      const other = tensors.get(name)
      if (other !== undefined) throw damaged(part, `and ${other.path} both hold ${describe(name)}`)
      tensors.set(name, tensor)
    }
  }
  const promised = first.metadata.get('split.tensors.count')
  if (paths.length > 1 && promised !== tensors.size) {
    throw damaged(path, `promises ${promised} tensors, and all parts have ${tensors.size}`)
  }
  return { ...first, tensors }
}

/** A text that was located or read. Throws HOGWILD_INVALID_MODEL, also where it is larger than `maxBytes`. */
export async function readGgufText(
  value: LocatedValue | string,
  maxBytes: number,
  options: Options = {},
): Promise<string> {
  if (typeof value === 'string') return value
  return decodeText(await readLocated(value, maxBytes, options), value.path)
}

/** The elements of an array of texts. Throws HOGWILD_INVALID_MODEL. */
export async function readGgufStrings(
  value: LocatedValue,
  options: Options = {},
): Promise<string[]> {
  return textsIn(await readGgufBytes(value, options), value.path)
}

/** An array as it lies in the file. Throws HOGWILD_INVALID_MODEL. */
export async function readGgufBytes(value: LocatedValue, options: Options = {}): Promise<Buffer> {
  return await readLocated(value, MAX_HEADER_BYTES, options)
}

/** The texts of an array as it lies in the file: each behind its length in 8 bytes. Throws HOGWILD_INVALID_MODEL. */
export function textsIn(bytes: Buffer, path: string): string[] {
  const texts: string[] = []
  for (let at = 0; at < bytes.length; ) {
    const begin = at + 8
    const end = begin + (begin <= bytes.length ? Number(bytes.readBigUInt64LE(at)) : Number.NaN)
    if (!(end <= bytes.length)) throw damaged(path, 'has changed while it was read')
    const text = bytes.toString('utf8', begin, end)
    // Checking each text for damage takes five times as long.
    texts.push(text.includes('\uFFFD') ? decodeText(bytes.subarray(begin, end), path) : text)
    at = end
  }
  return texts
}

/** The elements of an array of numbers; true is 1. Throws HOGWILD_INVALID_MODEL. */
export async function readGgufNumbers(
  value: LocatedValue,
  options: Options = {},
): Promise<number[]> {
  const bytes = await readLocated(value, MAX_HEADER_BYTES, options)
  const [size, read] = scalar(value.element) as ScalarType
  return Array.from({ length: value.count }, (_, i) => Number(read(bytes, i * size)))
}

async function readLocated(
  { path, begin, end }: LocatedValue,
  maxBytes: number,
  { signal }: Options,
): Promise<Buffer> {
  if (end - begin > maxBytes) {
    throw damaged(path, `has a value of ${end - begin} bytes; at most ${maxBytes} are read`)
  }
  return await withFile(path, (file) => file.read(begin, end - begin, signal))
}

/** Paths of all parts, the first one first; of a file that is not split, itself. */
function partPaths({ path, metadata }: Gguf): string[] {
  const count = metadata.get('split.count') ?? 1
  const name = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/.exec(basename(path))
  if (count === 0 || count === 1) {
    if (name !== null && Number(name[3]) > 1) throw damaged(path, 'says nothing of its other parts')
    return [path]
  }
  if (typeof count !== 'number' || !Number.isInteger(count) || count < 0 || count > MAX_PARTS) {
    throw damaged(
      path,
      `has "split.count" = ${describe(count)}; at most ${MAX_PARTS} parts are read`,
    )
  }
  const part = (no: number) =>
    `${name?.[1]}-${String(no + 1).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.gguf`
  if (name === null || Number(name[3]) !== count) {
    throw damaged(path, `is one of ${count} parts, which are named like model-00001-of-0000N.gguf`)
  }
  if (metadata.get('split.no') !== 0 || Number(name[2]) !== 1) {
    throw damaged(path, `is not the first part; that is ${part(0)}`)
  }
  return Array.from({ length: count }, (_, no) => join(dirname(path), part(no)))
}

async function readPart(path: string, { signal }: Options): Promise<Gguf> {
  return await withFile(path, async (file) => {
    const cursor = new Cursor(file, signal)
    await cursor.need(4)
    if (cursor.bytes(4).toString('latin1') !== 'GGUF') throw damaged(path, 'is not a GGUF file')
    await cursor.need(4)
    checkVersion(cursor.uint32(), path)
    await cursor.need(16)
    const tensorCount = cursor.count(MAX_COUNT, 'tensors', 25)
    const valueCount = cursor.count(MAX_COUNT, 'values', 13)
    const metadata = new Map<string, GgufValue>()
    for (let i = 0; i < valueCount; i++) {
      const key = await cursor.name()
      if (metadata.has(key)) throw damaged(path, `has ${describe(key)} twice`)
      metadata.set(key, await readValue(cursor, key))
    }
    const infos: TensorInfo[] = []
    for (let i = 0; i < tensorCount; i++) infos.push(await readTensorInfo(cursor))
    const alignment = checkAlignment(metadata.get('general.alignment') ?? 32, path)
    const dataStart = Math.ceil(cursor.position / alignment) * alignment
    const tensors = placeTensors(infos, { path, dataStart, alignment, fileSize: file.size })
    return { path, metadata, tensors }
  })
}

function checkVersion(version: number, path: string): void {
  if (version === 2 || version === 3) return
  // Read from the other end, a small number is a large one.
  const isBigEndian = version !== 0 && version % 2 ** 16 === 0
  throw new HogwildError(
    `${path} is ${isBigEndian ? 'a big-endian GGUF file' : `GGUF version ${version}`}; supported: versions 2 and 3, little-endian`,
    'HOGWILD_UNSUPPORTED',
  )
}

function checkAlignment(value: GgufValue, path: string): number {
  if (
    typeof value === 'number' &&
    value >= 1 &&
    value <= 2 ** 30 &&
    Number.isInteger(Math.log2(value))
  ) {
    return value
  }
  throw damaged(path, `has "general.alignment" = ${describe(value)}, which is no power of two`)
}

async function readValue(cursor: Cursor, key: string): Promise<GgufValue> {
  await cursor.need(4)
  const type = cursor.uint32()
  if (type === STRING) {
    await cursor.need(8)
    const length = cursor.count(Number.MAX_SAFE_INTEGER, `bytes of ${describe(key)}`, 1)
    return length <= MAX_EAGER_TEXT
      ? cursor.text(length)
      : locate(cursor, 'string', STRING, 1, length)
  }
  if (type === ARRAY) {
    await cursor.need(12)
    const element = cursor.uint32()
    const [size] = scalar(element) ?? [8]
    if (element !== STRING && scalar(element) === undefined) throw wrongType(cursor, key, element)
    const count = cursor.count(Number.MAX_SAFE_INTEGER, `elements of ${describe(key)}`, size)
    if (element !== STRING) return locate(cursor, 'numbers', element, count, count * size)
    const begin = cursor.position
    await cursor.skipStrings(count)
    return { path: cursor.path, type: 'strings', count, element, begin, end: cursor.position }
  }
  const kind = scalar(type)
  if (kind === undefined) throw wrongType(cursor, key, type)
  const [size, read] = kind
  await cursor.need(size)
  return read(cursor.bytes(size), 0)
}

function wrongType(cursor: Cursor, key: string, type: number): HogwildError {
  return damaged(cursor.path, `: ${describe(key)} has the type ${type}, which GGUF does not have`)
}

function locate(
  cursor: Cursor,
  type: LocatedValue['type'],
  element: number,
  count: number,
  bytes: number,
): LocatedValue {
  const begin = cursor.position
  cursor.skip(bytes)
  return { path: cursor.path, type, count, element, begin, end: begin + bytes }
}

type ScalarType = readonly [bytes: number, read: (data: Buffer, at: number) => Scalar]

function scalar(type: number): ScalarType | undefined {
  const wide = WIDE_SCALARS[type]
  return wide === undefined ? SCALARS[type] : [8, wide]
}

function toNumber(value: bigint): number | bigint {
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : value
}

/** As it stands in the header; the offset is from the start of the data. */
type TensorInfo = Omit<GgufTensor, 'path'>

async function readTensorInfo(cursor: Cursor): Promise<TensorInfo> {
  const name = await cursor.name()
  const wrong = (what: string) => damaged(cursor.path, `: tensor ${describe(name)}: ${what}`)
  await cursor.need(4)
  const rank = cursor.uint32()
  if (rank < 1 || rank > MAX_RANK) throw wrong(`${rank} dimensions; 1 to ${MAX_RANK} are read`)
  await cursor.need(8 * rank + 12)
  const shape = Array.from({ length: rank }, () => cursor.uint64()).reverse()
  const number = cursor.uint32()
  const offset = cursor.uint64()
  const type = TENSOR_TYPES.get(number)
  if (type === undefined) {
    throw new HogwildError(
      `${cursor.path}: tensor ${describe(name)} has the type ${number}, which is not known`,
      'HOGWILD_UNSUPPORTED',
    )
  }
  const [format, blockElements, blockBytes] = type
  // A product that is rounded is larger than any file.
  const elements = shape.reduce((product, size) => product * size, 1)
  if (elements === 0) throw wrong(`a shape without elements, [${shape}]`)
  const columns = shape.at(-1) as number
  if (columns % blockElements !== 0) {
    throw wrong(`rows of ${columns} elements are no whole blocks of ${format}`)
  }
  const bytes = (elements / blockElements) * blockBytes
  return { name, offset, bytes, format: format.toLowerCase(), shape }
}

/** Tensors by name, each within the data, aligned, and apart from the others. */
function placeTensors(
  infos: readonly TensorInfo[],
  file: { path: string; dataStart: number; alignment: number; fileSize: number },
): Map<string, GgufTensor> {
  const { path, dataStart, alignment, fileSize } = file
  const tensors = new Map<string, GgufTensor>()
  let before: TensorInfo | undefined
  for (const info of infos.toSorted((a, b) => a.offset - b.offset)) {
    const { name, offset, bytes } = info
    const wrong = (what: string) => damaged(path, `: tensor ${describe(name)}: ${what}`)
    if (tensors.has(name)) throw wrong('there are two of this name')
    if (offset % alignment !== 0) throw wrong(`offset ${offset} is no multiple of ${alignment}`)
    if (!(dataStart + offset + bytes <= fileSize)) {
      throw wrong(
        `${bytes} bytes from ${dataStart + offset} on are not within the ${fileSize} of the file`,
      )
    }
    if (before !== undefined && before.offset + before.bytes > offset) {
      throw wrong(`it overlaps ${describe(before.name)}`)
    }
    tensors.set(name, { ...info, path, offset: dataStart + offset })
    before = info
  }
  // In the file's order.
  return new Map(infos.map(({ name }) => [name, tensors.get(name) as GgufTensor]))
}

/** Reads a file from its start through a window. `need` makes sure of bytes, which the other methods then take. */
class Cursor {
  position = 0
  readonly #file: RegularFile
  readonly #signal: AbortSignal | undefined
  #window: Buffer = Buffer.alloc(0)
  #windowStart = 0
  /** Bytes of names and texts that are kept. */
  #kept = 0

  constructor(file: RegularFile, signal: AbortSignal | undefined) {
    this.#file = file
    this.#signal = signal
  }

  get path(): string {
    return this.#file.path
  }

  async need(bytes: number): Promise<void> {
    const end = this.position + bytes
    if (end <= this.#windowStart + this.#window.length) return
    const { path, size } = this.#file
    if (end > size) throw damaged(path, `ends at byte ${size}, within its header`)
    if (end > MAX_HEADER_BYTES) {
      throw damaged(path, `has a header of more than ${MAX_HEADER_BYTES} bytes`)
    }
    const length = Math.min(Math.max(bytes, WINDOW_BYTES), size - this.position)
    this.#window = await this.#file.read(this.position, length, this.#signal)
    this.#windowStart = this.position
  }

  bytes(count: number): Buffer {
    const start = this.position - this.#windowStart
    this.position += count
    return this.#window.subarray(start, start + count)
  }

  skip(bytes: number): void {
    this.position += bytes
  }

  uint32(): number {
    return this.bytes(4).readUInt32LE()
  }

  /** Rounded where it is larger than 2^53, which no size is. */
  uint64(): number {
    return Number(this.bytes(8).readBigUInt64LE())
  }

  /** A number of things that take `bytesEach` or more. */
  count(max: number, what: string, bytesEach: number): number {
    const count = this.uint64()
    const left = this.#file.size - this.position
    if (count > max || count * bytesEach > left) {
      throw damaged(this.path, `promises ${count} ${what}, and ${left} bytes follow`)
    }
    return count
  }

  async name(): Promise<string> {
    await this.need(8)
    return await this.text(this.count(MAX_NAME_BYTES, 'bytes of a name', 1))
  }

  async text(length: number): Promise<string> {
    this.#kept += length
    if (this.#kept > MAX_BYTES.header) {
      throw damaged(this.path, `has more than ${MAX_BYTES.header} bytes of names and texts`)
    }
    await this.need(length)
    return decodeText(this.bytes(length), this.path)
  }

  async skipStrings(count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      if (this.position + 8 > this.#windowStart + this.#window.length) await this.need(8)
      this.skip(this.count(Number.MAX_SAFE_INTEGER, 'bytes of a text', 1))
    }
  }
}
