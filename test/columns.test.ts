// How many columns of a terminal a text takes, and what fits into some.

import { columnsOf, fittingLength, padColumns, wrapWords } from '../lib/cli/columns'
import { formatTable } from '../lib/cli/table'

test.each([
  ['', 0],
  ['Alice', 5],
  ['größe — «да»', 12],
  ['世界', 4],
  ['ｱｲｳ', 3],
  ['Ａ', 2],
  ['한국어', 6],
  ['🍣', 2],
  ['e\u0301', 1],
  ['नि', 2],
  ['❤\ufe0f', 2],
])('%s takes %d', (text, columns) => {
  expect(columnsOf(text)).toBe(columns)
})

test.each([
  ['abcdef', 3, 'abc'],
  ['abc', 5, 'abc'],
  ['世界人', 5, '世界'],
  ['a世', 2, 'a'],
  ['ae\u0301b', 2, 'ae\u0301'],
  ['a👩\u200d🚀b', 4, 'a'],
  ['a👩\u200d🚀b', 5, 'a👩\u200d🚀'],
  // What is too wide alone is cut within, and something always fits.
  ['👩\u200d👩\u200d👧', 4, '👩\u200d👩\u200d'],
  ['世', 1, '世'],
])('of %j fits into %d columns: %j', (text, room, fitting) => {
  expect(text.slice(0, fittingLength(text, room))).toBe(fitting)
})

test('lines and tables are as wide as what is seen', () => {
  expect(padColumns('世界', 6)).toBe('世界  ')
  expect(wrapWords('many hands 世界世界 make', 11)).toEqual(['many hands', '世界世界', 'make'])
  const table = formatTable(['name', 'n'], [['世界人', '世'], ['abc', '10']]) // biome-ignore format: rows
  expect(table.map(columnsOf)).toEqual([10, 10, 10, 10])
})
