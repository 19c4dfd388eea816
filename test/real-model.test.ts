import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { loadModel, loadTokenizer, paragraphEnds, type Tokenizer } from '../lib'
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

  test('paragraphs end in its tokens', () => {
    const ends = (text: string) => paragraphEnds(tokenizer)(tokenizer.encodeSync(text))
    expect(['It is 4.\n\n', 'It is 4!\n\n\n', '"It is 4."\n \n'].map(ends)).toEqual([
      true,
      true,
      true,
    ])
    expect(['It follows:\n\n', 'It is 4.\n', 'It is 4.\n\nSo'].map(ends)).toEqual([
      false,
      false,
      false,
    ])
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

describeReal('SmolLM2', () => {
  test('answers', async () => {
    await using model = await loadModel(realModel)
    await using tokenizer = await loadTokenizer(realModel)
    expect(model.config).toMatchObject({ architecture: 'LlamaForCausalLM', tiedEmbeddings: true })
    expect(model.config.layers).toHaveLength(30)
    expect(model.config.eosTokenIds).toEqual([tokenizer.tokenId('<|im_end|>')])
    await using cache = model.createCache({ capacity: 128 })
    const view = { blocks: [cache.createBlock()] }
    const content = 'What is the capital of France?'
    let tokens = await tokenizer.encodeChat([{ role: 'user', content }])
    const answer: number[] = []
    while (answer.length < 20) {
      const [output] = await model.step([{ view, tokens }])
      const token = output!.token!
      if (tokenizer.eosTokenIds.includes(token)) break
      answer.push(token)
      tokens = [token]
    }
    expect(tokenizer.decode(answer)).toBe('The capital of France is Paris.')
  })

  test.each([1, 3])('hogwild run with %i workers', async (workers) => {
    const main = join(__dirname, '..', 'dist', 'cli', 'main.js')
    const args = ['run', '--model', realModel, '--workers', `${workers}`, '--max-tokens', '8']
    const { stdout } = await promisify(execFile)(process.execPath, [main, ...args, 'Say hello.'])
    const names = ['Alice', 'Bob', 'Carol'].filter((name) => stdout.includes(`${name}`))
    expect(names).toHaveLength(workers)
    expect(stdout).toMatch(/\d+ tokens in \d+ steps/)
  })
})
