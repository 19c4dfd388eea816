// Blocks of a cache to a file, and from a file into a cache.

import { onAbort, throwIfAborted } from './abort-signal'
import { Block } from './block'
import type { Cache } from './cache'
import { errorCode, HogwildError } from './errors'
import { kvDtypes } from './formats'
import { PAGE_TOKENS } from './limits'
import { type BlockHandle, native } from './native'
import type { Rope } from './rope'
import {
  invalidSession,
  readSession,
  readSessionFile,
  type SessionContents,
  type SessionFile,
  writeSessionFile,
} from './session-file'
import type { SessionProgress, TransferOptions } from './transfer'
import { checkObject, describe } from './validate'

/** What keys and values of a cache mean: equal in the cache that wrote a file and in the one that reads it. */
export interface CacheFacts {
  pageSize: number
  layers: number
  kvHeads: number
  headDim: number
  keys: string
  values: string
  ropes: readonly { inverseFrequencies: readonly number[]; attentionFactor: number }[]
  layerRopes: readonly number[]
  /** The model's fingerprint, or what an engine calls its model; null: not said. */
  model: string | null
}

/** The header of a file. */
interface Header {
  kind: FileKind
  cache: CacheFacts
  data: unknown
}

/** What kinds of files hold, and who reads them. */
const KINDS = {
  blocks: 'blocks: cache.import reads them',
  run: 'a run: restoreRun reads it',
} as const

export type FileKind = keyof typeof KINDS

export async function cacheFacts(cache: Cache): Promise<CacheFacts> {
  const { layers, kvHeads, headDim, dtype } = cache.shape
  const { ropes, layerRopes } = cache.ropes
  return {
    pageSize: PAGE_TOKENS,
    ...{ layers, kvHeads, headDim },
    ...kvDtypes(dtype),
    ropes: ropes.map(({ inverseFrequencies, attentionFactor }: Rope) => ({
      inverseFrequencies: Array.from(inverseFrequencies),
      attentionFactor,
    })),
    layerRopes: Array.from(layerRopes),
    model: await cache.model(),
  }
}

/** Writes `blocks` and `data` to a file; the cache is busy meanwhile. Returns the file's length. */
export async function exportBlocks(
  cache: Cache,
  blocks: readonly Block[],
  path: string,
  kind: FileKind,
  data: unknown,
  options: TransferOptions,
): Promise<number> {
  return await whileOpen(cache, options, async (transfer) => {
    // Before anything is waited for: these blocks as they are now.
    const handle = native.beginExport(
      cache.open(),
      blocks.map((block) => block.handle),
    )
    try {
      const header: Header = { kind, cache: await cacheFacts(cache), data }
      const contents = {
        header,
        index: native.exportIndex(handle),
        pieces: native.exportPieces(handle),
        readPiece: (piece: number) => native.exportRead(handle, piece),
      }
      return await writeSessionFile(path, contents, transfer)
    } finally {
      native.exportEnd(handle)
    }
  })
}

/** What `exportBlocks` would write, in memory: for small blocks, so that the cache is busy for as long as a copy takes. */
export async function copyBlocks(
  cache: Cache,
  blocks: readonly Block[],
  data: unknown,
): Promise<SessionContents> {
  return await whileOpen(cache, {}, async () => {
    const header: Header = { kind: 'blocks', cache: await cacheFacts(cache), data }
    const handles = blocks.map((block) => block.handle)
    const handle = native.beginExport(cache.open(), handles)
    try {
      const pieces = native.exportPieces(handle)
      const copies: Uint8Array[] = []
      for (const piece of pieces.keys()) copies.push(await native.exportRead(handle, piece))
      const readPiece = (piece: number) => Promise.resolve(copies[piece] as Uint8Array)
      return { header, index: native.exportIndex(handle), pieces, readPiece }
    } finally {
      native.exportEnd(handle)
    }
  })
}

/** What a file brings into a cache. */
interface FileBlocks {
  blocks: Block[]
  data: unknown
}

/** The blocks and data of a file: all of them, or an error and a cache as before. */
export async function importBlocks(
  cache: Cache,
  path: string,
  kind: FileKind,
  options: TransferOptions,
): Promise<FileBlocks> {
  return await whileOpen(cache, options, (transfer) =>
    readSessionFile(path, transfer, (file) => importFile(cache, file, kind)),
  )
}

/** The same of a file of `cache.export` that is in memory. */
export async function importBytes(cache: Cache, path: string, bytes: Buffer): Promise<FileBlocks> {
  const read = (position: number, length: number) =>
    Promise.resolve(bytes.subarray(position, position + length))
  const file = { path, size: bytes.length, read }
  return await whileOpen(cache, {}, (transfer) =>
    readSession(file, transfer, (session) => importFile(cache, session, 'blocks')),
  )
}

async function importFile(cache: Cache, file: SessionFile, kind: FileKind): Promise<FileBlocks> {
  const data = dataOf(file, kind)
  return { blocks: await takeBlocks(cache, file, []), data }
}

/** What went with the blocks. Throws HOGWILD_INVALID_SESSION for a file of another kind. */
export function dataOf({ path, header }: SessionFile, kind: FileKind): unknown {
  const code = 'HOGWILD_INVALID_SESSION'
  const { kind: found, data } = checkObject(header, `the header of ${path}`, code)
  if (found === kind) return data ?? null
  const known = Object.keys(KINDS).find((other): other is FileKind => other === found)
  throw invalidSession(
    path,
    `holds ${known === undefined ? describe(found) : KINDS[known]}: expected ${describe(kind)}`,
  )
}

/** How many blocks a file's index is of, and how many pages they take. It is checked when they are taken. */
export function sizesOf({ path, index }: SessionFile): { pages: number; blocks: number } {
  const begin = Buffer.from(index.buffer, index.byteOffset, index.length)
  if (index.length < 16) throw invalidSession(path, `has an index of ${index.length} bytes`)
  const [pages, blocks] = [begin.readBigUInt64LE(), begin.readBigUInt64LE(8)]
  return { pages: Number(pages), blocks: Number(blocks) }
}

/**
 * The blocks of a file, where the cache is what it must be. `budgets`: whose pages they take, one for each block, and one for
 * pages that none of them took; 0 and an empty list: nobody's.
 */
export async function takeBlocks(
  cache: Cache,
  file: SessionFile,
  budgets: readonly number[],
): Promise<Block[]> {
  checkFacts(file, await cacheFacts(cache))
  const handles = await importPieces(cache, file, budgets)
  return handles.map((handle) => new Block(cache, handle))
}

/** Of an index: each takes so many bytes. */
const INDEX_PAGE_BYTES = 24

async function importPieces(
  cache: Cache,
  file: SessionFile,
  budgets: readonly number[],
): Promise<BlockHandle[]> {
  cache.makeRoom(Math.ceil(file.index.length / INDEX_PAGE_BYTES))
  const handle = native.beginImport(cache.open(), file.index, budgets)
  try {
    const sizes = native.importPieces(handle)
    const expected = sizes.reduce((sum, bytes) => sum + bytes, 0)
    if (expected !== file.dataBytes) {
      const problem = `has ${file.dataBytes} bytes of keys and values: expected ${expected}, by its index`
      throw invalidSession(file.path, problem)
    }
    await file.readData(sizes, (piece, bytes) => native.importWrite(handle, piece, bytes))
    return native.importCommit(handle)
  } finally {
    native.importAbort(handle)
  }
}

/** Closing the cache ends the work as the signal does, and waits for it. What `onProgress` throws comes out as it is. */
export async function whileOpen<T>(
  cache: Cache,
  { signal, onProgress }: TransferOptions,
  work: (options: TransferOptions) => Promise<T>,
): Promise<T> {
  const abort = new AbortController()
  const thrown: unknown[] = []
  const report = (progress: SessionProgress) => {
    try {
      onProgress?.(progress)
    } catch (cause) {
      thrown.push(cause)
      throw new HogwildError('onProgress threw', 'HOGWILD_ABORTED', { cause })
    }
  }
  throwIfAborted(signal)
  const forget = onAbort(signal, () => abort.abort())
  try {
    const transfer = { signal: abort.signal, onProgress: report }
    return await cache.tasks.track(work(transfer), () => abort.abort())
  } catch (error) {
    if (thrown.length > 0) throw thrown[0]
    if (errorCode(error) !== 'HOGWILD_ABORTED') throw error
    throwIfAborted(signal) // with its reason
    throw new HogwildError('the cache was closed meanwhile', 'HOGWILD_ABORTED', { cause: error })
  } finally {
    forget()
  }
}

/** Throws HOGWILD_INVALID_SESSION where a file's blocks are of another cache or model. */
export function checkFacts({ path, header }: SessionFile, own: Partial<CacheFacts>): void {
  const code = 'HOGWILD_INVALID_SESSION'
  const { cache } = checkObject(header, `the header of ${path}`, code)
  const facts = checkObject(cache, `"cache" in the header of ${path}`, code)
  for (const [name, value] of Object.entries(own)) {
    if (JSON.stringify(facts[name]) === JSON.stringify(value)) continue
    throw invalidSession(
      path,
      `is of another ${name === 'model' ? 'model' : 'cache'}: ${name} is ${describe(facts[name])}, this cache has ${describe(value)}`,
    )
  }
}
