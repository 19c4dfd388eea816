// Models of the hub: found there or in the cache, brought where they are not.

import { mkdir, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { onAbort, throwIfAborted } from '../abort-signal'
import { HogwildError } from '../errors'
import { inBytes } from '../printable'
import { INDEX_FILE, readShardNames } from '../sources/safetensors'
import {
  checkBoolean,
  checkObject,
  checkOneOf,
  checkOptionalFunction,
  checkOptions,
  checkSignal,
  checkString,
  optionKeys,
} from '../validate'
import { type WarningHandler, Warnings } from '../warnings'
import { isCommit, RepoCache } from './cache'
import { chooseFiles, type FileKinds } from './choose'
import { checkHubName, type HubName } from './name'
import { failed } from './refusals'
import { Connection } from './request'
import { type HubOptions, type HubSettings, hubSettings } from './settings'
import { bring, type Count, presentBytes, type RemoteFile } from './transfer'

/** Options of `download`. */
export interface DownloadOptions extends HubOptions {
  /**
   * 'all': what `loadModel` and `loadTokenizer` read; 'tokenizer': without the weights, where these are files of
   * their own. Default 'all'.
   */
  files?: FileKinds | undefined
  /** Called about ten times per second while bytes come, and at the end. What it throws ends the download. */
  onProgress?: ((progress: DownloadProgress) => void) | undefined
  /** Rejects with HOGWILD_ABORTED; what has come so far is kept. */
  signal?: AbortSignal | undefined
  /**
   * Takes warnings; default: `process.emitWarning`. HOGWILD_HUB_UNREACHABLE: the hub does not answer, and what the
   * cache holds of the model is taken, which may not be the newest.
   */
  onWarning?: WarningHandler | undefined
}

/** How far a download is. */
export interface DownloadProgress {
  /** Of the model's files, those included that were there before. */
  loadedBytes: number
  /** Of all the files that are brought. */
  totalBytes: number
}

const KEYS = optionKeys<DownloadOptions>()({
  endpoint: true,
  cacheFolder: true,
  token: true,
  offline: true,
  files: true,
  onProgress: true,
  signal: true,
  onWarning: true,
})

const PROGRESS_INTERVAL_MS = 100
const AT_ONCE = 4
/** While nothing is begun, people wait for an answer. */
const LISTING_RETRIES = 2
const MAX_LISTING_BYTES = 64 * 2 ** 20

/**
 * The path of a model of the hub, for `loadModel` and `loadTokenizer`: a folder, or a GGUF file (the first of a split
 * one). `name` is org/name, with a branch, tag or commit behind @ and, where a repository holds several GGUF files,
 * the quantisation (or the file's name) behind a colon: 'Qwen/Qwen3-0.6B', 'Qwen/Qwen3-0.6B-GGUF:Q8_0'.
 *
 * Files lie in the cache that huggingface_hub uses too, and are brought only where they are not there yet. A transfer
 * that was cut short goes on where it ended; checksums are compared. Several processes may ask for one model at once.
 *
 * Throws HOGWILD_INVALID_ARGUMENT where the name fits no file or several, naming what is there; HOGWILD_UNSUPPORTED
 * for a repository without a model that could be loaded; HOGWILD_INVALID_MODEL; HOGWILD_DOWNLOAD where the hub
 * cannot be reached or refuses, a checksum is wrong or the disk is full; HOGWILD_ABORTED.
 */
export async function download(name: string, options: DownloadOptions = {}): Promise<string> {
  const hubName = checkHubName(checkString(name, 'name'))
  const checked = checkOptions(options, 'options', KEYS)
  const settings = await hubSettings(checkHubOptions(checked))
  const files = checkOneOf(checked.files ?? 'all', 'options.files', ['all', 'tokenizer'])
  const onProgress = checkOptionalFunction(checked.onProgress, 'options.onProgress')
  const signal = checkSignal(checked.signal, 'options.signal')
  const warnings = new Warnings(checked.onWarning)
  const work = { name: hubName, settings, files, onProgress, signal, warnings }
  try {
    return await find(work)
  } catch (error) {
    const { syscall, message } = error as NodeJS.ErrnoException
    if (syscall === undefined) throw error
    throw failed(`cannot keep ${hubName.repo} in ${settings.cacheFolder}: ${message}`, error)
  }
}

function checkHubOptions(options: DownloadOptions): HubOptions {
  const { endpoint, cacheFolder, token, offline } = options
  if (endpoint !== undefined) checkString(endpoint, 'options.endpoint')
  if (cacheFolder !== undefined) checkString(cacheFolder, 'options.cacheFolder')
  if (token !== undefined) checkString(token, 'options.token')
  if (offline !== undefined) checkBoolean(offline, 'options.offline')
  return options
}

interface Work {
  name: HubName
  settings: HubSettings
  files: FileKinds
  onProgress: DownloadOptions['onProgress']
  signal: AbortSignal | undefined
  warnings: Warnings
}

async function find(work: Work): Promise<string> {
  const { name, settings, signal, warnings } = work
  const cache = new RepoCache(settings.cacheFolder, name.repo, settings.symlinks)
  throwIfAborted(signal)
  if (settings.offline) {
    const path = await cached(work, cache)
    if (path !== undefined) return path
    throw failed(
      `${settings.cacheFolder} does not hold all of ${name.repo} at revision ${name.revision}, and the hub is not asked: HF_HUB_OFFLINE or the option offline is set`,
    )
  }
  const there = await cached(work, cache).catch(() => undefined)
  // What the cache holds of a commit is what the hub would send.
  if (there !== undefined && isCommit(name.revision)) return there
  let listing: Listing
  try {
    const connection = new Connection(settings, name.repo, signal)
    listing = await list(connection, name.revision, there === undefined ? LISTING_RETRIES : 0)
  } catch (error) {
    const { code, message } = error as HogwildError
    if (there === undefined || code !== 'HOGWILD_DOWNLOAD') throw error
    warnings.warn('HOGWILD_HUB_UNREACHABLE', `${message}. The model is taken from ${there}`)
    return there
  }
  return await bringAll(work, cache, listing)
}

/**
 * The model's path, where the cache holds all of it. Throws HOGWILD_INVALID_ARGUMENT where it holds several models
 * that fit the name, or others alone.
 */
async function cached({ name, files, settings }: Work, cache: RepoCache) {
  const commit = await cache.commitOf(name.revision)
  const paths = commit === undefined ? [] : await cache.paths(commit)
  if (commit === undefined || paths.length === 0) return undefined
  try {
    const where = `${name.repo} in ${settings.cacheFolder}`
    const choice = chooseFiles(name, paths, files, where)
    const shards =
      choice.weights === INDEX_FILE ? await readShardNames(cache.file(commit, INDEX_FILE)) : []
    if (!shards.every((shard) => paths.includes(shard))) return undefined
    return join(cache.snapshot(commit), choice.entry)
  } catch (error) {
    if ((error as HogwildError).code === 'HOGWILD_INVALID_ARGUMENT') throw error
    return undefined
  }
}

interface Listing {
  commit: string
  files: Map<string, RemoteFile>
}

/** What a repository holds. */
async function list(connection: Connection, revision: string, retries: number): Promise<Listing> {
  const { repo, settings } = connection
  const path = `/api/models/${repo}/revision/${encodeURIComponent(revision)}?blobs=true`
  const text = await connection.get(
    path,
    async (response, alive) => {
      const pieces: Uint8Array[] = []
      let bytes = 0
      for await (const piece of response.body ?? []) {
        alive()
        pieces.push(piece)
        bytes += piece.length
        if (bytes > MAX_LISTING_BYTES) throw failed(`the listing of ${repo} is too long to be read`)
      }
      return Buffer.concat(pieces).toString()
    },
    retries,
  )
  try {
    return parseListing(JSON.parse(text))
  } catch (cause) {
    throw failed(
      `${settings.endpoint} does not answer as the hub does: ${(cause as Error).message}`,
      cause,
    )
  }
}

function parseListing(json: unknown): Listing {
  const { sha, siblings } = checkObject(json, 'its answer')
  const commit = checkString(sha, 'sha')
  if (!isCommit(commit)) throw new Error('sha is no commit')
  if (!Array.isArray(siblings)) throw new Error('siblings is no list')
  const files = new Map<string, RemoteFile>()
  for (const sibling of siblings) {
    const file = parseFile(checkObject(sibling, 'a file'))
    if (file !== undefined) files.set(file.path, file)
  }
  return { commit, files }
}

/** Undefined for a path that could lead out of the snapshot; no model's file has one. */
function parseFile({ rfilename, size, blobId, lfs }: Record<string, unknown>) {
  const path = checkString(rfilename, 'rfilename')
  if (!path.split('/').every((part) => /^(?!\.{1,2}$)[^\\\0]+$/.test(part))) return undefined
  const large = lfs === undefined || lfs === null ? undefined : checkObject(lfs, 'lfs')
  const etag = checkString(large?.sha256 ?? blobId, `the checksum of ${path}`)
  const bytes = large?.size ?? size
  if (!(large === undefined ? /^[0-9a-f]{40}$/ : /^[0-9a-f]{64}$/).test(etag)) {
    throw new Error(`the checksum of ${path} is none`)
  }
  if (!Number.isSafeInteger(bytes) || (bytes as number) < 0) {
    throw new Error(`the size of ${path} is none`)
  }
  return { path, size: bytes as number, etag }
}

/** Brings what is not there, the weights last: a snapshot that has them has all. */
async function bringAll(work: Work, cache: RepoCache, listing: Listing): Promise<string> {
  const { name, settings, files, onProgress, signal } = work
  const { commit } = listing
  const where = `${settings.endpoint}/${name.repo}`
  const choice = chooseFiles(name, [...listing.files.keys()], files, where)
  const progress = new Progress(onProgress)
  const filesOf = (paths: readonly string[]) =>
    paths.map((path) => {
      const file = listing.files.get(path)
      if (file !== undefined) return file
      throw new HogwildError(`${where} lacks ${path}`, 'HOGWILD_INVALID_MODEL')
    })
  const bringThese = (wanted: readonly RemoteFile[]) =>
    inParallel(wanted, signal, async (file, signal) => {
      await bring(new Connection(settings, name.repo, signal), cache, commit, file, progress.count)
    })
  let { weights } = choice
  if (weights === INDEX_FILE) {
    const index = filesOf([INDEX_FILE])
    progress.expect(index)
    await bringThese(index)
    weights = await readShardNames(cache.file(commit, INDEX_FILE))
  }
  const [small, large] = [filesOf(choice.files), filesOf(weights)]
  progress.expect([...small, ...large])
  await checkRoom(settings.cacheFolder, await missingBytes(cache, commit, [...small, ...large]))
  await bringThese(small)
  await bringThese(large)
  await cache.setCommit(name.revision, commit)
  progress.end()
  return join(cache.snapshot(commit), choice.entry)
}

async function missingBytes(cache: RepoCache, commit: string, files: readonly RemoteFile[]) {
  let bytes = 0
  for (const file of files) bytes += file.size - (await presentBytes(cache, commit, file))
  return bytes
}

async function checkRoom(folder: string, bytes: number): Promise<void> {
  await mkdir(folder, { recursive: true })
  const { bavail, bsize, blocks } = await statfs(folder)
  // Some network file systems do not say.
  if (blocks === 0 || bytes <= bavail * bsize) return
  throw failed(
    `${folder} has room for ${inBytes(bavail * bsize)}, and ${inBytes(bytes)} are to come; HF_HUB_CACHE names another folder`,
  )
}

/** Tells the caller how far it is. */
class Progress {
  #loaded = 0
  #total = 0
  #told = 0

  constructor(private readonly onProgress: DownloadOptions['onProgress']) {}

  expect(files: readonly RemoteFile[]): void {
    for (const { size } of files) this.#total += size
  }

  readonly count: Count = (bytes) => {
    this.#loaded += bytes
    if (performance.now() - this.#told >= PROGRESS_INTERVAL_MS) this.end()
  }

  end(): void {
    this.#told = performance.now()
    this.onProgress?.({ loadedBytes: this.#loaded, totalBytes: this.#total })
  }
}

/** Calls `use` for all items, a few at once. The first failure ends the others and is thrown. */
async function inParallel<T>(
  items: readonly T[],
  signal: AbortSignal | undefined,
  use: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const controller = new AbortController()
  const forget = onAbort(signal, () => controller.abort())
  const left = items.values()
  const failures: unknown[] = []
  const work = async () => {
    try {
      for (const item of left) await use(item, controller.signal)
    } catch (error) {
      failures.push(error)
      controller.abort()
    }
  }
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work))
    throwIfAborted(signal) // with its reason
    if (failures.length > 0) throw failures[0]
  } finally {
    forget()
  }
}
