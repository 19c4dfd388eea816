// Tokenizers and texts that are out to take time, memory or the process.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { HogwildError } from '../lib/errors'
import { TextEngine } from '../lib/tokenizer/text-engine'
import { loadTokenizer, type Tokenizer } from '../lib/tokenizer/tokenizer'
import { codeOf } from './fixtures'
import { byteLevelFolder, byteLevelTokenizer } from './tokenizer-fixtures'

const opened: Tokenizer[] = []

async function load(change: (json: ReturnType<typeof byteLevelTokenizer>) => void, config = {}) {
  const json = byteLevelTokenizer()
  change(json)
  const tokenizer = await loadTokenizer(
    byteLevelFolder(config, { 'tokenizer.json': JSON.stringify(json) }),
  )
  opened.push(tokenizer)
  return tokenizer
}

/** A pattern whose matching takes exponential time. */
const evil = { type: 'Split', pattern: { Regex: '(?:a+)+$' }, behavior: 'Isolated', invert: false }
const slow = `${'a'.repeat(50)}b`

afterEach(() => Promise.all(opened.splice(0).map((tokenizer) => tokenizer.close())))

test('a pattern that takes for ever ends at the deadline; the next request works', async () => {
  const tokenizer = await load((json) => {
    json.pre_tokenizer = evil
    json.post_processor = null
  })
  const call = tokenizer.encode(slow, { timeoutMs: 300 })
  const next = tokenizer.encode('ok')
  let ticks = 0
  const timer = setInterval(() => ticks++, 5)
  await expect(call).rejects.toThrow(/longer than 300 ms/)
  clearInterval(timer)
  expect(ticks).toBeGreaterThan(5)
  expect(await codeOf(() => tokenizer.encode(slow, { timeoutMs: 100 }))).toBe('HOGWILD_TIMEOUT')
  expect(await next).toEqual([111, 107])
  expect(tokenizer.decode([97])).toBe('a')
})

test('so does a template', async () => {
  const endless = '{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}'
  const tokenizer = await load(() => {}, { chat_template: endless })
  const messages = [{ role: 'user', content: 'x' }]
  expect(await codeOf(() => tokenizer.chat(messages, { timeoutMs: 300 }))).toBe('HOGWILD_TIMEOUT')
  expect(await codeOf(() => tokenizer.encodeChat(messages, { timeoutMs: 300 }))).toBe(
    'HOGWILD_TIMEOUT',
  )
  expect(await tokenizer.encode('a')).toEqual([256, 97])
})

test('an aborted request, waiting or under way', async () => {
  const tokenizer = await load((json) => {
    json.pre_tokenizer = evil
  })
  const aborts = [new AbortController(), new AbortController()]
  const calls = aborts.map(({ signal }) => tokenizer.encode(slow, { signal }))
  const reasons = calls.map((call) => call.catch((error) => [error.code, error.cause]))
  aborts[1]!.abort('waiting')
  expect(await reasons[1]).toEqual(['HOGWILD_ABORTED', 'waiting'])
  aborts[0]!.abort('under way')
  expect(await reasons[0]).toEqual(['HOGWILD_ABORTED', 'under way'])
  expect(await codeOf(() => tokenizer.encode('', { signal: AbortSignal.abort() }))).toBe(
    'HOGWILD_ABORTED',
  )
  expect(
    await codeOf(() => loadTokenizer(byteLevelFolder(), { signal: AbortSignal.abort() })),
  ).toBe('HOGWILD_ABORTED')
})

test('close refuses what is under way and what comes; decoding works on', async () => {
  const tokenizer = await load((json) => {
    json.pre_tokenizer = evil
  })
  const calls = [tokenizer.encode(slow), tokenizer.encode('a')].map((call) => codeOf(() => call))
  await Promise.all([tokenizer.close(), tokenizer.close()])
  expect(await Promise.all(calls)).toEqual(['HOGWILD_CLOSED', 'HOGWILD_CLOSED'])
  expect(await codeOf(() => tokenizer.encode('a'))).toBe('HOGWILD_CLOSED')
  expect(await codeOf(() => tokenizer.encodeSync('a'))).toBe('HOGWILD_CLOSED')
  expect(tokenizer.decode([97])).toBe('a')
  await tokenizer.close()
})

test('a template that takes all memory', async () => {
  const greedy =
    "{% set ns = namespace(x=['x']) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
  const tokenizer = await load(() => {}, { chat_template: greedy })
  const code = await codeOf(() =>
    tokenizer.chat([{ role: 'user', content: 'x' }], { timeoutMs: 60_000 }),
  )
  expect(['HOGWILD_OUT_OF_MEMORY', 'HOGWILD_INVALID_ARGUMENT']).toContain(code)
  expect(await tokenizer.encode('a')).toEqual([256, 97])
})

// Every field of every kind of tokenizer, with values of a wrong kind.
describe('a damaged tokenizer.json is refused or works', () => {
  const folder = join(__dirname, 'fixtures/tokenizers')
  const chat = { templates: new Map(), specialTokens: {}, origin: '' }
  const wrong = [null, true, -1, 0.5, 1e9, '(', [[1]], {}]

  const kinds = readdirSync(folder).filter((file) => !/^(split|punctuation)-.*[-_]/.test(file))

  test.each(kinds)('%s', (file) => {
    const { tokenizer } = JSON.parse(readFileSync(join(folder, file), 'utf8'))
    const { vocab, merges } = tokenizer.model
    // What there is thousands of, once.
    if (!Array.isArray(vocab))
      tokenizer.model.vocab = Object.fromEntries(Object.entries(vocab).slice(0, 8))
    if (merges) tokenizer.model.merges = merges.slice(0, 3)
    tokenizer.added_tokens = tokenizer.added_tokens.slice(0, 2)
    let refused = 0
    const attempt = () => {
      try {
        const json = new TextEncoder().encode(JSON.stringify(tokenizer))
        const shared = new SharedArrayBuffer(json.length)
        new Uint8Array(shared).set(json)
        const engine = new TextEngine({ vocabulary: { json: shared }, path: 'x', chat, declaredTokens: [] })
        engine.loaded()
        engine.encode('ab 1 <s>\n', true, false)
      } catch (error) {
        if (!(error instanceof HogwildError)) throw error
        expect(error.message).not.toMatch(/Cannot read|is not a function|of undefined|not iterable/)
        refused++
      }
    }
    const visit = (parent: Record<string, unknown>, depth: number) => {
      for (const key of Object.keys(parent).slice(0, 10)) {
        const value = parent[key]
        for (const other of wrong) {
          parent[key] = other
          attempt()
        }
        delete parent[key]
        attempt()
        parent[key] = value
        if (typeof value === 'object' && value !== null && depth < 4) {
          visit(value as Record<string, unknown>, depth + 1)
        }
      }
    }
    visit(tokenizer, 0)
    expect(refused).toBeGreaterThan(50)
  })
})

test.each<[string, (json: ReturnType<typeof byteLevelTokenizer>) => void]>([
  [
    'an enormous id',
    (json) => (json.model = { type: 'WordLevel', vocab: { a: 1e15 }, unk_token: 'a' }),
  ],
  [
    'an id twice',
    (json) => (json.model = { type: 'WordLevel', vocab: { a: 1, b: 1 }, unk_token: 'a' }),
  ],
  ['dropout', (json) => Object.assign(json.model as object, { dropout: 0.1 })],
  [
    'a pattern by which nothing can be compiled',
    (json) => (json.pre_tokenizer = { ...evil, pattern: { Regex: '(a' } }),
  ],
  [
    'a reference to a group',
    (json) => (json.pre_tokenizer = { ...evil, pattern: { Regex: '(a)\\1' } }),
  ],
  [
    'a pattern after other decoders',
    (json) =>
      (json.decoder = {
        type: 'Sequence',
        decoders: [{ type: 'Fuse' }, { type: 'Replace', pattern: { Regex: 'a' }, content: '' }],
      }),
  ],
])('refused: %s', async (_, change) => {
  expect(await codeOf(() => load(change))).toBe('HOGWILD_INVALID_MODEL')
})
