// Writes float32 tensors as a safetensors file: u64 length of the header, JSON header, raw data.

import { createWriteStream } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { pipeline } from 'node:stream/promises'

export interface TensorShape {
  name: string
  shape: number[]
}

/**
 * Tensors are written as they come, one after the other in the order of `tensors`; no more than one is
 * in memory. The file appears under its name when it is complete.
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorShape[],
  data: AsyncIterable<Float32Array>,
): Promise<void> {
  const partial = `${path}.partial`
  try {
    await pipeline(serialize(tensors, data), createWriteStream(partial))
    await rename(partial, path)
  } catch (error) {
    await rm(partial, { force: true })
    throw error
  }
}

async function* serialize(tensors: readonly TensorShape[], data: AsyncIterable<Float32Array>) {
  let offset = 0
  const entries = tensors.map(({ name, shape }) => {
    const begin = offset
    offset += shape.reduce((product, size) => product * size, Float32Array.BYTES_PER_ELEMENT)
    return [name, { dtype: 'F32', shape, data_offsets: [begin, offset] }]
  })
  const json = JSON.stringify(Object.fromEntries(entries))
  // Spaces behind the JSON align the data to 8 bytes.
  const header = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  yield length
  yield header
  for await (const values of data) {
    yield Buffer.from(values.buffer, values.byteOffset, values.byteLength)
  }
}
