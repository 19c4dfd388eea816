// Reads the headers of safetensors files (https://github.com/huggingface/safetensors, "Format"): where
// each tensor lies. The tensors themselves are mapped into memory by the native side.

import { join } from 'node:path'
import type { HogwildError } from '../errors'
import { checkObject, describe } from '../validate'
import {
  damaged,
  decodeText,
  exists,
  MAX_BYTES,
  parseJson,
  type RegularFile,
  readJson,
  scanJson,
  withFile,
} from './files'
import type { TensorEntry } from './tensors'

/** Bytes of a tensor, from the start of the data section. */
interface Extent {
  name: string
  begin: number
  end: number
}

export const SINGLE_FILE = 'model.safetensors'
export const INDEX_FILE = 'model.safetensors.index.json'

const METADATA = '__metadata__'

/** Most dimensions of a tensor; models have up to 2. */
const MAX_RANK = 8

/** Bits per element of the format's dtypes. One that is not listed is refused only where its tensor is used. */
const DTYPE_BITS = new Map<string, number>([
  ...['F64', 'I64', 'U64', 'C64'].map((name) => [name, 64] as const),
  ...['F32', 'I32', 'U32'].map((name) => [name, 32] as const),
  ...['F16', 'BF16', 'I16', 'U16'].map((name) => [name, 16] as const),
  ...['BOOL', 'I8', 'U8', 'F8_E4M3', 'F8_E5M2'].map((name) => [name, 8] as const),
])

/**
 * All tensors of a model folder, by name: from model.safetensors, or else from the files that
 * model.safetensors.index.json names.
 *
 * Throws HOGWILD_INVALID_MODEL for anything that the format forbids, naming file and tensor, HOGWILD_ABORTED.
 */
export async function readTensors(
  folder: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Map<string, TensorEntry>> {
  const single = join(folder, SINGLE_FILE)
  if (await exists(single)) return readHeader(single, options)
  const path = join(folder, INDEX_FILE)
  if (!(await exists(path))) {
    throw damaged(folder, `holds neither ${SINGLE_FILE} nor ${INDEX_FILE}`)
  }
  const weightMap = await readWeightMap(path, options)

  // All tensors of the files count, also those that the index does not name.
  const tensors = new Map<string, TensorEntry>()
  for (const file of new Set(weightMap.map(([, file]) => file))) {
    if (!(await exists(join(folder, file)))) throw damaged(path, `names ${file}, which is missing`)
    for (const [name, entry] of await readHeader(join(folder, file), options)) {
      const other = tensors.get(name)
      if (other !== undefined) {
        throw damaged(entry.path, `and ${other.path} both hold ${describe(name)}`)
      }
      tensors.set(name, entry)
    }
  }
  for (const [name, file] of weightMap) {
    if (tensors.get(name)?.path !== join(folder, file)) {
      throw damaged(path, `puts ${describe(name)} into ${file}, which lacks it`)
    }
  }
  return tensors
}

/** The files that an index names, each once. Throws HOGWILD_INVALID_MODEL. */
export async function readShardNames(path: string): Promise<string[]> {
  return [...new Set((await readWeightMap(path, {})).map(([, file]) => file))]
}

/** Names of tensors, and of the files that hold them. */
async function readWeightMap(
  path: string,
  { signal }: { signal?: AbortSignal | undefined },
): Promise<[tensor: string, file: string][]> {
  const index = await readJson(path, { maxBytes: MAX_BYTES.header, signal })
  const { weight_map } = checkObject(index, path, 'HOGWILD_INVALID_MODEL')
  const map = checkObject(weight_map, `"weight_map" of ${path}`, 'HOGWILD_INVALID_MODEL')
  return Object.entries(map).map(([name, file]) => [name, checkShard(file, name, path)])
}

/** The name of a file of the folder itself. */
function checkShard(file: unknown, tensor: string, path: string): string {
  if (typeof file !== 'string' || !/^[^/\\\0]{1,200}\.safetensors$/.test(file)) {
    throw damaged(path, `puts ${describe(tensor)} into ${describe(file)}, which is no file name`)
  }
  return file
}

/** The tensors of one file, by name. */
export async function readHeader(
  path: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Map<string, TensorEntry>> {
  return await withFile(path, async (file) => {
    const header = await readHeaderText(file, options.signal)
    const dataStart = 8 + header.bytes
    return parseHeader(header.text, path, dataStart, file.size - dataStart)
  })
}

async function readHeaderText(
  file: RegularFile,
  signal: AbortSignal | undefined,
): Promise<{ text: string; bytes: number }> {
  const { path, size } = file
  const length = (await file.read(0, 8, signal)).readBigUInt64LE()
  if (length > BigInt(size) - 8n) {
    throw damaged(path, `has a header of ${length} bytes in a file of ${size}`)
  }
  if (length > MAX_BYTES.header) {
    throw damaged(path, `has a header of ${length} bytes; at most ${MAX_BYTES.header} are read`)
  }
  const bytes = Number(length)
  return { text: decodeText(await file.read(8, bytes, signal), path), bytes }
}

function parseHeader(
  text: string,
  path: string,
  dataStart: number,
  dataSize: number,
): Map<string, TensorEntry> {
  const header = checkObject(
    parseJson(text, `the header of ${path}`),
    `the header of ${path}`,
    'HOGWILD_INVALID_MODEL',
  )
  const tensors = new Map<string, TensorEntry>()
  const extents: Extent[] = []
  const names = Object.keys(header)
  let keys = names.length
  for (const name of names) {
    const value = header[name]
    if (name === METADATA) {
      keys += checkMetadata(value, path)
      continue
    }
    const { entry, begin, end } = parseEntry(name, value, path, dataStart, dataSize)
    keys += Object.keys(value as object).length
    tensors.set(name, entry)
    extents.push({ name, begin, end })
  }
  if (countKeys(text) !== keys) {
    throw damaged(path, `: ${describe(firstDuplicate(text))} occurs twice`)
  }
  checkLayout(extents, path, dataSize)
  return tensors
}

/** The number of notes, all of which are strings. */
function checkMetadata(value: unknown, path: string): number {
  const notes = Object.values(
    checkObject(value, `"${METADATA}" of ${path}`, 'HOGWILD_INVALID_MODEL'),
  )
  if (!notes.every((note) => typeof note === 'string')) {
    throw damaged(path, `has a "${METADATA}" that is not a map of strings`)
  }
  return notes.length
}

/** The tensors fill the data, one after the other. */
function checkLayout(extents: Extent[], path: string, dataSize: number): void {
  extents.sort((a, b) => a.begin - b.begin || a.end - b.end)
  let before: Extent = { name: '', begin: 0, end: 0 }
  for (const extent of extents) {
    if (extent.begin < before.end) {
      throw damaged(path, `: ${describe(before.name)} and ${describe(extent.name)} overlap`)
    }
    if (extent.begin > before.end) {
      throw damaged(path, `: no tensor has bytes ${before.end} to ${extent.begin} of the data`)
    }
    before = extent
  }
  if (before.end < dataSize) {
    throw damaged(path, `: no tensor has bytes ${before.end} to ${dataSize} of the data`)
  }
}

/** Keys of all objects in a JSON text. JSON.parse keeps the last of equal ones: then it gives fewer. */
function countKeys(text: string): number {
  let keys = 0
  scanJson(text, (character) => {
    if (character === ':') keys++
  })
  return keys
}

/** The first name that one object of a JSON text has twice. */
function firstDuplicate(text: string): string | undefined {
  const open: Set<string>[] = []
  let quote = 0
  let duplicate: string | undefined
  scanJson(text, (character, at) => {
    if (character === '{') open.push(new Set())
    else if (character === '}') open.pop()
    else if (character === '"') quote = at
    else if (character === ':') {
      const name = JSON.parse(text.slice(quote, at)) as string
      const names = open.at(-1)
      if (names?.has(name)) duplicate ??= name
      names?.add(name)
    }
  })
  return duplicate
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

function parseEntry(
  name: string,
  value: unknown,
  path: string,
  dataStart: number,
  dataSize: number,
): Omit<Extent, 'name'> & { entry: TensorEntry } {
  const wrong = (what: string): HogwildError => damaged(path, `: tensor ${describe(name)}: ${what}`)
  if (typeof value !== 'object' || value === null) throw wrong('no description')
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>
  if (typeof dtype !== 'string') throw wrong('"dtype" is missing')
  if (!Array.isArray(shape) || !shape.every(isCount)) throw wrong('"shape" is not a list of sizes')
  if (shape.length > MAX_RANK) {
    throw wrong(`${shape.length} dimensions; at most ${MAX_RANK} are read`)
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw wrong('"data_offsets" is not a pair of offsets')
  }
  const [begin, end] = offsets as [number, number]
  if (begin > end || end > dataSize) {
    throw wrong(`bytes ${begin} to ${end} are not within the ${dataSize} bytes of data`)
  }
  const bits = DTYPE_BITS.get(dtype)
  // A product that is rounded is larger than any file.
  const elements = shape.reduce((product, size) => product * size, 1)
  if (bits !== undefined && elements * bits !== (end - begin) * 8) {
    throw wrong(`${describe(dtype)} [${shape}] does not fill ${end - begin} bytes`)
  }
  return { entry: { name, path, offset: dataStart + begin, dtype, shape }, begin, end }
}
