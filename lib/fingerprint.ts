// What tells a model from others, for files that only make sense with it.

import { createHash } from 'node:crypto'
import type { ModelConfig } from './families'
import { type Format, storedBytes } from './formats'
import { type RegularFile, withFile } from './sources/files'

/** A tensor as its file has it. */
interface Tensor {
  name: string
  path: string
  /** In bytes. */
  offset: number
  format: Format
  rows: number
  cols: number
}

/** Of each tensor: a fine-tune changes some number in it. */
const SAMPLE_BYTES = 4096

/**
 * SHA-256, in hex, of the architecture and its sizes and, for each tensor in the order of their names: name, format, shape,
 * and up to 4096 bytes of it as the file stores them, from its middle on. The same weights give the same fingerprint on
 * every device, whatever they are converted to when they are loaded; in another container (GGUF for safetensors) they may
 * give another. Throws HOGWILD_INVALID_MODEL where the files cannot be read any more.
 */
export async function fingerprint(
  config: ModelConfig,
  tensors: readonly Tensor[],
): Promise<string> {
  const { architecture, vocabSize, hiddenSize, queryHeads, kvHeads, headDim, layers } = config
  const hash = createHash('sha256')
  const sizes = [vocabSize, hiddenSize, queryHeads, kvHeads, headDim, layers.length]
  hash.update(JSON.stringify([architecture, ...sizes]))
  const samples = await readSamples(tensors)
  for (const { name, format, rows, cols } of sortedByName(tensors)) {
    hash.update(JSON.stringify([name, format, rows, cols]))
    hash.update(samples.get(name) as Buffer)
  }
  return hash.digest('hex')
}

function sortedByName(tensors: readonly Tensor[]): Tensor[] {
  return [...tensors].sort((one, other) => (one.name < other.name ? -1 : 1))
}

/** By the tensors' names; each file is opened once. */
async function readSamples(tensors: readonly Tensor[]): Promise<Map<string, Buffer>> {
  const files = new Map<string, Tensor[]>()
  for (const tensor of tensors) {
    const list = files.get(tensor.path) ?? []
    list.push(tensor)
    files.set(tensor.path, list)
  }
  const samples = new Map<string, Buffer>()
  for (const [path, list] of files) {
    await withFile(path, async (file) => {
      for (const tensor of list) samples.set(tensor.name, await readSample(file, tensor))
    })
  }
  return samples
}

function readSample(file: RegularFile, { offset, format, rows, cols }: Tensor) {
  const middle = offset + Math.floor(storedBytes(format, rows, cols) / 2)
  const begin = Math.min(middle, file.size)
  return file.read(
    begin,
    Math.min(SAMPLE_BYTES, offset + storedBytes(format, rows, cols) - begin, file.size - begin),
  )
}
