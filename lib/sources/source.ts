// Where a model comes from: a Hugging Face folder or a GGUF file. Both say the same in the end: a configuration, tensors
// by role, and what a tokenizer is made of.

import { stat } from 'node:fs/promises'
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
    return {
      path,
      model: (options) => readFolder(path, options),
      tokenizer: (options) => readFolderTokenizer(path, options),
    }
  }
  if (found?.isFile() && path.toLowerCase().endsWith('.gguf')) {
    return {
      path,
      model: async (options) => readGgufModel(await readGguf(path, options), options),
      tokenizer: async (options) => readGgufTokenizer(await readGguf(path, options), options),
    }
  }
  throw new HogwildError(
    `no model at ${describe(path)}: expected a Hugging Face folder or a .gguf file`,
    'HOGWILD_INVALID_MODEL',
  )
}
