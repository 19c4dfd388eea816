// The folder in which huggingface_hub keeps a repository:
//
//   models--org--name/blobs/<sha256, or git's id of a small file>      contents
//   models--org--name/snapshots/<commit>/<path>                        links to them
//   models--org--name/refs/<branch or tag>                             the commit that it was last seen at
//   .locks/models--org--name/<blob>.lock                               held (flock) while a blob is written
//
// Where links are not to be had, snapshots hold the files themselves.

import { randomUUID } from 'node:crypto'
import type { Dirent } from 'node:fs'
import {
  copyFile,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { exists } from '../sources/files'
import { locked } from './file-lock'

const COMMIT = /^[0-9a-f]{40}$/
/** How many folders deep a snapshot is looked through. */
const MAX_DEPTH = 4

export function isCommit(revision: string): boolean {
  return COMMIT.test(revision)
}

export class RepoCache {
  readonly folder: string

  constructor(
    private readonly root: string,
    private readonly repo: string,
    private readonly symlinks: boolean,
  ) {
    this.folder = join(root, this.#name)
  }

  get #name(): string {
    return `models--${this.repo.replace('/', '--')}`
  }

  blob(etag: string): string {
    return join(this.folder, 'blobs', etag)
  }

  file(commit: string, path: string): string {
    return join(this.snapshot(commit), path)
  }

  snapshot(commit: string): string {
    return join(this.folder, 'snapshots', commit)
  }

  /** The commit that a revision was last seen at, where this is known. */
  async commitOf(revision: string): Promise<string | undefined> {
    if (isCommit(revision)) return revision
    const text = await readFile(this.#ref(revision), 'utf8').catch(() => '')
    return isCommit(text.trim()) ? text.trim() : undefined
  }

  async setCommit(revision: string, commit: string): Promise<void> {
    if ((await this.commitOf(revision)) === commit) return
    const path = this.#ref(revision)
    const temporary = `${path}.${randomUUID().slice(0, 8)}.tmp`
    await mkdir(dirname(path), { recursive: true })
    await writeFile(temporary, commit)
    await rename(temporary, path)
  }

  #ref(revision: string): string {
    return join(this.folder, 'refs', revision)
  }

  /** Paths of the files of a snapshot. Links that lead nowhere are none. */
  async paths(commit: string): Promise<string[]> {
    return await listFiles(this.snapshot(commit), '', MAX_DEPTH)
  }

  /**
   * Puts a blob into a snapshot. `fresh`: nothing else refers to the blob, so it may be moved where there are no
   * links.
   */
  async place(etag: string, commit: string, path: string, fresh: boolean): Promise<void> {
    const from = this.blob(etag)
    const to = this.file(commit, path)
    await mkdir(dirname(to), { recursive: true })
    // In one go, so that others never see half a file.
    const temporary = `${to}.${randomUUID().slice(0, 8)}.tmp`
    try {
      if (this.symlinks && (await linked(relative(dirname(to), from), temporary))) {
        return await rename(temporary, to)
      }
      if (fresh) return await rename(from, to)
      await copyFile(from, temporary)
      await rename(temporary, to)
    } finally {
      await rm(temporary, { force: true })
    }
  }

  /** Calls `use` while no other process, Python's included, holds the lock of a blob. Throws HOGWILD_ABORTED. */
  async locked<T>(
    etag: string,
    signal: AbortSignal | undefined,
    use: () => Promise<T>,
  ): Promise<T> {
    return await locked(join(this.root, '.locks', this.#name, `${etag}.lock`), signal, use)
  }
}

/** False where the file system or the user's rights allow no links. */
async function linked(target: string, path: string): Promise<boolean> {
  try {
    await symlink(target, path)
    return true
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (['EPERM', 'EACCES', 'ENOSYS', 'ENOTSUP', 'EOPNOTSUPP', 'EINVAL'].includes(code))
      return false
    throw error
  }
}

async function listFiles(folder: string, prefix: string, depth: number): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((): Dirent[] => [])
  const lists = await Promise.all(
    entries.map(async (entry) => {
      const path = join(folder, entry.name)
      if (entry.isDirectory()) {
        return depth > 1 ? await listFiles(path, `${prefix}${entry.name}/`, depth - 1) : []
      }
      return (await exists(path)) ? [`${prefix}${entry.name}`] : []
    }),
  )
  return lists.flat().sort()
}

/** Bytes of a file; undefined where there is none. */
export async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.size
}
