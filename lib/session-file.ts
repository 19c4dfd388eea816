// Files of blocks: their form (docs/sessions.md, "The file"). What the parts mean is told by cache-file.ts.
//
//   magic, version, byte order    40 bytes in all, with the lengths of
//   header                        JSON
//   index                         how blocks lie in pages (native/cache/snapshot.h)
//   SHA-256 of all that
//   data                          keys and values, in pieces
//   SHA-256 of the SHA-256s of the pieces
//
// The lengths must add up to the file's before anything else is looked at, so nothing is allocated that the file does
// not have, and each part is checked before it is used. Hashes are computed off the JavaScript thread (WebCrypto), a
// piece while the next one comes.

import { randomBytes, webcrypto } from 'node:crypto'
import { type FileHandle, open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { throwIfAborted } from './abort-signal'
import { HogwildError } from './errors'
import { damaged, type RegularFile, withFile } from './sources/files'
import type { TransferOptions } from './transfer'

/** As of PNG: a first byte that no text has, and line ends that a transfer as text would change. */
const MAGIC = Buffer.from([0x89, 0x48, 0x4f, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])
export const SESSION_VERSION = 1
const BYTE_ORDER = 0x01020304
const PREFIX_BYTES = 40
const HASH_BYTES = 32
/** Of the header. */
const MAX_HEADER_BYTES = 64 * 2 ** 20
/** Bytes that are sent to the disk while those behind them are computed. */
const FLUSH_BYTES = 32 * 2 ** 20
/** Pieces that are hashed and written at once: a write waits for the disk now and then. */
const PIECES_AT_ONCE = 3

/** `isDurable`: the file is on the disk when the call returns; default true. A system that fails may lose others. */
export interface WriteOptions extends TransferOptions {
  isDurable?: boolean | undefined
}

/** What a file is made of. */
export interface SessionContents {
  header: unknown
  index: Uint8Array
  pieces: ArrayLike<number>
  readPiece(piece: number): Promise<Uint8Array>
}

/** The error for a file that is not what it should be. `problem` continues the path. */
export function invalidSession(path: string, problem: string, cause?: unknown): HogwildError {
  return damaged(path, problem, cause, 'HOGWILD_INVALID_SESSION')
}

async function sha256(bytes: Uint8Array): Promise<Buffer> {
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>))
}

/**
 * Writes a file: whole and in the place of one of this name, or not at all (HOGWILD_NOT_WRITTEN, HOGWILD_ABORTED, or what
 * the contents throw). Returns its length.
 */
export async function writeSessionFile(
  path: string,
  contents: SessionContents,
  { isDurable = true, ...options }: WriteOptions,
): Promise<number> {
  const partial = `${path}.${randomBytes(4).toString('hex')}.partial`
  let file: FileHandle | undefined
  try {
    file = await open(partial, 'wx')
    const flusher = isDurable ? new Flusher(file) : undefined
    const length = await writeContents(file, contents, flusher, options)
    await flusher?.end()
    await file.close()
    throwIfAborted(options.signal)
    await rename(partial, path)
    if (isDurable) await syncFolder(dirname(path))
    return length
  } catch (error) {
    await file?.close().catch(() => {})
    if (file !== undefined) await rm(partial, { force: true })
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error
    throw new HogwildError(
      `cannot write ${path}: ${(error as Error).message}`,
      'HOGWILD_NOT_WRITTEN',
      { cause: error },
    )
  }
}

async function writeContents(
  file: FileHandle,
  { header, index, pieces, readPiece }: SessionContents,
  flusher: Flusher | undefined,
  { signal, onProgress }: TransferOptions,
): Promise<number> {
  const json = Buffer.from(JSON.stringify(header))
  if (json.length > MAX_HEADER_BYTES) {
    throw new HogwildError(
      `the header of ${json.length} bytes, with the data that go with the blocks, is too long: at most ${MAX_HEADER_BYTES} are written`,
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
  const totalBytes = Array.from(pieces).reduce((sum, bytes) => sum + bytes, 0)
  const prefix = Buffer.alloc(PREFIX_BYTES)
  MAGIC.copy(prefix)
  prefix.writeUInt32LE(SESSION_VERSION, 8)
  prefix.writeUInt32LE(BYTE_ORDER, 12)
  for (const [i, length] of [json.length, index.length, totalBytes].entries()) {
    prefix.writeBigUInt64LE(BigInt(length), 16 + 8 * i)
  }
  const head = Buffer.concat([prefix, json, index])
  const begin = head.length + HASH_BYTES
  await writeAll(file, Buffer.concat([head, await sha256(head)]), 0)

  const hashes: Buffer[] = []
  let [begun, written] = [0, 0]
  const finish = async (piece: number, data: Uint8Array, at: number) => {
    const [hash] = await Promise.all([sha256(data), writeAll(file, data, begin + at)])
    hashes[piece] = hash
    written += data.length
    flusher?.wrote(begin + written)
    onProgress?.({ bytes: written, totalBytes })
  }
  await inTurns(pieces.length, PIECES_AT_ONCE, readPiece, (piece, data) => {
    throwIfAborted(signal)
    begun += data.length
    return finish(piece, data, begun - data.length)
  })
  await writeAll(file, await sha256(Buffer.concat(hashes)), begin + totalBytes)
  return begin + totalBytes + HASH_BYTES
}

/**
 * Produces pieces one after the other, while up to `atOnce` earlier ones are consumed. After an error nothing more is
 * begun, and what was begun has ended when the error is thrown.
 */
async function inTurns<T>(
  count: number,
  atOnce: number,
  produce: (piece: number) => Promise<T>,
  consume: (piece: number, produced: T) => Promise<void>,
): Promise<void> {
  const begun: Promise<void>[] = []
  try {
    for (let piece = 0; piece < count; piece++) {
      const produced = await produce(piece)
      if (begun.length === atOnce) await begun.shift()
      const consumed = consume(piece, produced)
      consumed.catch(() => {}) // it is awaited later
      begun.push(consumed)
    }
  } finally {
    await Promise.allSettled(begun)
  }
  await Promise.all(begun)
}

/**
 * Sends a file to the disk while it is written: the system would begin with that at the end, and the disk rest until
 * then.
 */
class Flusher {
  readonly #file: FileHandle
  #bytes = 0
  #isBusy = false
  #flushed: Promise<void> = Promise.resolve()

  constructor(file: FileHandle) {
    this.#file = file
  }

  /** So many bytes of the file are written. */
  wrote(bytes: number): void {
    if (this.#isBusy || bytes - this.#bytes < FLUSH_BYTES) return
    this.#bytes = bytes
    this.#isBusy = true
    // After an error nothing is flushed any more, and `end` throws it: the system tells it once.
    this.#flushed = this.#file.datasync().then(() => {
      this.#isBusy = false
    })
    this.#flushed.catch(() => {})
  }

  /** Resolves when all of the file is on the disk. */
  async end(): Promise<void> {
    await this.#flushed
    await this.#file.sync()
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten
  }
}

/** The new name is on the disk as well. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

/** A file whose head has been read and checked. */
export interface SessionFile {
  path: string
  header: unknown
  index: Uint8Array
  dataBytes: number
  /**
   * Calls `take` with each piece, in order; the next one is read meanwhile. `sizes` add up to dataBytes. Throws
   * HOGWILD_INVALID_SESSION at the end where the data are not those that were written: then nothing of them may be used.
   */
  readData(
    sizes: ArrayLike<number>,
    take: (piece: number, bytes: Uint8Array) => Promise<void>,
  ): Promise<void>
}

/** The bytes of a file, on a disk or in memory. */
export type SessionBytes = Pick<RegularFile, 'path' | 'size' | 'read'>

/** Opens a file and calls `use`; see `readSession`. */
export async function readSessionFile<T>(
  path: string,
  options: TransferOptions,
  use: (file: SessionFile) => Promise<T>,
): Promise<T> {
  return await withFile(path, (file) => readSession(file, options, use), 'HOGWILD_INVALID_SESSION')
}

/**
 * Calls `use` with what is in the file. Throws HOGWILD_INVALID_SESSION for what is no such file, is cut short or was changed,
 * HOGWILD_UNSUPPORTED for another version, HOGWILD_ABORTED.
 */
export async function readSession<T>(
  file: SessionBytes,
  { signal, onProgress }: TransferOptions,
  use: (file: SessionFile) => Promise<T>,
): Promise<T> {
  const { path } = file
  const { headerBytes, indexBytes, dataBytes } = await readPrefix(file, signal)
  const headBytes = PREFIX_BYTES + headerBytes + indexBytes
  const head = await file.read(0, headBytes + HASH_BYTES, signal)
  if (!(await sha256(head.subarray(0, headBytes))).equals(head.subarray(headBytes))) {
    throw invalidSession(path, 'was changed: its header and index have another SHA-256')
  }
  const indexBegin = PREFIX_BYTES + headerBytes
  return await use({
    path,
    header: parseHeader(path, head.subarray(PREFIX_BYTES, indexBegin)),
    index: head.subarray(indexBegin, headBytes),
    dataBytes,
    readData: (sizes, take) =>
      readData(file, headBytes + HASH_BYTES, sizes, take, { signal, onProgress }),
  })
}

async function readPrefix(file: SessionBytes, signal: AbortSignal | undefined) {
  const { path, size } = file
  const prefix = await file.read(0, Math.min(PREFIX_BYTES, size), signal)
  if (!prefix.subarray(0, MAGIC.length).equals(MAGIC)) {
    const found = prefix.subarray(0, MAGIC.length).toString('hex')
    const problem = size === 0 ? 'is empty' : `begins with the bytes ${found}`
    throw invalidSession(path, `${problem}, not as a file of hogwild's blocks`)
  }
  if (size < PREFIX_BYTES) throw invalidSession(path, `is cut short: it has ${size} bytes`)
  const order = prefix.readUInt32LE(12)
  if (order !== BYTE_ORDER) {
    const found = `0x${order.toString(16).padStart(8, '0')}`
    throw invalidSession(path, `has the byte order mark ${found}: expected little-endian`)
  }
  const version = prefix.readUInt32LE(8)
  if (version !== SESSION_VERSION) {
    throw new HogwildError(
      `${path} has version ${version}: this build reads version ${SESSION_VERSION}`,
      'HOGWILD_UNSUPPORTED',
    )
  }
  const [header, index, data] = [16, 24, 32].map((at) => prefix.readBigUInt64LE(at)) as [
    bigint,
    bigint,
    bigint,
  ]
  const whole = BigInt(PREFIX_BYTES + 2 * HASH_BYTES) + header + index + data
  if (whole !== BigInt(size)) {
    throw invalidSession(path, `has ${size} bytes: expected ${whole}, by the lengths in it`)
  }
  if (header > BigInt(MAX_HEADER_BYTES)) {
    const most = `at most ${MAX_HEADER_BYTES} are read`
    throw invalidSession(path, `has a header of ${header} bytes: ${most}`)
  }
  return {
    headerBytes: Number(header),
    indexBytes: Number(index),
    dataBytes: Number(data),
  }
}

function parseHeader(path: string, json: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(json))
  } catch (cause) {
    throw invalidSession(path, `has a header that is not JSON: ${(cause as Error).message}`, cause)
  }
}

async function readData(
  file: SessionBytes,
  begin: number,
  sizes: ArrayLike<number>,
  take: (piece: number, bytes: Uint8Array) => Promise<void>,
  { signal, onProgress }: TransferOptions,
): Promise<void> {
  const totalBytes = Array.from(sizes).reduce((sum, bytes) => sum + bytes, 0)
  const hashes: Buffer[] = []
  const finish = async (piece: number, data: Buffer, end: number) => {
    const [hash] = await Promise.all([sha256(data), take(piece, data)])
    hashes[piece] = hash
    onProgress?.({ bytes: end, totalBytes })
  }
  let [asked, taken] = [0, 0]
  const produce = (piece: number) => {
    const at = begin + asked
    asked += sizes[piece] as number
    return file.read(at, sizes[piece] as number, signal)
  }
  await inTurns(sizes.length, 1, produce, (piece, data) => {
    taken += data.length
    return finish(piece, data, taken)
  })
  const written = await file.read(begin + totalBytes, HASH_BYTES, signal)
  if (!(await sha256(Buffer.concat(hashes))).equals(written)) {
    throw invalidSession(file.path, 'was changed: its keys and values have another SHA-256')
  }
}
