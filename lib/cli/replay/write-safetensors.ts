// Writes tensors as a safetensors file: u64 length of the header, JSON header, raw data.

import { randomUUID } from 'node:crypto'
import { open, rename } from 'node:fs/promises'
import { pipeline } from 'node:stream/promises'
import { removedAfterwards } from '../clean-up'

const ELEMENT_BYTES = { F32: 4, BF16: 2 } as const

export interface TensorShape {
  name: string
  shape: number[]
  /** Default 'F32'. */
  dtype?: keyof typeof ELEMENT_BYTES
}

/** In bytes. */
export function tensorBytes({ shape, dtype = 'F32' }: TensorShape): number {
  return shape.reduce((product, size) => product * size, ELEMENT_BYTES[dtype])
}

/**
 * Tensors are written as they come, one after the other in the order of `tensors`, in any number of
 * pieces; no more than one piece is in memory. The file appears under its name when it is complete, and
 * nothing is asked of `data` before it is known that the folder can be written to.
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorShape[],
  data: AsyncIterable<ArrayBufferView> | Iterable<ArrayBufferView>,
): Promise<void> {
  const partial = `${path}.${randomUUID().slice(0, 8)}.partial`
  const file = await open(partial, 'wx')
  await removedAfterwards(partial, async () => {
    await pipeline(serialize(tensors, data), file.createWriteStream())
    await rename(partial, path)
  })
}

async function* serialize(
  tensors: readonly TensorShape[],
  data: AsyncIterable<ArrayBufferView> | Iterable<ArrayBufferView>,
): AsyncGenerator<Uint8Array> {
  let offset = 0
  const entries = tensors.map((tensor) => {
    const begin = offset
    offset += tensorBytes(tensor)
    const { name, shape, dtype = 'F32' } = tensor
    return [name, { dtype, shape, data_offsets: [begin, offset] }]
  })
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)))
  // Spaces behind the JSON align the data to 8 bytes.
  const header = Buffer.alloc(Math.ceil(json.length / 8) * 8, ' ')
  json.copy(header)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  yield length
  yield header
  for await (const { buffer, byteOffset, byteLength } of data) {
    yield Buffer.from(buffer, byteOffset, byteLength)
  }
}
