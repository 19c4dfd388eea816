import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadTokenizer, type Tokenizer } from '../lib'
import { describeReal, realModel } from './real-model'

// What the original tokenizer and transformers give (fixtures/smollm2.py).
const golden = JSON.parse(readFileSync(join(__dirname, 'fixtures', 'smollm2.json'), 'utf8')) as {
  texts: { text: string; ids: number[] }[]
  chats: { messages: { role: string; content: string }[]; text: string; ids: number[] }[]
}

describeReal('the tokenizer of SmolLM2', () => {
  let tokenizer: Tokenizer
  beforeAll(async () => {
    tokenizer = await loadTokenizer(realModel)
  })
  afterAll(() => tokenizer.close())

  test('ids of 300 texts', () => {
    expect(golden.texts).toHaveLength(300)
    const wrong = golden.texts.filter(
      ({ text, ids }) => JSON.stringify(tokenizer.encodeSync(text)) !== JSON.stringify(ids),
    )
    expect(wrong).toEqual([])
  })

  test('its chat template', async () => {
    for (const { messages, text, ids } of golden.chats) {
      expect(await tokenizer.chat(messages)).toBe(text)
      expect(await tokenizer.encodeChat(messages)).toEqual(ids)
    }
  })

  test('its end tokens', () => {
    expect(tokenizer.eosTokenIds).toEqual(
      expect.arrayContaining(
        ['<|im_end|>', '<|endoftext|>'].map((name) => tokenizer.tokenId(name)),
      ),
    )
    expect(tokenizer.eosTokenIds).toHaveLength(2)
  })
})
