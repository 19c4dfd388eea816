// The tokenizer of a random model: bytes, syllables, and words of syllables, so that what the model writes can be read.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BYTE_CHARACTERS } from '../../tokenizer/bytes'

/** Their ids are their places. */
export const SPECIAL_TOKENS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']

const BYTES = 256
/** Bytes that are no text, or only part of one, come first. */
const isText = (byte: number) => byte >= 0x20 && byte < 0x7f
const bytes = Array.from({ length: BYTES }, (_, byte) => byte)
const characters = [...bytes.filter((byte) => !isText(byte)), ...bytes.filter(isText)].map(
  (byte) => BYTE_CHARACTERS[byte] as string,
)
const SPACE = BYTE_CHARACTERS[0x20] as string

const SYLLABLES = [...'bdfgklmnprstvz'].flatMap((consonant) =>
  [...'aeiou'].map((vowel): [string, string] => [consonant, vowel]),
)

/** Tokens before it are no text. */
export const FIRST_TEXT_TOKEN = SPECIAL_TOKENS.length + bytes.filter((b) => !isText(b)).length
export const LEAST_VOCABULARY = 512
export const MOST_VOCABULARY = 2 ** 18

const CHAT_TEMPLATE =
  '{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'

/** Writes tokenizer.json and tokenizer_config.json of so many tokens. */
export async function writeRandomTokenizer(folder: string, vocabulary: number): Promise<void> {
  const pairs = take(merges(), vocabulary - SPECIAL_TOKENS.length - BYTES)
  const tokens = [...SPECIAL_TOKENS, ...characters, ...pairs.map((pair) => pair.join(''))]
  const byteLevel = {
    ...{ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
  }
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: SPECIAL_TOKENS.map((content, id) => ({
      ...{ id, content, single_word: false, lstrip: false, rstrip: false },
      ...{ normalized: false, special: true },
    })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      unk_token: null,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: pairs,
    },
  }
  const settings = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    eos_token: '<|im_end|>',
    pad_token: '<|endoftext|>',
    chat_template: CHAT_TEMPLATE,
  }
  await writeFile(join(folder, 'tokenizer.json'), `${JSON.stringify(tokenizer)}\n`)
  await writeFile(join(folder, 'tokenizer_config.json'), `${JSON.stringify(settings, null, 2)}\n`)
}

/** Syllables, those that begin a word, then words of two, of three ... */
function* merges(): Generator<[string, string]> {
  const syllables = SYLLABLES.map((pair) => pair.join(''))
  yield* SYLLABLES
  let words = syllables.map((syllable) => SPACE + syllable)
  for (const syllable of syllables) yield [SPACE, syllable]
  for (;;) {
    const longer: string[] = []
    // Not all words with the same beginning first.
    for (let turn = 0; turn < syllables.length; turn++) {
      for (const [i, word] of words.entries()) {
        const syllable = syllables[(i + turn) % syllables.length] as string
        yield [word, syllable]
        longer.push(word + syllable)
      }
    }
    words = longer
  }
}

function take<T>(values: Iterator<T>, count: number): T[] {
  return Array.from({ length: count }, () => values.next().value as T)
}
