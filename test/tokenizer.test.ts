import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadTokenizer } from '../lib/tokenizer/tokenizer'
import { codeOf, temporaryFolder } from './fixtures'

const demo = join(__dirname, '../models/demo')

/** The printable character that stands for each byte in byte-level BPE (GPT-2). */
const byteCharacters = (() => {
  const printable = (b: number) =>
    (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255)
  let next = 256
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++))
})()

/** A byte-level tokenizer without merges: token b is byte b, 256 is <|begin|>, 257 is <|end|>. */
function byteLevelFolder(config: object = {}, files: Record<string, string> = {}): string {
  const folder = temporaryFolder()
  const special = (content: string, id: number) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  })
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true }
  const tokenizer = {
    version: '1.0',
    added_tokens: [special('<|begin|>', 256), special('<|end|>', 257)],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: {
      type: 'TemplateProcessing',
      single: [
        { SpecialToken: { id: '<|begin|>', type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
      ],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<|begin|>': { id: '<|begin|>', ids: [256], tokens: ['<|begin|>'] } },
    },
    decoder: byteLevel,
    model: {
      type: 'BPE',
      unk_token: null,
      vocab: Object.fromEntries(byteCharacters.map((character, b) => [character, b])),
      merges: [],
    },
  }
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(config))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
  return folder
}

describe("the demo model's tokenizer", () => {
  test('one token per name, label, letter', async () => {
    const tokenizer = await loadTokenizer(demo)
    const text = '<s>A:ynam\nAliceA=many.'
    const ids = tokenizer.encode(text)
    expect(ids).toEqual([1, 16, 3, 56, 45, 32, 44, 2, 12, 16, 4, 44, 32, 45, 56, 6])
    expect(tokenizer.decode(ids)).toBe(text)
    expect(tokenizer.decode(ids, { skipSpecialTokens: true })).toBe('A:ynam\nAliceA=many.')
    expect(tokenizer.tokenId('Dave')).toBe(15)
    expect(tokenizer.tokenId('Eve')).toBeUndefined()
    expect(tokenizer.eosTokenIds).toEqual([6])
  })

  test('characters that it has no tokens for are dropped; what is no text is refused', async () => {
    const tokenizer = await loadTokenizer(demo)
    expect(tokenizer.encode('aéb')).toEqual(tokenizer.encode('ab'))
    expect(await codeOf(() => tokenizer.encode(3 as never))).toBe('HOGWILD_INVALID_ARGUMENT')
  })

  test('has no chat template', async () => {
    const tokenizer = await loadTokenizer(demo)
    expect(tokenizer.hasChatTemplate).toBe(false)
    expect(await codeOf(() => tokenizer.chat([{ role: 'user', content: 'x' }]))).toBe(
      'HOGWILD_UNSUPPORTED',
    )
  })
})

describe('a byte-level tokenizer', () => {
  const text = 'naïve – 日本 👩‍🚀!'

  test('goes to ids and back', async () => {
    const tokenizer = await loadTokenizer(byteLevelFolder())
    const bytes = [...Buffer.from(text)]
    expect(tokenizer.encode(text)).toEqual([256, ...bytes])
    expect(tokenizer.encode(text, { addSpecialTokens: false })).toEqual(bytes)
    expect(tokenizer.decode(bytes)).toBe(text)
    expect(tokenizer.decode([])).toBe('')
    expect(tokenizer.decode([65, 9999, 66])).toBe('AB')
    expect(tokenizer.decode([65, 257], { skipSpecialTokens: false })).toBe('A<|end|>')
  })

  test('spaces stay as they are unless the configuration says otherwise', async () => {
    const plain = await loadTokenizer(byteLevelFolder())
    expect(plain.decode([...Buffer.from('Well , no .')])).toBe('Well , no .')
    const cleaning = await loadTokenizer(byteLevelFolder({ clean_up_tokenization_spaces: true }))
    expect(cleaning.decode([...Buffer.from('Well , no .')])).toBe('Well, no.')
  })

  test('a stream gives whole characters, and all of them', async () => {
    const stream = (await loadTokenizer(byteLevelFolder())).stream()
    const pieces = [...Buffer.from(text)].map((byte) => stream.push(byte))
    expect(pieces.join('')).toBe(text)
    expect(pieces.slice(0, 5)).toEqual(['n', 'a', '', 'ï', 'v'])
    expect(pieces.every((piece) => !piece.includes('\uFFFD'))).toBe(true)
  })

  test('a stream goes on after bytes that are no character, and leaves special tokens out', async () => {
    const stream = (await loadTokenizer(byteLevelFolder())).stream()
    expect([0x61, 257, 0xe6, 0x62].map((id) => stream.push(id))).toEqual(['a', '', '', '\uFFFDb'])
  })
})

describe('chat templates', () => {
  const template = [
    "{% if messages[0].role == 'nobody' %}{{ raise_exception('nobody may speak') }}{% endif %}",
    '{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}',
    '{% if add_generation_prompt %}[assistant]{% if thinking %} hm{% endif %}{% endif %}',
  ].join('')
  const tokens = { bos_token: '<|begin|>', eos_token: { content: '<|end|>' } }
  const messages = [
    { role: 'user', content: 'one' },
    { role: 'assistant', content: 'two' },
  ]
  const expected = '<|begin|>[user] one<|end|>\n[assistant] two<|end|>\n'

  test.each<[string, object, Record<string, string>]>([
    ['a string', { ...tokens, chat_template: template }, {}],
    [
      'a list of named ones',
      {
        ...tokens,
        chat_template: [
          { name: 'tool_use', template: 'x' },
          { name: 'default', template },
        ],
      },
      {},
    ],
    ['a file of its own', { ...tokens, chat_template: 'x' }, { 'chat_template.jinja': template }],
  ])('%s', async (_, config, files) => {
    const tokenizer = await loadTokenizer(byteLevelFolder(config, files))
    expect(tokenizer.hasChatTemplate).toBe(true)
    expect(tokenizer.chat(messages)).toBe(`${expected}[assistant]`)
    expect(tokenizer.chat(messages, { addGenerationPrompt: false })).toBe(expected)
    expect(tokenizer.chat(messages, { variables: { thinking: true } })).toBe(
      `${expected}[assistant] hm`,
    )
  })

  test('what a template refuses', async () => {
    const tokenizer = await loadTokenizer(byteLevelFolder({ chat_template: template }))
    const call = () => tokenizer.chat([{ role: 'nobody', content: '' }])
    expect(call).toThrow(/nobody may speak/)
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})

test.each<[string, () => string, RegExp]>([
  ['no tokenizer.json', temporaryFolder, /tokenizer\.json/],
  [
    'a tokenizer.json that is no JSON',
    () => byteLevelFolder({}, { 'tokenizer.json': '{' }),
    /JSON/,
  ],
  [
    'a tokenizer.json that is no tokenizer',
    () => byteLevelFolder({}, { 'tokenizer.json': '{"model":{"type":"X"}}' }),
    /tokenizer\.json/,
  ],
  ['a template that is no text', () => byteLevelFolder({ chat_template: 3 }), /chat_template/],
  ['a template that is none', () => byteLevelFolder({ chat_template: '{% if %}' }), /template/],
  [
    'ends that are no tokens',
    () => byteLevelFolder({}, { 'generation_config.json': '{"eos_token_id":"x"}' }),
    /eos_token_id/,
  ],
])('refused: %s', async (_, make, message) => {
  const folder = make()
  await expect(loadTokenizer(folder)).rejects.toThrow(message)
  expect(await codeOf(() => loadTokenizer(folder))).toBe('HOGWILD_INVALID_MODEL')
})
