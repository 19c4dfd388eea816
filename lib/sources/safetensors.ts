// Reads the headers of safetensors files (https://github.com/huggingface/safetensors, "Format"): where
// each tensor lies. The tensors themselves are mapped into memory by the native side.

import { type FileHandle, open, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { HogwildError } from '../errors'
import { checkObject } from '../validate'
import { MAX_BYTES, readJson } from './files'

/** Where one tensor lies and what it is. */
export interface TensorEntry {
  name: string
  /** The file that holds it. */
  path: string
  /** Bytes from the start of the file. */
  offset: number
  /** As in the header, e.g. "BF16". */
  dtype: string
  shape: readonly number[]
}

/** Bytes of a tensor, from the start of the data section. */
interface Extent {
  name: string
  begin: number
  end: number
}

const SINGLE_FILE = 'model.safetensors'
const INDEX_FILE = 'model.safetensors.index.json'

/** The format's own limit for the length of a header, in bytes. */
const MAX_HEADER_BYTES = 100_000_000

/** Bits per element of the format's dtypes. One that is not listed is refused only where its tensor is used. */
const DTYPE_BITS = new Map<string, number>([
  ...['F64', 'I64', 'U64', 'C64'].map((name) => [name, 64] as const),
  ...['F32', 'I32', 'U32'].map((name) => [name, 32] as const),
  ...['F16', 'BF16', 'I16', 'U16'].map((name) => [name, 16] as const),
  ...['BOOL', 'I8', 'U8', 'F8_E4M3', 'F8_E5M2'].map((name) => [name, 8] as const),
])

function damaged(message: string, cause?: unknown): HogwildError {
  return new HogwildError(message, 'HOGWILD_INVALID_MODEL', { cause })
}

/**
 * All tensors of a model folder, by name: from model.safetensors, or else from the files that
 * model.safetensors.index.json names.
 *
 * Throws HOGWILD_INVALID_MODEL for anything that the format forbids, naming file and tensor.
 */
export async function readTensors(folder: string): Promise<Map<string, TensorEntry>> {
  if (await exists(join(folder, SINGLE_FILE))) return readHeader(join(folder, SINGLE_FILE))
  if (!(await exists(join(folder, INDEX_FILE)))) {
    throw damaged(`neither ${SINGLE_FILE} nor ${INDEX_FILE} is in ${folder}`)
  }
  const path = join(folder, INDEX_FILE)
  const index = checkObject(
    await readJson(path, { maxBytes: MAX_BYTES.header }),
    path,
    'HOGWILD_INVALID_MODEL',
  )
  const weightMap = checkObject(
    index.weight_map,
    `"weight_map" of ${path}`,
    'HOGWILD_INVALID_MODEL',
  )

  const shards = new Map<string, Map<string, TensorEntry>>()
  const tensors = new Map<string, TensorEntry>()
  for (const [name, file] of Object.entries(weightMap)) {
    if (typeof file !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(file)) {
      throw damaged(`${path} puts "${name}" into ${JSON.stringify(file)}, which is no file name`)
    }
    let shard = shards.get(file)
    if (shard === undefined) {
      if (!(await exists(join(folder, file))))
        throw damaged(`${path} names ${file}, which is missing`)
      shard = await readHeader(join(folder, file))
      shards.set(file, shard)
    }
    const entry = shard.get(name)
    if (entry === undefined) throw damaged(`${path} puts "${name}" into ${file}, which lacks it`)
    tensors.set(name, entry)
  }
  return tensors
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  )
}

/** The tensors of one file, by name. */
export async function readHeader(path: string): Promise<Map<string, TensorEntry>> {
  let file: FileHandle
  try {
    file = await open(path)
  } catch (cause) {
    throw damaged(`cannot read ${path}: ${(cause as Error).message}`, cause)
  }
  try {
    const { size } = await file.stat()
    const length = (await readExactly(file, path, 8, 0)).readBigUInt64LE()
    if (length > MAX_HEADER_BYTES || Number(length) > size - 8) {
      throw damaged(`${path}: a header of ${length} bytes in a file of ${size}`)
    }
    const header = await readExactly(file, path, Number(length), 8)
    return parseHeader(header, path, size)
  } finally {
    await file.close()
  }
}

async function readExactly(
  file: FileHandle,
  path: string,
  length: number,
  position: number,
): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, position)
  if (bytesRead < length) throw damaged(`${path} ends within its header`)
  return buffer
}

function parseHeader(bytes: Buffer, path: string, fileSize: number): Map<string, TensorEntry> {
  let text: string
  let json: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    json = JSON.parse(text)
  } catch (cause) {
    throw damaged(`${path}: the header is not JSON: ${(cause as Error).message}`, cause)
  }
  const header = checkObject(json, `the header of ${path}`, 'HOGWILD_INVALID_MODEL')
  const { __metadata__: metadata = {}, ...entries } = header
  const notes = Object.values(
    checkObject(metadata, `"__metadata__" of ${path}`, 'HOGWILD_INVALID_MODEL'),
  )
  if (!notes.every((note) => typeof note === 'string')) {
    throw damaged(`${path}: "__metadata__" is not a map of strings`)
  }
  refuseDuplicates(text, path)

  const dataStart = 8 + bytes.length
  const tensors = new Map<string, TensorEntry>()
  const extents: Extent[] = []
  for (const [name, value] of Object.entries(entries)) {
    const { entry, begin, end } = parseEntry(name, value, path, dataStart, fileSize - dataStart)
    tensors.set(name, entry)
    if (end > begin) extents.push({ name, begin, end })
  }
  extents.sort((a, b) => a.begin - b.begin)
  for (let i = 1; i < extents.length; i++) {
    const [before, after] = [extents[i - 1], extents[i]] as [Extent, Extent]
    if (after.begin < before.end) {
      throw damaged(`${path}: "${before.name}" and "${after.name}" overlap`)
    }
  }
  return tensors
}

// JSON.parse keeps the last of two equal keys. With the metadata known to hold strings only, the keys
// of tensors are exactly the strings that an object follows.
function refuseDuplicates(text: string, path: string): void {
  const seen = new Set<string>()
  for (const [, string, opensObject] of text.matchAll(/("[^"\\]*(?:\\.[^"\\]*)*")(\s*:\s*\{)?/g)) {
    if (opensObject === undefined) continue
    const name = JSON.parse(string as string) as string
    if (seen.has(name)) throw damaged(`${path}: "${name}" occurs twice`)
    seen.add(name)
  }
}

function parseEntry(
  name: string,
  value: unknown,
  path: string,
  dataStart: number,
  dataSize: number,
): { entry: TensorEntry; begin: number; end: number } {
  const wrong = (what: string) => damaged(`${path}: tensor "${name}": ${what}`)
  const isCount = (x: unknown) => Number.isSafeInteger(x) && (x as number) >= 0
  if (typeof value !== 'object' || value === null) throw wrong('no description')
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>
  if (typeof dtype !== 'string') throw wrong('"dtype" is missing')
  if (!Array.isArray(shape) || !shape.every(isCount)) throw wrong('"shape" is not a list of sizes')
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw wrong('"data_offsets" is not a pair of offsets')
  }
  const [begin, end] = offsets as [number, number]
  if (begin > end || end > dataSize) {
    throw wrong(`bytes ${begin} to ${end} are not within the ${dataSize} bytes of data`)
  }
  const bits = DTYPE_BITS.get(dtype)
  const elements = (shape as number[]).reduce((product, size) => product * BigInt(size), 1n)
  if (bits !== undefined && elements * BigInt(bits) !== BigInt(end - begin) * 8n) {
    throw wrong(`${dtype} [${shape}] does not fill ${end - begin} bytes`)
  }
  return { entry: { name, path, offset: dataStart + begin, dtype, shape }, begin, end }
}
