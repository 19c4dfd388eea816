// Files that must not stay behind, however the command ends.

import { rmSync } from 'node:fs'
import { rm } from 'node:fs/promises'

const SIGNALS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const
type Signal = keyof typeof SIGNALS

/** Runs `work`; afterwards, also where a signal or `process.exit` ends it, there is nothing at `path`. */
export async function removedAfterwards<T>(path: string, work: () => Promise<T>): Promise<T> {
  const removeNow = () => rmSync(path, { recursive: true, force: true })
  const end = (signal: Signal) => process.exit(SIGNALS[signal])
  process.once('exit', removeNow)
  for (const signal of Object.keys(SIGNALS)) process.once(signal, end)
  try {
    return await work()
  } finally {
    process.off('exit', removeNow)
    for (const signal of Object.keys(SIGNALS)) process.off(signal, end)
    await rm(path, { recursive: true, force: true })
  }
}
