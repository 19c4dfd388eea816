// The folder of a prefix store: a file for each page, in the form of `cache.export`, whose name says what it must be of. Any
// number of processes may share one: files appear whole or not at all, are checked when they are read, and what is gone or
// damaged is computed.

import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { loadAddon } from '../addon-file'
import type { Cache } from '../cache'
import { cacheFacts } from '../cache-file'
import { errorCode } from '../errors'
import type { Model } from '../model'
import { type SessionContents, writeSessionFile } from '../session-file'

const NAME = /^[0-9a-f]{64}\.blocks$/
/** Left behind by a process that was killed. */
const PARTIAL = /^[0-9a-f]{64}\.blocks\.[0-9a-f]{8}\.partial$/
const HOUR_MS = 3_600_000

/** Where there are more bytes than there may be, so many are left: not every file that comes makes one go. */
const KEPT_SHARE = 0.9

/** The files of all groups of one model; a cache has its own (`PrefixFolder`). */
export class PrefixFiles {
  readonly path: string
  readonly #maxBytes: number
  readonly #model: Model
  /** Bytes by name, the one that was used last at the end. As far as this process knows. */
  #files = new Map<string, number>()
  #bytes = 0
  #opening: Promise<string> | undefined

  constructor(path: string, maxBytes: number, model: Model) {
    this.path = path
    this.#maxBytes = maxBytes
    this.#model = model
  }

  /**
   * Those of a cache: equal tokens have equal keys and values, to the bit, only where all this is equal. undefined where
   * they cannot be used, which is told once.
   */
  async of(cache: Cache): Promise<PrefixFolder | undefined> {
    try {
      this.#opening ??= this.#open()
      const build = await this.#opening
      const { type, name, simd } = this.#model.device.info
      const device = { type, name, simd }
      const facts = { cache: await cacheFacts(cache), weights: this.#model.weights, device, build }
      return new PrefixFolder(this, JSON.stringify(facts))
    } catch (error) {
      this.#warn(error)
      return undefined
    }
  }

  has(name: string): boolean {
    return this.#files.has(name)
  }

  /** undefined: it cannot be read. */
  async read(name: string): Promise<Buffer | undefined> {
    const path = join(this.path, name)
    const bytes = await readFile(path).catch(() => undefined)
    this.#forget(name)
    if (bytes === undefined) return undefined
    this.#remember(name, bytes.length)
    const now = new Date()
    await utimes(path, now, now).catch(() => {}) // for other processes
    return bytes
  }

  /** Whether it was written; what failed is told once. */
  async write(name: string, contents: SessionContents): Promise<boolean> {
    try {
      const bytes = await writeSessionFile(join(this.path, name), contents, { isDurable: false })
      this.#forget(name)
      this.#remember(name, bytes)
    } catch (error) {
      if (errorCode(error) !== 'HOGWILD_NOT_WRITTEN') throw error
      this.#warn(error)
      return false
    }
    if (this.#bytes > this.#maxBytes) await this.#shrink()
    return true
  }

  async remove(name: string): Promise<void> {
    this.#forget(name)
    await rm(join(this.path, name), { force: true }).catch(() => {})
  }

  /** Returns the hash of what computes: another build may round otherwise. */
  async #open(): Promise<string> {
    await mkdir(this.path, { recursive: true })
    await this.#look()
    if (this.#bytes > this.#maxBytes) await this.#shrink()
    const loaded = loadAddon()
    const file = loaded.addon === undefined ? '' : loaded.file
    const hash = createHash('sha256').update(await readFile(file))
    return hash.update(await readFile(join(__dirname, '../../package.json'))).digest('hex')
  }

  #warn(error: unknown): void {
    const message = `cannot keep prefixes in ${this.path}: ${(error as Error).message}`
    this.#model.warnings.warn('HOGWILD_PREFIXES_NOT_KEPT', message)
  }

  /** Other processes write and remove files too. */
  async #look(): Promise<void> {
    const found: { name: string; bytes: number; used: number }[] = []
    for (const name of await readdir(this.path).catch(() => [])) {
      const { size, mtimeMs } = (await stat(join(this.path, name)).catch(() => undefined)) ?? {}
      if (size === undefined || mtimeMs === undefined) continue
      if (NAME.test(name)) found.push({ name, bytes: size, used: mtimeMs })
      else if (PARTIAL.test(name) && mtimeMs < Date.now() - HOUR_MS) await this.remove(name)
    }
    found.sort((one, other) => one.used - other.used)
    this.#files = new Map(found.map(({ name, bytes }) => [name, bytes]))
    this.#bytes = found.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /** Removes what was used longest ago. */
  async #shrink(): Promise<void> {
    await this.#look()
    for (const name of [...this.#files.keys()]) {
      if (this.#bytes <= this.#maxBytes * KEPT_SHARE) return
      await this.remove(name)
    }
  }

  #remember(name: string, bytes: number): void {
    this.#files.set(name, bytes)
    this.#bytes += bytes
  }

  #forget(name: string): void {
    this.#bytes -= this.#files.get(name) ?? 0
    this.#files.delete(name)
  }
}

/** Pages of one cache's kind, by the keys of a prefix store. */
export class PrefixFolder {
  readonly #files: PrefixFiles
  readonly #identity: string

  constructor(files: PrefixFiles, identity: string) {
    this.#files = files
    this.#identity = identity
  }

  /** Whether there is one, as far as this process knows. */
  has(key: string): boolean {
    return this.#files.has(this.#name(key))
  }

  async read(key: string): Promise<{ path: string; bytes: Buffer } | undefined> {
    const name = this.#name(key)
    const bytes = await this.#files.read(name)
    return bytes === undefined ? undefined : { path: join(this.#files.path, name), bytes }
  }

  /** Whether it was written. */
  async write(key: string, contents: SessionContents): Promise<boolean> {
    return await this.#files.write(this.#name(key), contents)
  }

  async remove(key: string): Promise<void> {
    await this.#files.remove(this.#name(key))
  }

  #name(key: string): string {
    return `${createHash('sha256').update(this.#identity).update(key).digest('hex')}.blocks`
  }
}
