import { StopMatcher } from '../lib/tokenizer/stop-strings'
import { Random } from './fixtures'

/** What a matcher passes on of pieces, then of the end. */
function feed(stops: readonly string[], pieces: readonly string[]) {
  const matcher = new StopMatcher(stops)
  const passed = pieces.map((piece) => matcher.push(piece))
  const text = passed.join('') + (matcher.found ? '' : matcher.end())
  return { text, passed, found: matcher.found }
}

/** The text before the stop string that is complete first; of several, the longest. */
function definition(stops: readonly string[], text: string): { text: string; found: boolean } {
  for (let end = 1; end <= text.length; end++) {
    const lengths = stops.filter((stop) => text.slice(0, end).endsWith(stop)).map((s) => s.length)
    if (lengths.length > 0) return { text: text.slice(0, end - Math.max(...lengths)), found: true }
  }
  return { text, found: false }
}

test('text that may become a stop string is held back, and nothing else', () => {
  const matcher = new StopMatcher(['</end>', '\n\n'])
  expect(matcher.push('a <')).toBe('a ')
  expect(matcher.push('/e')).toBe('')
  expect(matcher.push('x<<')).toBe('</ex<')
  expect(matcher.push('/end')).toBe('')
  expect(matcher.found).toBe(false)
  expect(matcher.push('> more')).toBe('')
  expect(matcher.found).toBe(true)
  expect(matcher.push('more')).toBe('')
  expect(matcher.end()).toBe('')
})

test('the end gives what is held back; what follows begins anew', () => {
  const matcher = new StopMatcher(['abc'])
  expect(matcher.push('xab')).toBe('x')
  expect(matcher.end()).toBe('ab')
  expect(matcher.push('c')).toBe('c')
  expect(matcher.found).toBe(false)
})

test('any text in any pieces: all before the first complete stop string, and no part of it', () => {
  const random = new Random(7)
  const word = (length: number) =>
    Array.from({ length }, () => 'ab'[random.int(0, 1)] as string).join('')
  for (let round = 0; round < 3000; round++) {
    const stops = Array.from({ length: random.int(0, 3) }, () => word(random.int(1, 6)))
    const text = word(random.int(0, 39))
    const pieces: string[] = []
    for (let at = 0; at < text.length; ) {
      const length = random.int(1, 5)
      pieces.push(text.slice(at, at + length))
      at += length
    }
    const expected = definition(stops, text)
    const { passed, ...result } = feed(stops, pieces)
    expect({ stops, whole: text, ...result }).toEqual({ stops, whole: text, ...expected })
    // What is held back is never more than a stop string's beginning.
    const longest = Math.max(0, ...stops.map((stop) => stop.length - 1))
    let given = 0
    let taken = 0
    pieces.forEach((piece, i) => {
      given += piece.length
      taken += (passed[i] as string).length
      if (!expected.found) expect(given - taken).toBeLessThanOrEqual(longest)
    })
  }
})

test('long stop strings and texts take linear time', () => {
  const stop = `${'a'.repeat(100_000)}b`
  const begin = performance.now()
  const { text, found } = feed([stop], Array(400).fill('a'.repeat(1000)))
  expect(found).toBe(false)
  expect(text).toHaveLength(400_000)
  expect(performance.now() - begin).toBeLessThan(2000)
})
