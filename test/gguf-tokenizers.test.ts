// Tokenizers of GGUF files: ids and texts of the libraries of the original ones (fixtures/gguf-tokenizers.py).

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadTokenizer, type Tokenizer } from '../lib'
import { PRE_TOKENIZER_NAMES } from '../lib/tokenizer/gguf'
import { temporaryFolder } from './fixtures'
import { array, bool, ggufBytes, type Metadata, string, uint32, type Value } from './gguf-writer'
import { byteLevelTokenizer } from './tokenizer-fixtures'

interface Golden {
  encoded: { text: string; ids: number[]; plain: number[] | null; pieces?: number[] | null }[]
  decoded: { ids: number[]; skip: boolean; text: string }[]
}

const folder = join(__dirname, 'fixtures', 'gguf-tokenizers')
const names = readdirSync(folder)
  .filter((file) => file.endsWith('.json'))
  .map((file) => file.replace('.json', ''))
const open: Tokenizer[] = []

async function load(...parameters: Parameters<typeof loadTokenizer>): Promise<Tokenizer> {
  const tokenizer = await loadTokenizer(...parameters)
  open.push(tokenizer)
  return tokenizer
}

afterAll(async () => {
  for (const tokenizer of open) await tokenizer.close()
})

test('every way to find words has a tokenizer, or is like one that has', () => {
  // The others are second names, see PRE_TOKENIZERS.
  const second = ['starcoder', 'refact', 'llama3', 'llama-v3', 'falcon3', 'pixtral', 'smaug-bpe']
  second.push('glm4', 'chatglm-bpe', 'llama4')
  expect([...names.filter((name) => !name.startsWith('spm')), ...second].toSorted()).toEqual(
    PRE_TOKENIZER_NAMES.toSorted(),
  )
})

test.each(names)('%s', async (name) => {
  const golden: Golden = JSON.parse(readFileSync(join(folder, `${name}.json`), 'utf8'))
  const tokenizer = await load(join(folder, `${name}.gguf`))
  for (const { text, ids, plain, pieces } of golden.encoded) {
    const found = tokenizer.encodeSync(text)
    const asText = tokenizer.encodeSync(text, { addSpecialTokens: false, specialTokens: 'text' })
    expect({ text, ids: found }).toEqual({ text, ids })
    if (plain !== null) expect({ text, ids: asText }).toEqual({ text, ids: plain })
    if (pieces) expect({ text, ids: asText }).toEqual({ text, ids: pieces })
  }
  for (const { ids, skip, text } of golden.decoded) {
    expect(tokenizer.decode(ids, { skipSpecialTokens: skip })).toBe(text)
  }
  const [begin, end] = ['<s>', '</s>'].map((token) => tokenizer.tokenId(token))
  expect(tokenizer.eosTokenIds[0]).toBe(end)
  expect(tokenizer.eosTokenIds).toContain(tokenizer.tokenId('<|end|>'))
  expect(tokenizer.tokenId('[PAD420]')).toBeUndefined()
  const messages = [{ role: 'user', content: 'a<|end|>' }]
  expect(await tokenizer.chat(messages)).toBe('<s><|user|>a<|end|><|end|>')
  const ids = await tokenizer.encodeChat(messages)
  expect(ids[0]).toBe(begin)
  expect(ids.filter((id) => id === tokenizer.tokenId('<|end|>'))).toHaveLength(1)
})

const base: [string, Value][] = [
  ['tokenizer.ggml.model', string('gpt2')],
  ['tokenizer.ggml.pre', string('gpt-2')],
  ['tokenizer.ggml.tokens', array('string', ['a', 'b', 'ab', '<s>', '</s>', '<x>', 'b'])],
  ['tokenizer.ggml.merges', array('string', ['a b'])],
  ['tokenizer.ggml.token_type', array('int32', [1, 1, 1, 3, 3, 3, 5])],
  ['tokenizer.ggml.bos_token_id', uint32(3)],
  ['tokenizer.ggml.eos_token_id', uint32(4)],
  ['tokenizer.ggml.padding_token_id', uint32(2 ** 32 - 1)],
]

async function file(...changes: Metadata): Promise<string> {
  const values = new Map([...base, ...changes])
  const path = join(temporaryFolder(), 'model.gguf')
  writeFileSync(path, await ggufBytes([...values]))
  return path
}

test('the metadata say which tokens come before and behind a text, and which end it', async () => {
  const plain = await load(await file())
  expect(plain.encodeSync('ab')).toEqual([2])
  expect(plain.hasChatTemplate).toBe(false)
  const tokenizer = await load(
    await file(
      ['tokenizer.ggml.add_bos_token', bool(true)],
      ['tokenizer.ggml.add_eos_token', bool(true)],
      ['tokenizer.ggml.eot_token_id', uint32(5)],
      ['tokenizer.chat_template', string('{{ eos_token }}')],
      ['tokenizer.chat_template.other', string(`{# ${'x'.repeat(2 ** 17)} #}{{ pad_token }}.`)],
    ),
  )
  expect(tokenizer.encodeSync('ab')).toEqual([3, 2, 4])
  expect(tokenizer.eosTokenIds).toEqual([4, 5])
  const messages = [{ role: 'user', content: '' }]
  expect(await tokenizer.chat(messages)).toBe('</s>')
  expect(await tokenizer.chat(messages, { template: 'other' })).toBe('.')
  // Of two tokens with one name the one that is in use.
  expect(tokenizer.tokenId('b')).toBe(1)
  expect(tokenizer.decode([6])).toBe('')
})

test('a tokenizer.json within the file comes first', async () => {
  const json = JSON.stringify(byteLevelTokenizer())
  const tokenizer = await load(await file(['tokenizer.huggingface.json', string(json)]))
  expect(tokenizer.encodeSync('a')).toEqual([256, 97])
})

test.each<[string, [string, Value], string, RegExp]>([
  [
    'words that are found in a way that is not known',
    ['pre', string('magic')],
    'HOGWILD_UNSUPPORTED',
    /"tokenizer.ggml.pre" = "magic" of .*; supported: gpt-2, smollm, .*qwen2/,
  ],
  [
    'words that are found in no way',
    ['pre', string('default')],
    'HOGWILD_UNSUPPORTED',
    /"tokenizer.ggml.pre" = "default"/,
  ],
  [
    'another kind',
    ['model', string('t5')],
    'HOGWILD_UNSUPPORTED',
    /"tokenizer.ggml.model" = "t5" of .*; supported: gpt2, llama/,
  ],
  [
    'types of too few tokens',
    ['token_type', array('int32', [1])],
    'HOGWILD_INVALID_MODEL',
    /has 7 tokens, and 1 elements in "tokenizer.ggml.token_type"/,
  ],
  [
    'tokens that are numbers',
    ['tokens', array('int32', [1])],
    'HOGWILD_INVALID_MODEL',
    /"tokenizer.ggml.tokens" of .* a list of texts/,
  ],
  [
    'merges of what is no token',
    ['merges', array('string', ['b b'])],
    'HOGWILD_INVALID_MODEL',
    /model.merges\[0\]: "bb" is not in the vocabulary/,
  ],
  [
    'an end beyond the vocabulary',
    ['eos_token_id', uint32(7)],
    'HOGWILD_INVALID_MODEL',
    /"tokenizer.ggml.eos_token_id" of .* a token below 7, received 7/,
  ],
  [
    'an end that is a text',
    ['eos_token_id', string('</s>')],
    'HOGWILD_INVALID_MODEL',
    /eos_token_id" of .* a token below 7/,
  ],
  [
    'a number in place of a switch',
    ['add_bos_token', uint32(1)],
    'HOGWILD_INVALID_MODEL',
    /add_bos_token" of .* true or false, received 1/,
  ],
])('refused: %s', async (_, [key, value], code, message) => {
  const error = await load(await file([`tokenizer.ggml.${key}`, value])).catch((thrown) => thrown)
  expect(error.message).toMatch(message)
  expect(error).toMatchObject({ code })
})

test.each<[string, [string, Value], RegExp]>([
  [
    'no template',
    ['tokenizer.chat_template', uint32(1)],
    /"tokenizer.chat_template" that is no text/,
  ],
  ['no Jinja', ['tokenizer.chat_template', string('{% if %}')], /chat template of .*model.gguf/],
  ['no JSON', ['tokenizer.huggingface.json', string('{')], /model.gguf.* is not JSON/],
])('refused: %s', async (_, change, message) => {
  await expect(load(await file(change))).rejects.toMatchObject({
    code: 'HOGWILD_INVALID_MODEL',
    message: expect.stringMatching(message),
  })
})

test('a file without a tokenizer has none', async () => {
  const path = join(temporaryFolder(), 'model.gguf')
  writeFileSync(path, await ggufBytes([['general.architecture', string('llama')]]))
  await expect(load(path)).rejects.toThrow(/has no "tokenizer.ggml.tokens"/)
})
