// Files of experiments: what users wrote, and what comes out.

import { randomUUID } from 'node:crypto'
import { mkdir, rename, rm, writeFile } from 'node:fs/promises'
import { HogwildError } from '../errors'
import { parseJson, readText } from '../sources/files'

const MAX_INPUT_BYTES = 512 * 2 ** 20

/** A text file of a user's. Throws HOGWILD_INVALID_ARGUMENT. */
export async function readInput(path: string): Promise<string> {
  return await asArgument(() => readText(path, { maxBytes: MAX_INPUT_BYTES }))
}

/** A JSON file of a user's. Throws HOGWILD_INVALID_ARGUMENT. */
export async function readJsonInput(path: string): Promise<unknown> {
  const text = await readInput(path)
  return await asArgument(() => parseJson(text, path))
}

/** The reader speaks of models. */
async function asArgument<T>(read: () => T | Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (cause) {
    if ((cause as HogwildError).code !== 'HOGWILD_INVALID_MODEL') throw cause
    throw new HogwildError((cause as Error).message, 'HOGWILD_INVALID_ARGUMENT', { cause })
  }
}

/** What `write` returns; where the system refuses it, HOGWILD_NOT_WRITTEN. */
export async function written<T>(path: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write()
  } catch (cause) {
    if (cause instanceof HogwildError) throw cause
    const message = `cannot write ${path}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_NOT_WRITTEN', { cause })
  }
}

/** Throws HOGWILD_NOT_WRITTEN. */
export async function makeFolder(path: string): Promise<void> {
  await written(path, () => mkdir(path, { recursive: true }))
}

/** The file has its new content or the old one, never a part. Throws HOGWILD_NOT_WRITTEN. */
export async function replaceFile(path: string, content: string | Uint8Array): Promise<void> {
  await written(path, async () => {
    const partial = `${path}.${randomUUID().slice(0, 8)}.partial`
    try {
      await writeFile(partial, content, { flag: 'wx' })
      await rename(partial, path)
    } finally {
      await rm(partial, { force: true })
    }
  })
}
