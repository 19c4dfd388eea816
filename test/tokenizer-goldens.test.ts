// Ids and texts of the Rust library `tokenizers` for tiny tokenizers of every kind (fixtures/tokenizer-goldens.py),
// and streams against `decode`. HOGWILD_TOKENIZERS: another folder that the script made.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { BYTE_CHARACTERS } from '../lib/tokenizer/bytes'
import { parseDecoder } from '../lib/tokenizer/decoders'
import { Encoder } from '../lib/tokenizer/encoder'
import { byteToken } from '../lib/tokenizer/models/unigram'
import { TextStream } from '../lib/tokenizer/text-stream'
import { packTokens, TokenTable } from '../lib/tokenizer/token-table'

interface Golden {
  tokenizer: { decoder: unknown }
  encoded: { text: string; ids: number[]; plain: number[] | null }[]
  decoded: { ids: number[]; text: string; skipped: string }[]
}

const folder = process.env.HOGWILD_TOKENIZERS ?? join(__dirname, 'fixtures/tokenizers')
const names = readdirSync(folder).map((file) => file.replace('.json', ''))

function load(name: string) {
  const golden = JSON.parse(readFileSync(join(folder, `${name}.json`), 'utf8')) as Golden
  const encoder = new Encoder(golden.tokenizer)
  const special = new Set(encoder.addedTokens.filter((t) => t.special).map(({ id }) => id))
  const decoder = parseDecoder(golden.tokenizer.decoder)
  const texts = encoder.decodableTokens.map((token) => token && decoder.prepare(token))
  const tokens = new TokenTable(packTokens(encoder.tokens, texts, (id) => special.has(id)))
  const stream = () => new TextStream({ tokens, decoder }, false)
  const pieces = (ids: readonly number[], skipSpecialTokens: boolean) => {
    const stream = new TextStream({ tokens, decoder }, skipSpecialTokens)
    return [...ids.map((id) => stream.push(id)), stream.end()]
  }
  return { golden, encoder, special, tokens, stream, pieces }
}

test('there are tokenizers', () => {
  expect(names.length).toBeGreaterThan(50)
})

describe.each(names)('%s', (name) => {
  const { golden, encoder, special, tokens, stream, pieces } = load(name)

  test('ids', () => {
    const ids = golden.encoded.map(({ text }) =>
      encoder.encode({ text, addSpecialTokens: true, plainText: [] }),
    )
    expect(ids).toEqual(golden.encoded.map((one) => one.ids))
  })

  test('ids with special tokens as text', () => {
    for (const { text, plain } of golden.encoded) {
      const ids = encoder.encode({ text, addSpecialTokens: false, plainText: true })
      if (plain !== null) expect(ids).toEqual(plain)
      expect(ids.filter((id) => special.has(id) && id !== encoder.unknownId)).toEqual([])
    }
  })

  test('text, streamed', () => {
    for (const { ids, text, skipped } of golden.decoded) {
      expect(pieces(ids, false).join('')).toBe(text)
      expect(pieces(ids, true).join('')).toBe(skipped)
    }
  })

  test('text of a fork, which goes another way', () => {
    golden.decoded.forEach(({ ids, text }, i) => {
      const other = golden.decoded.at(i - 1)!.ids
      const whole = stream()
      let before = ''
      ids.forEach((id, at) => {
        const fork = whole.fork()
        const ahead = other.map((each) => fork.push(each)).join('')
        expect(before + ahead + fork.end()).toBe(
          pieces([...ids.slice(0, at), ...other], false).join(''),
        )
        before += whole.push(id)
      })
      expect(before + whole.end()).toBe(text)
    })
  })

  test('every token is found by its name', () => {
    encoder.tokens.forEach((token, id) => {
      if (token !== undefined && encoder.tokens.lastIndexOf(token) === id) {
        expect(encoder.tokens[tokens.id(token) as number]).toBe(token)
      }
    })
    expect(tokens.id('no such token')).toBeUndefined()
  })
})

// Bytes that are no UTF-8, genuine U+FFFD and cut characters in every place.
test.each(['gpt2', 'llama2'])('%s: random bytes give what the WHATWG says', (name) => {
  const { encoder, pieces } = load(name)
  const byName = new Map(encoder.tokens.map((token, id) => [token, id]))
  const idOf = (byte: number) =>
    byName.get(name === 'gpt2' ? BYTE_CHARACTERS[byte] : byteToken(byte)) as number
  const interesting = [
    0x61, 0x20, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0xff, 0xed, 0xa0, 0xbf, 0xef,
    0xbd, 0xbb,
  ]
  let state = 1
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * interesting.length)
  }
  for (let round = 0; round < 300; round++) {
    const bytes = Array.from({ length: 12 }, () => interesting[next()] as number)
    const expected = new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(bytes))
    const parts = pieces(bytes.map(idOf), false)
    // SentencePiece's decoder takes one space from the beginning.
    expect(parts.join('')).toBe(name === 'gpt2' ? expected : expected.replace(/^ /, ''))
    // Nothing but the incomplete tail is held back.
    let given = ''
    bytes.forEach((_, i) => {
      given += parts[i]
      const soFar = new TextDecoder('utf-8', { ignoreBOM: true }).decode(
        Uint8Array.from(bytes.slice(0, i + 1)),
        { stream: true },
      )
      if (name === 'gpt2') expect(given).toBe(soFar)
    })
  }
})
