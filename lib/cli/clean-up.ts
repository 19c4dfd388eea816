// What must not stay behind, however the command ends.

import { rmSync } from 'node:fs'
import { rm } from 'node:fs/promises'

const SIGNALS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const
type Signal = keyof typeof SIGNALS

/** Calls `cleanUp` where a signal or `process.exit` ends the program, until the returned function is called. */
export function onEnd(cleanUp: () => void): () => void {
  const end = (signal: Signal) => process.exit(SIGNALS[signal])
  process.once('exit', cleanUp)
  for (const signal of Object.keys(SIGNALS)) process.once(signal, end)
  return () => {
    process.off('exit', cleanUp)
    for (const signal of Object.keys(SIGNALS)) process.off(signal, end)
  }
}

/** Runs `work`; afterwards, also where a signal or `process.exit` ends it, there is nothing at `path`. */
export async function removedAfterwards<T>(path: string, work: () => Promise<T>): Promise<T> {
  const forget = onEnd(() => rmSync(path, { recursive: true, force: true }))
  try {
    return await work()
  } finally {
    forget()
    await rm(path, { recursive: true, force: true })
  }
}
