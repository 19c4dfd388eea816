// Where a model comes from: a Hugging Face folder or a GGUF file. Both say the same in the end: a configuration, tensors
// by role, and what a tokenizer is made of.

import { readdir, stat } from 'node:fs/promises'
import { HogwildError } from '../errors'
import type { ModelConfig } from '../families'
import type { NativeTensor } from '../native'
import type { TokenizerSource } from '../tokenizer/text-engine'
import { describe } from '../validate'
import type { Warnings } from '../warnings'
import { readGguf } from './gguf'
import { readGgufModel } from './gguf-model'
import { readGgufTokenizer } from './gguf-tokenizer'
import { readFolder } from './huggingface'
import type { ConfigOptions } from './huggingface-config'
import { readFolderTokenizer } from './huggingface-tokenizer'

export interface SourceOptions {
  signal?: AbortSignal | undefined
}

export interface SourceModel {
  config: ModelConfig
  /** One for each role. */
  tensors: NativeTensor[]
}

export interface ModelSource {
  /** The folder, or the file. */
  readonly path: string
  /** Reads configuration and headers. */
  model(options: SourceOptions & ConfigOptions & { warnings?: Warnings }): Promise<SourceModel>
  tokenizer(options: SourceOptions): Promise<TokenizerSource>
}

/** The source at a path that exists. Throws HOGWILD_INVALID_MODEL; the source throws as its readers do. */
export async function openSource(path: string): Promise<ModelSource> {
  const found = await stat(path).catch(() => undefined)
  if (found?.isDirectory()) {
    await checkHoldsModel(path)
    return {
      path,
      model: (options) => readFolder(path, options),
      tokenizer: (options) => readFolderTokenizer(path, options),
    }
  }
  if (found?.isFile() && isGguf(path)) {
    return {
      path,
      model: async (options) => readGgufModel(await readGguf(path, options), options),
      tokenizer: async (options) => readGgufTokenizer(await readGguf(path, options), options),
    }
  }
  throw noModel(path, 'expected a Hugging Face folder or a .gguf file')
}

/** A folder with nothing of a model or its tokenizer: maybe GGUF files lie in it, of which one was meant. */
async function checkHoldsModel(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => undefined)
  if (names === undefined || ['config.json', 'tokenizer.json'].some((one) => names.includes(one))) {
    return
  }
  const files = names.filter(isGguf).sort()
  const [first] = files
  const others = files.length > 1 ? ` and ${files.length - 1} more` : ''
  throw noModel(
    folder,
    first === undefined
      ? 'expected a Hugging Face folder or a .gguf file, and there is no config.json and no tokenizer.json in this folder'
      : `there is no config.json in this folder, but ${describe(first)}${others}: give the path of the file`,
  )
}

const isGguf = (path: string) => path.toLowerCase().endsWith('.gguf')

function noModel(path: string, why: string): HogwildError {
  return new HogwildError(`no model at ${describe(path)}: ${why}`, 'HOGWILD_INVALID_MODEL')
}
