// `hogwild random-model`: a small model of random weights with a tokenizer, to play with.

import { randomUUID } from 'node:crypto'
import { mkdir, readdir, rename } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { HogwildError } from '../errors'
import { escapeUnsafe, inBytes } from '../printable'
import { removedAfterwards } from './clean-up'
import { commandLine } from './package'
import { type RandomShape, randomConfig } from './random-model/config'
import { FIRST_TEXT_TOKEN, writeRandomTokenizer } from './random-model/tokenizer'
import { writeRandomModel } from './random-model/weights'
import { print } from './terminal'

export interface RandomModelOptions extends RandomShape {
  seed: number
}

/** The folder appears under its name when it is complete. */
export async function randomModel(folder: string, options: RandomModelOptions): Promise<void> {
  const path = resolve(folder)
  await refuseUsed(path)
  await mkdir(dirname(path), { recursive: true })
  const partial = `${path}.${randomUUID().slice(0, 8)}.partial`
  const written = await removedAfterwards(partial, async () => {
    await mkdir(partial)
    await writeRandomTokenizer(partial, options.vocabulary)
    const weights = { seed: options.seed, silentTokens: FIRST_TEXT_TOKEN }
    const model = await writeRandomModel(partial, randomConfig(options), weights)
    await rename(partial, path)
    return model
  })
  const { family, layers } = options
  const size = `${written.parameters.toLocaleString('en')} parameters, ${inBytes(written.bytes)}`
  const name = escapeUnsafe(folder)
  const quoted = /^[\w./-]+$/.test(name) ? name : `'${name.replaceAll("'", "'\\''")}'`
  print(`${name}: ${family}, ${layers} ${layers === 1 ? 'layer' : 'layers'}, ${size}`)
  print('Its weights are random, and so is what it writes. Try:')
  print(`${commandLine()} run --model ${quoted} --max-tokens 64 'What is 17 * 23?'`)
}

async function refuseUsed(path: string): Promise<void> {
  const files = await readdir(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw error
  })
  if (files.length === 0) return
  const message = `expected a folder that is empty or not there yet; ${path} holds ${files.length === 1 ? 'a file' : `${files.length} files`}`
  throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}
