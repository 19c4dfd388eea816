// A tokenizer whose tokens are bytes, in a folder.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { BYTE_CHARACTERS } from '../lib/tokenizer/bytes'
import { temporaryFolder } from './fixtures'

export const special = (content: string, id: number) => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
})

/** A tokenizer.json without merges: token b is byte b, 256 is <|begin|>, 257 is <|end|>. */
export function byteLevelTokenizer() {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true }
  return {
    version: '1.0',
    added_tokens: [special('<|begin|>', 256), special('<|end|>', 257)],
    normalizer: null as unknown,
    pre_tokenizer: byteLevel as unknown,
    post_processor: {
      type: 'TemplateProcessing',
      single: [
        { SpecialToken: { id: '<|begin|>', type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
      ],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<|begin|>': { id: '<|begin|>', ids: [256], tokens: ['<|begin|>'] } },
    } as unknown,
    decoder: byteLevel as unknown,
    model: {
      type: 'BPE',
      unk_token: null,
      vocab: Object.fromEntries(BYTE_CHARACTERS.map((character, byte) => [character, byte])),
      merges: [],
    } as unknown,
  }
}

/** `config`: tokenizer_config.json; `files`: further ones, or others in the place of these two. */
export function byteLevelFolder(config: object = {}, files: Record<string, string> = {}): string {
  const folder = temporaryFolder()
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(byteLevelTokenizer()))
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(config))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
  return folder
}
