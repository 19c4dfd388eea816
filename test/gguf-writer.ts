// Writes GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), for tests and benchmarks.

import { createWriteStream } from 'node:fs'
import { pipeline } from 'node:stream/promises'

/** Numbers of the types of values. */
const VALUE_TYPES = {
  uint8: 0,
  int8: 1,
  uint16: 2,
  int16: 3,
  uint32: 4,
  int32: 5,
  float32: 6,
  bool: 7,
  string: 8,
  array: 9,
  uint64: 10,
  int64: 11,
  float64: 12,
} as const

type Scalar = Exclude<keyof typeof VALUE_TYPES, 'array'>

/** A value of the metadata with its type; the types are GGUF's own. */
export type Value =
  | { type: Scalar; value: number | string | boolean }
  | { type: 'array'; of: Scalar; values: readonly (number | string | boolean)[] }

export const uint32 = (value: number): Value => ({ type: 'uint32', value })
export const float32 = (value: number): Value => ({ type: 'float32', value })
export const bool = (value: boolean): Value => ({ type: 'bool', value })
export const string = (value: string): Value => ({ type: 'string', value })
export const array = (of: Scalar, values: readonly (number | string | boolean)[]): Value => ({
  type: 'array',
  of,
  values,
})

export type Metadata = readonly (readonly [key: string, value: Value])[]

export interface GgufWriterTensor {
  name: string
  /** The fastest index last. */
  shape: readonly number[]
  /** ggml's number of the type. */
  type: number
  bytes: number
  read(): Promise<Uint8Array> | Uint8Array
}

export interface GgufOptions {
  version?: number
  alignment?: number
}

/** Writes a file, one tensor after the other. */
export async function writeGgufFile(
  path: string,
  metadata: Metadata,
  tensors: readonly GgufWriterTensor[],
  options: GgufOptions = {},
): Promise<void> {
  await pipeline(() => serialize(metadata, tensors, options), createWriteStream(path))
}

/** The same in memory. */
export async function ggufBytes(
  metadata: Metadata,
  tensors: readonly GgufWriterTensor[] = [],
  options: GgufOptions = {},
): Promise<Buffer> {
  const parts: Uint8Array[] = []
  for await (const part of serialize(metadata, tensors, options)) parts.push(part)
  return Buffer.concat(parts)
}

async function* serialize(
  metadata: Metadata,
  tensors: readonly GgufWriterTensor[],
  { version = 3, alignment = 32 }: GgufOptions,
): AsyncGenerator<Uint8Array> {
  const align = (bytes: number) => Math.ceil(bytes / alignment) * alignment
  const values = alignment === 32 ? metadata : [...metadata, aligned(alignment)]
  let offset = 0
  const infos = tensors.map(({ name, shape, type, bytes }) => {
    const begin = offset
    offset = align(begin + bytes)
    return Buffer.concat([
      encode('string', name),
      encode('uint32', shape.length),
      ...shape.toReversed().map((size) => encode('uint64', size)),
      encode('uint32', type),
      encode('uint64', begin),
    ])
  })
  const header = Buffer.concat([
    Buffer.from('GGUF'),
    encode('uint32', version),
    encode('uint64', tensors.length),
    encode('uint64', values.length),
    ...values.map(([key, value]) => Buffer.concat([encode('string', key), encodeTyped(value)])),
    ...infos,
  ])
  yield header
  yield Buffer.alloc(align(header.length) - header.length)
  for (const tensor of tensors) {
    yield await tensor.read()
    yield Buffer.alloc(align(tensor.bytes) - tensor.bytes)
  }
}

function aligned(alignment: number): readonly [string, Value] {
  return ['general.alignment', uint32(alignment)]
}

function encodeTyped(value: Value): Buffer {
  const type = encode('uint32', VALUE_TYPES[value.type])
  if (value.type !== 'array') return Buffer.concat([type, encode(value.type, value.value)])
  const { of, values } = value
  return Buffer.concat([
    type,
    encode('uint32', VALUE_TYPES[of]),
    encode('uint64', values.length),
    ...values.map((item) => encode(of, item)),
  ])
}

function encode(type: Scalar, value: number | string | boolean): Buffer {
  if (type === 'string') {
    const bytes = Buffer.from(value as string)
    return Buffer.concat([encode('uint64', bytes.length), bytes])
  }
  const data = new DataView(new ArrayBuffer(8))
  const [bytes, write] = WRITERS[type]
  write(data, Number(value))
  return Buffer.from(data.buffer, 0, bytes)
}

type Writer = (data: DataView, value: number) => void

/** Bytes of a value, and how it is written. */
const WRITERS: Record<Exclude<Scalar, 'string'>, readonly [bytes: number, write: Writer]> = {
  uint8: [1, (data, value) => data.setUint8(0, value)],
  int8: [1, (data, value) => data.setInt8(0, value)],
  bool: [1, (data, value) => data.setUint8(0, value)],
  uint16: [2, (data, value) => data.setUint16(0, value, true)],
  int16: [2, (data, value) => data.setInt16(0, value, true)],
  uint32: [4, (data, value) => data.setUint32(0, value, true)],
  int32: [4, (data, value) => data.setInt32(0, value, true)],
  float32: [4, (data, value) => data.setFloat32(0, value, true)],
  uint64: [8, (data, value) => data.setBigUint64(0, BigInt(value), true)],
  int64: [8, (data, value) => data.setBigInt64(0, BigInt(value), true)],
  float64: [8, (data, value) => data.setFloat64(0, value, true)],
}
