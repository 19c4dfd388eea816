// The tokenizer and the chat templates of a Hugging Face folder.

import { join } from 'node:path'
import { readChatSources } from '../chat/sources'
import type { TokenizerSource } from '../tokenizer/text-engine'
import { checkObject } from '../validate'
import { readEosTokenIds } from './eos'
import { MAX_BYTES, optional, readBytes, readJson } from './files'

/** Throws HOGWILD_INVALID_MODEL, naming the file; HOGWILD_ABORTED. */
export async function readFolderTokenizer(
  folder: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<TokenizerSource> {
  const path = join(folder, 'tokenizer.json')
  const bytes = await readBytes(path, { ...options, maxBytes: MAX_BYTES.tokenizer })
  const configPath = join(folder, 'tokenizer_config.json')
  const config = checkObject(
    (await optional(readJson, configPath, options)) ?? {},
    configPath,
    'HOGWILD_INVALID_MODEL',
  )
  const { chat, declaredTokens } = await readChatSources(folder, config, options)
  const eosTokenIds = await readEosTokenIds(folder, options)
  const json = new SharedArrayBuffer(bytes.length)
  new Uint8Array(json).set(bytes)
  return { engine: { vocabulary: { json }, path, chat, declaredTokens }, eosTokenIds }
}
