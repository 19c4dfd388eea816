// Grammars: text that is JSON of a schema or what an EBNF grammar says, from the first token on.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as hogwild from '../lib'
import {
  createGrammar,
  type Grammar,
  type GrammarMatcher,
  type GrammarOptions,
  generate,
  loadModel,
  loadTokenizer,
  type Model,
  Sampler,
  type Tokenizer,
} from '../lib'
import { TextMasks, type TextState } from '../lib/grammar/text-masks'
import { findPackage } from '../lib/optional-package'
import { codeOf, Random, temporaryFolder, writeModel } from './fixtures'
import { byteLevelFolder } from './tokenizer-fixtures'

const { writeTexts } = require('./long/grammar.cjs') as {
  writeTexts(
    package_: typeof hogwild,
    options: {
      model: Model
      tokenizer: Tokenizer
      stopTokens: number[]
      runs: number
      seed: number
    },
  ): Promise<{ texts: string[]; faults: string[] }>
}

/** A tokenizer of the fixtures, as a folder. */
function fixture(name: string): string {
  const folder = temporaryFolder()
  const { tokenizer } = require(`./fixtures/tokenizers/${name}.json`)
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  return folder
}

let tokenizer: Tokenizer
let model: Model
let stopTokens: number[]

beforeAll(async () => {
  tokenizer = await loadTokenizer(fixture('qwen2'))
  stopTokens = [tokenizer.tokenId('<|end|>')!]
  // More rows than tokens, as padded vocabularies have.
  const vocabSize = tokenizer.size + 37
  model = await loadModel(writeModel({ vocabSize, seed: 90 }), { device: 'cpu', threads: 2 })
})

afterAll(async () => {
  await model.close()
  await tokenizer.close()
})

const create = (options: Partial<GrammarOptions>) =>
  createGrammar({ tokenizer, stopTokens, ...options })

test('three workers at once write JSON of a schema each', async () => {
  const options = { model, tokenizer, stopTokens, runs: 4, seed: 91 }
  const { texts, faults } = await writeTexts(hogwild, options)
  expect(faults).toEqual([])
  expect(texts).toHaveLength(12)
  expect(new Set(texts).size).toBeGreaterThan(8)
})

describe.each(['smollm', 'llama2', 'gemma', 'qwen2', 'unigram-bytes'])('tokenizer %s', (name) => {
  test('what it allows is what its tokens say', async () => {
    await using own = await loadTokenizer(fixture(name))
    const stop = own.tokenId('<|end|>')!
    const grammar = await createGrammar({
      tokenizer: own,
      stopTokens: [stop],
      ebnf: 'root ::= "he" ("é" | "ü" | " w" | "[1]") "."',
    })
    const random = new Random(92)
    const seen = new Set<string>()
    for (let i = 0; i < 40; i++) {
      const matcher = await grammar.matcher()
      const ids: number[] = []
      while (!matcher.hasEnded) {
        const id = random.pick(idsOf(await allowedBy(matcher)))
        ids.push(id)
        matcher.acquire()
        matcher.release([id])
      }
      expect(ids.pop()).toBe(stop)
      seen.add(own.decode(ids))
    }
    expect([...seen].sort()).toEqual(['he w.', 'he[1].', 'heé.', 'heü.'].sort())
  })
})

const allowedBy = async (matcher: GrammarMatcher) => (await matcher.allowed())[0]!
const idsOf = (mask: Int32Array) =>
  [...mask.keys()].flatMap((word) =>
    Array.from({ length: 32 }, (_, bit) => bit)
      .filter((bit) => (mask[word]! >>> bit) & 1)
      .map((bit) => 32 * word + bit),
  )

describe('a matcher', () => {
  let grammar: Grammar
  beforeAll(async () => {
    grammar = await create({ ebnf: 'root ::= "yes" | "no"' })
  })

  test('goes on with the step’s token, and stays where it was when a step fails', async () => {
    await using cache = model.createCache({ capacity: 256 })
    const view = { blocks: [cache.createBlock()] }
    const matcher = await grammar.matcher()
    let text = ''
    for (let tokens = [1]; ; ) {
      const before = matcher.tokens
      const failing = model.step([
        { view, tokens, grammar: matcher, processLogits: (logits) => void logits.fill(-Infinity) },
      ])
      await expect(failing).rejects.toThrow(/processLogits and grammar left no token/)
      expect([matcher.tokens, matcher.hasEnded]).toEqual([before, false])
      const [output] = await model.step([{ view, tokens, grammar: matcher, logits: 'last' }])
      expect(matcher.tokens).toEqual([...before, output!.token])
      // The largest of those that are allowed.
      const ids = idsOf(await allowedBy(await grammar.matcher(before)))
      const best = ids.reduce((a, b) => (output!.logits![b]! > output!.logits![a]! ? b : a))
      expect(output!.token).toBe(best)
      if (matcher.hasEnded) break
      text += tokenizer.decode([output!.token!])
      tokens = [output!.token!]
    }
    expect(['yes', 'no']).toContain(text)
    const after = await codeOf(() => model.step([{ view, tokens: [1], grammar: matcher }]))
    expect(after).toBe('HOGWILD_INVALID_ARGUMENT')
  })

  test('serves one worker at a time', async () => {
    await using cache = model.createCache({ capacity: 256 })
    await using other = model.createCache({ capacity: 256 })
    const matcher = await grammar.matcher()
    const worker = (of = cache) => ({
      view: { blocks: [of.createBlock()] },
      tokens: [1],
      grammar: matcher,
    })
    expect(await codeOf(() => model.step([worker(), worker()]))).toBe('HOGWILD_INVALID_ARGUMENT')
    const running = model.step([worker()])
    expect(await codeOf(() => model.step([worker(other)]))).toBe('HOGWILD_BUSY')
    await running
    expect(matcher.tokens).toHaveLength(1)
  })

  test('is made anew behind the tokens of another', async () => {
    const bytes = await grammar.matcher(tokenizer.encodeSync('ye'))
    expect(idsOf(await allowedBy(bytes))).toContain(tokenizer.tokenId('s'))
    for (const [tokens, message] of [
      [tokenizer.encodeSync('nay'), /tokens\[\d\] to be a token that the grammar allows/],
      [[tokenizer.size], /tokens\[0\] to be an integer/],
      ['no', /tokens/],
    ] as const) {
      await expect(grammar.matcher(tokens as number[])).rejects.toThrow(message)
    }
  })

  test('with a sampler that forbids all that it allows: refused', async () => {
    await using cache = model.createCache({ capacity: 256 })
    const matcher = await grammar.matcher()
    const sampler = new Sampler({ forbidden: idsOf(await allowedBy(matcher)) })
    const worker = {
      view: { blocks: [cache.createBlock()] },
      tokens: [1],
      grammar: matcher,
      sampler,
    }
    await expect(model.step([worker])).rejects.toThrow(/forbidden/)
    expect(matcher.tokens).toEqual([])
  })
})

test('generate ends with the grammar’s text', async () => {
  const schema = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] }
  const grammar = await create({ jsonSchema: schema })
  const options = { model, tokenizer, prompt: 'is it?', stopTokens, grammar }
  const [first, second] = await Promise.all([
    generate(options).result,
    generate({ ...options, sampler: { temperature: 2, seed: 4 } }).result,
  ])
  for (const { text, reason } of [first, second]) {
    expect(reason).toBe('stop-token')
    expect([{ ok: true }, { ok: false }]).toContainEqual(JSON.parse(text))
    expect(text).toMatch(/^\{"ok": (true|false)\}$/)
  }
  const bad = { ...options, grammar: {} as Grammar }
  expect(() => generate(bad)).toThrow(/options.grammar to be a Grammar/)
})

describe('refuses', () => {
  const printed: unknown[] = []
  beforeAll(() => {
    for (const method of ['log', 'warn', 'error'] as const) {
      jest.spyOn(console, method).mockImplementation((...lines) => void printed.push(lines))
    }
  })
  afterAll(() => {
    jest.restoreAllMocks()
  })

  test.each<[string, object, RegExp]>([
    [
      'a schema that is none',
      { jsonSchema: { type: 5 } },
      /jsonSchema cannot be compiled: Type should/,
    ],
    ['an unknown type', { jsonSchema: { type: 'blah' } }, /Unsupported type "blah"/],
    [
      'text that is no JSON',
      { jsonSchema: '{' },
      /jsonSchema cannot be compiled: Failed to parse JSON/,
    ],
    ['a reference to nothing', { jsonSchema: { $ref: '#/x' } }, /Cannot find field x/],
    ['a schema without JSON', { jsonSchema: { toJSON: () => undefined } }, /written as JSON/],
    ['an EBNF without root', { ebnf: 'x ::= "a"' }, /ebnf cannot be compiled: .*root/],
    ['an EBNF with a fault', { ebnf: 'root ::= "a' }, /line 1, column \d+: /],
    ['neither', {}, /either a jsonSchema or an ebnf/],
    ['both', { ebnf: 'root ::= "a"', jsonSchema: {} }, /either a jsonSchema or an ebnf/],
    ['another whitespace', { jsonSchema: {}, whitespace: 'some' }, /one of 'line', 'any'/],
    ['no stop token', { jsonSchema: {}, stopTokens: [] }, /at least one token/],
    ['an unknown stop token', { jsonSchema: {}, stopTokens: [1e6] }, /stopTokens\[0\]/],
    ['another tokenizer', { jsonSchema: {}, tokenizer: {} }, /tokenizer to be a Tokenizer/],
    ['a schema that is a number', { jsonSchema: 5 }, /jsonSchema to be an object/],
    ['another key', { schema: {} }, /has no "schema"/],
  ])('%s', async (_, options, message) => {
    const error: Error = await create(options).then(
      () => new Error('not refused'),
      (thrown) => thrown,
    )
    expect(error).toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' })
    expect(error.message).toMatch(message)
    expect(printed).toEqual([])
    // Grammars from before and after work on.
    expect((await create({ ebnf: 'root ::= "a"' })).matcher()).resolves.toBeDefined()
  })

  test.each(['bert', 'clip', 'ctc'])('tokens whose text depends on others: %s', async (name) => {
    await using own = await loadTokenizer(fixture(name))
    const options = { tokenizer: own, stopTokens: [1], jsonSchema: {} }
    await expect(createGrammar(options)).rejects.toMatchObject({ code: 'HOGWILD_UNSUPPORTED' })
  })

  test('where the package is not there, naming it', async () => {
    const missing = () => findPackage('@mlc-ai/not-there', 'grammars need')
    expect(missing).toThrow(/grammars need the package @mlc-ai\/not-there.*npm install/)
    expect(await codeOf(missing)).toBe('HOGWILD_UNSUPPORTED')
  })
})

test('bytes of special tokens never come out, and unfinished characters are followed up', async () => {
  await using bytes = await loadTokenizer(byteLevelFolder({ eos_token: '<|end|>' }))
  const grammar = await createGrammar({ tokenizer: bytes, ebnf: 'root ::= "é" | "<|end|>"' })
  const matcher = await grammar.matcher()
  expect(idsOf(await allowedBy(matcher))).toEqual([0x3c, 0xc3])
  const next = await grammar.matcher([0xc3])
  expect(idsOf(await allowedBy(next))).toEqual([0xa9])
  expect(idsOf(await allowedBy(await grammar.matcher([0xc3, 0xa9])))).toEqual([257])
})

test('masks of text let through exactly what is well-formed UTF-8', () => {
  const bytes = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte))
  const masks = new TextMasks(bytes, (byte) => byte === 7)
  const random = new Random(93)
  const decoder = new TextDecoder('utf-8', { fatal: true })
  const isText = (text: number[]) => {
    try {
      decoder.decode(Uint8Array.from(text))
      return true
    } catch {
      return false
    }
  }
  const edges = [0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec]
  edges.push(0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff, 0x41)
  let texts = 0
  for (let i = 0; i < 20_000; i++) {
    const text = Array.from({ length: random.int(1, 5) }, () => random.pick(edges))
    let state: TextState | undefined = TextMasks.begin
    for (const byte of text) state = state === undefined ? state : masks.after(state, byte)
    expect([text, state === TextMasks.begin]).toEqual([text, isText(text)])
    if (isText(text)) texts++
  }
  expect(texts).toBeGreaterThan(500)
  const mask = new Int32Array(9).fill(-1)
  masks.apply(TextMasks.begin, mask)
  const allowed = bytes.map((_, byte) => byte).filter((byte) => byte !== 7 && byte < 0xf5)
  expect(idsOf(mask)).toEqual(allowed.filter((byte) => byte < 0x80 || byte > 0xc1))
})
