// Files that one process at a time holds, as Python's filelock does (flock). The system lets go of one with its process.

import { constants } from 'node:fs'
import { mkdir, open } from 'node:fs/promises'
import { dirname } from 'node:path'
import { native } from '../native'
import { pause } from './request'

const POLL_MS = 100

/** Calls `use` while nobody else holds the lock at `path`, a file that stays. Throws HOGWILD_ABORTED. */
export async function locked<T>(
  path: string,
  signal: AbortSignal | undefined,
  use: () => Promise<T>,
): Promise<T> {
  await mkdir(dirname(path), { recursive: true })
  const file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o664)
  try {
    while (!tryLock(file.fd)) await pause(POLL_MS, signal)
    return await use()
  } finally {
    await file.close()
  }
}

/** True also where a file system has no locks: they only save work (see transfer.ts). */
function tryLock(file: number): boolean {
  try {
    return native.tryLock(file)
  } catch {
    return true
  }
}
