// One file, from the hub into the cache: resumed where an earlier transfer ended, checked, then put in its place.
//
// Bytes are written at their own positions and a blob is named by the hash of its content, so two processes that
// write one file where locks do not hold write the same.

import { createHash, type Hash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { throwIfAborted } from '../abort-signal'
import { type RepoCache, sizeOf } from './cache'
import { failed, Transient } from './refusals'
import type { Connection } from './request'

export interface RemoteFile {
  /** In the repository. */
  path: string
  size: number
  /** Of a large file the SHA-256 of its content; of others git's id, the SHA-1 of a header and the content. */
  etag: string
}

/** In a row, without a byte between them: 15 seconds. */
const RETRIES = 5

/** Takes the number of bytes that came; negative where some turned out to be useless. */
export type Count = (bytes: number) => void

/** Bytes of the file that are in the cache already, be it in part. */
export async function presentBytes(cache: RepoCache, commit: string, file: RemoteFile) {
  const places = [
    cache.file(commit, file.path),
    cache.blob(file.etag),
    `${cache.blob(file.etag)}.incomplete`,
  ]
  for (const place of places) {
    const size = await sizeOf(place)
    if (size !== undefined && size <= file.size) return size
  }
  return 0
}

/**
 * Brings a file into a snapshot, if it is not there. Throws HOGWILD_DOWNLOAD, HOGWILD_ABORTED, and what the system
 * says.
 */
export async function bring(
  connection: Connection,
  cache: RepoCache,
  commit: string,
  file: RemoteFile,
  count: Count,
): Promise<void> {
  const { etag, path, size } = file
  if ((await sizeOf(cache.file(commit, path))) === size) return count(size)
  const blob = cache.blob(etag)
  await mkdir(dirname(blob), { recursive: true })
  await cache.locked(etag, connection.signal, async () => {
    const isThere = (await sizeOf(blob)) === size
    if (isThere) count(size)
    else await download(connection, commit, file, blob, count)
    await cache.place(etag, commit, path, !isThere)
  })
}

async function download(
  connection: Connection,
  commit: string,
  file: RemoteFile,
  blob: string,
  count: Count,
): Promise<void> {
  const partial = `${blob}.incomplete`
  const handle = await open(partial, constants.O_RDWR | constants.O_CREAT)
  let hash: string
  try {
    const { size: resumedAt } = await handle.stat()
    hash = await receive(connection, commit, file, handle, count)
    if (hash !== file.etag && resumedAt > 0) {
      // What lay there may be to blame.
      await handle.truncate(0)
      count(-file.size)
      hash = await receive(connection, commit, file, handle, count)
    }
    await handle.sync()
  } finally {
    await handle.close()
  }
  if (hash !== file.etag) {
    await rm(partial, { force: true })
    throw failed(
      `${file.path} of ${connection.repo} came with the checksum ${hash}, and ${connection.settings.endpoint} names ${file.etag}: it was thrown away`,
    )
  }
  await rename(partial, blob)
}

/** Fills the file up. Resolves to the checksum of its content. */
async function receive(
  connection: Connection,
  commit: string,
  file: RemoteFile,
  handle: FileHandle,
  count: Count,
): Promise<string> {
  const { path, size } = file
  const { repo, signal } = connection
  let hash = newHash(file)
  let done = (await handle.stat()).size
  const restart = async () => {
    await handle.truncate(0)
    count(-done)
    done = 0
    hash = newHash(file)
  }
  count(done)
  if (done > size) await restart()
  if (done > 0) {
    const there = handle.createReadStream({ start: 0, end: done - 1, autoClose: false })
    for await (const piece of there) {
      throwIfAborted(signal)
      hash.update(piece)
    }
  }
  if (done === size) return hash.digest('hex')
  const url = `/${repo}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`
  const range = (): Record<string, string> => (done > 0 ? { range: `bytes=${done}-` } : {})
  await connection.get(
    url,
    async (response, alive, progressed) => {
      if (done > 0 && !continues(response, done)) await restart()
      if (response.status === 416) throw new Transient('it has no such range')
      for await (const piece of response.body ?? []) {
        alive()
        progressed()
        if (done + piece.length > size)
          throw failed(`${path} of ${repo} has more than ${size} bytes`)
        hash.update(piece)
        await writeAll(handle, piece, done)
        done += piece.length
        count(piece.length)
      }
      if (done < size) throw new Transient(`${path} ended after ${done} of ${size} bytes`)
    },
    RETRIES,
    range,
  )
  return hash.digest('hex')
}

/** Whether an answer begins at byte `position`; servers may send the whole file instead. */
function continues(response: Response, position: number): boolean {
  const range = response.headers.get('content-range') ?? ''
  return response.status === 206 && range.startsWith(`bytes ${position}-`)
}

function newHash({ etag, size }: RemoteFile): Hash {
  if (etag.length === 64) return createHash('sha256')
  return createHash('sha1').update(`blob ${size}\0`)
}

async function writeAll(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, position + done)
    done += bytesWritten
  }
}
