// A Hugging Face folder as a GGUF file with a vocabulary of placeholders: for runs on token ids.

import { readConfig } from '../../lib/sources/huggingface-config'
import { writeGgufModel } from '../../test/gguf-models'
import { array, type Metadata, string, uint32 } from '../../test/gguf-writer'

/** Numbers of llama.cpp's token types. */
const TOKEN = { normal: 1, unknown: 2, control: 3, byte: 6 }

/** Writes `folder` to the file `path`, matrices as they are stored. */
export async function writeGguf(folder: string, path: string): Promise<void> {
  const { vocabSize } = await readConfig(folder)
  await writeGgufModel(folder, path, { metadata: vocabulary(vocabSize) })
}

/** <unk>, <s>, </s>, the 256 bytes that a SentencePiece vocabulary must have, and made-up words. */
function vocabulary(size: number): Metadata {
  const special = ['<unk>', '<s>', '</s>']
  const byte = (value: number) => `<0x${value.toString(16).toUpperCase().padStart(2, '0')}>`
  const bytes = Array.from({ length: 256 }, (_, value) => byte(value))
  if (size < special.length + bytes.length)
    throw new Error(`no vocabulary of ${size} has all bytes`)
  const words = Array.from({ length: size - special.length - bytes.length }, (_, i) => `word${i}`)
  const tokens = [...special, ...bytes, ...words]
  const types = [
    ...[TOKEN.unknown, TOKEN.control, TOKEN.control],
    ...bytes.map(() => TOKEN.byte),
    ...words.map(() => TOKEN.normal),
  ]
  return [
    ['tokenizer.ggml.model', string('llama')],
    ['tokenizer.ggml.tokens', array('string', tokens)],
    [
      'tokenizer.ggml.scores',
      array(
        'float32',
        tokens.map(() => 0),
      ),
    ],
    ['tokenizer.ggml.token_type', array('int32', types)],
    ['tokenizer.ggml.unknown_token_id', uint32(0)],
    ['tokenizer.ggml.bos_token_id', uint32(1)],
    ['tokenizer.ggml.eos_token_id', uint32(2)],
  ]
}
