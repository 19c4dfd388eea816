import {
  CARD_BYTES,
  cardBytes,
  DTYPE_BYTES,
  FORMATS,
  type Format,
  storedBytes,
} from '../lib/formats'
import { native } from '../lib/native'

test('JavaScript and native code have one table of formats', () => {
  const table = Object.entries(FORMATS).map(([name, block]) => ({
    name,
    ...block,
    cardBytes: CARD_BYTES[name as Format],
  }))
  expect(native.formats()).toEqual(table)
})

test('every dtype is a plain format', () => {
  for (const [dtype, bytes] of Object.entries(DTYPE_BYTES)) {
    expect(FORMATS[dtype as Format]).toEqual({ elements: 1, bytes })
  }
})

test('bytes of a matrix', () => {
  expect(storedBytes('bf16', 3, 5)).toBe(30)
  expect(storedBytes('q4_k', 2, 512)).toBe(2 * 2 * 144)
  expect(cardBytes('q4_0', 17, 96)).toBe(32 * 2 * 36)
})
