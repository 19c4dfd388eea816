// Graders of experiments, and what makes their scores into figures, against cases worked out by hand.

import { parseCsv } from '../lib/experiment/csv'
import { gsmItems } from '../lib/experiment/generators/gsm'
import { choiceOf, exact, lastNumber, numeric } from '../lib/experiment/graders/answers'
import { createGrader } from '../lib/experiment/graders/graders'
import type { Outcome } from '../lib/experiment/item'
import { mean, wilson } from '../lib/experiment/statistics'
import { fillTemplate } from '../lib/experiment/template'

const outcome = (answer: string | undefined, texts: Record<string, string> = {}): Outcome => ({
  ...{ answer, texts, early: false, steps: 1, tokens: 1 },
})

test.each([
  ['Paris', 'Paris', false, true],
  [' Paris\n', 'Paris', false, true],
  ['New   York', 'New York', false, true],
  ['paris', 'Paris', false, false],
  ['paris', 'Paris', true, true],
  ['Paris, France', 'Paris', false, false],
  ['Lyon', ['Paris', 'Lyon'], false, true],
  ['72', 72, false, true],
  ['72.0', 72, false, false],
  ['true', true, false, true],
  ['', '', false, true],
  [undefined, '', false, false],
])('exact: %j, expected %j, ignoring case %j', (answer, expected, ignoreCase, right) => {
  expect(exact(answer, expected, ignoreCase)).toBe(right)
})

test.each([
  ['72', 72],
  ['-3', -3],
  ['\u22123', -3],
  ['+4.5', 4.5],
  ['.5', 0.5],
  ['1,234', 1234],
  ['$1,234,567.50 in all', 1234567.5],
  ['1,2,3', 3],
  ['1234,567', 567],
  ['3e2 metres', 300],
  ['1.5E-3', 0.0015],
  ['5 - 3', 3],
  ['x-5', 5],
  ['12 apples and 7 pears', 7],
  ['= -8.', -8],
  ['3/4', 0.75],
  ['\\frac{1}{2}', 0.5],
  ['-\\dfrac{3}{4}', -0.75],
  ['1{,}000', 1000],
  ['1\\,000', 1000],
  ['It was 60 - 12 = 48.\n#### 48', 48],
  ['none', undefined],
  ['', undefined],
])('the last number of %j', (text, number) => {
  expect(lastNumber(text)).toBe(number)
})

test.each([
  ['72', 72, {}, true],
  ['72.0000000001', 72, {}, true],
  ['72.001', 72, {}, false],
  ['72.5', 72, { tolerance: 0.01 }, true],
  ['73', 72, { tolerance: 0.01 }, false],
  ['0.001', 0, { tolerance: 0.01 }, true],
  ['apples: 72', 'He ate 3.\n#### 72', {}, true],
  ['seventy', 72, {}, false],
  [undefined, 72, {}, false],
  ['3, 5, 8', [3, 5, 8], {}, 1],
  ['3, 5, 9', [3, 5, 8], {}, 2 / 3],
  ['3; 5\n8', [3, 5, 8], {}, 1],
  ['5, 3, 8', [3, 5, 8], {}, 1 / 3],
  ['3, 5', [3, 5, 8], {}, 2 / 3],
  // Four parts where three are expected: none of them is sure.
  ['3, 5, 8, 8', [3, 5, 8], {}, 3 / 4],
  ['3, 5, 9', [3, 5, 8], { all: true }, false],
  ['3, 5, 8', [3, 5, 8], { all: true }, true],
  ['3, 5, 8, 8', [3, 5, 8], { all: true }, false],
  [undefined, [3, 5], {}, 0],
  ['$3, 5 apples', ['3', '5'], {}, 1],
])('numeric: %j, expected %j, %j', (answer, expected, options, grade) => {
  expect(numeric(answer, expected, options)).toBe(grade)
})

const COLOURS = ['red', 'green', 'blue']
test.each([
  ['B', [], 'B'],
  ['(B)', [], 'B'],
  ['b', [], 'B'],
  ['(b).', [], 'B'],
  ['B.', [], 'B'],
  ['B) green', [], 'B'],
  ['The answer is B', [], 'B'],
  ['\\text{C}', [], 'C'],
  ['A or B', [], undefined],
  ['B, because B is green', [], 'B'],
  ['BC', [], undefined],
  ['', [], undefined],
  ['green', [], undefined],
  ['green', COLOURS, 'B'],
  [' Green ', COLOURS, 'B'],
  ['greenish', COLOURS, undefined],
  ['D', COLOURS, undefined],
  ['I say C', COLOURS, 'C'],
  ["It's A's turn: C", COLOURS, 'C'],
  ['c', COLOURS, 'C'],
])('the choice in %j of %j', (answer, choices, letter) => {
  expect(choiceOf(answer, choices)).toBe(letter)
})

test.each([
  ['choice', 'B', {}, 'B', true],
  ['choice', 'B', {}, 'C', false],
  ['choice', '(C)', {}, 2, true],
  [{ type: 'choice', choices: 'colours' }, 'C', { colours: COLOURS }, 'blue', true],
  [{ type: 'choice', choices: 'colours' }, 'green', { colours: COLOURS }, 'blue', false],
  [{ type: 'choice', choices: 'colours' }, 'C', { colours: COLOURS.join('|') }, 'blue', true],
  [{ type: 'regex', pattern: '^4+$' }, '444', {}, undefined, true],
  [{ type: 'regex', pattern: '^4+$' }, '445', {}, undefined, false],
  [{ type: 'regex', pattern: 'is (\\d+)' }, 'is 3, no, is 4', {}, '4', true],
  [{ type: 'regex', pattern: 'is (\\d+)' }, 'is 3, no, is 4', {}, '3', false],
  [{ type: 'regex', pattern: 'YES', flags: 'i' }, 'yes', {}, undefined, true],
  [{ type: 'regex', pattern: 'YES' }, undefined, {}, undefined, false],
  ['exact', 'a', {}, 'a', true],
  [{ type: 'exact', ignoreCase: true }, 'A', {}, 'a', true],
  [{ type: 'numeric', tolerance: 0.1 }, '105', {}, 100, true],
] as const)('%j of a definition: %j', async (options, answer, item, expected, right) => {
  expect(await createGrader(options, 'grader')(outcome(answer), item, expected)).toBe(right)
})

test('a regular expression over all texts, and a function of one’s own', async () => {
  const regex = createGrader({ type: 'regex', pattern: 'b\nc', of: 'texts' }, 'grader')
  expect(await regex(outcome(undefined, { Alice: 'ab', Bob: 'cd' }), {}, undefined)).toBe(true)
  const own = () => 0.5
  expect(createGrader(own, 'grader')).toBe(own)
})

test.each([
  ['fuzzy', 'grader to be one of'],
  [{ type: 'exact', ignorecase: true }, 'grader has no "ignorecase"'],
  [{ type: 'regex' }, 'grader.pattern'],
  [{ type: 'regex', pattern: '(' }, 'regular expression'],
  [{ type: 'numeric', tolerance: -1 }, 'grader.tolerance'],
  [3, 'grader to be an object'],
])('refused: the grader %j', (options, message) => {
  expect(() => createGrader(options, 'grader')).toThrow(message)
})

test.each([
  ['numeric', '1', 'none', 'a number'],
  ['exact', '1', undefined, 'a text or a number'],
  ['choice', 'A', 'what', 'its text where the grader\'s "choices" names the field'],
  [{ type: 'choice', choices: 'x' }, 'A', 'A', 'in its field "x" a list of texts'],
])('%j refuses an item that expects %j', (options, answer, expected, message) => {
  expect(() => createGrader(options, 'grader')(outcome(answer), {}, expected)).toThrow(message)
})

// By the formula, in another program.
test.each([
  [0, 10, 0, 0.2775327998628892],
  [0.5, 10, 0.236593090512564, 0.7634069094874361],
  [1, 10, 0.7224672001371107, 1],
  [81 / 263, 263, 0.2552885198782742, 0.36620957698280004],
  [1, 1, 0.20654931437723745, 1],
  [0.5, 7, 0.20237169360648533, 0.7976283063935147],
  [0, 0, 0, 1],
])('Wilson interval of %d in %d', (share, n, low, high) => {
  const interval = wilson(share, n)
  expect(interval.low).toBeCloseTo(low, 14)
  expect(interval.high).toBeCloseTo(high, 14)
})

test('means', () => {
  expect(mean([1, 2, 6])).toBe(3)
  expect(mean([])).toBeNaN()
})

test('CSV: quotes, line breaks in fields, CRLF, a byte order mark', () => {
  const text = '\uFEFFid,text\r\n1,"a ""b"", c\nd"\r\n2,\r\n'
  expect(parseCsv(text, 'x.csv')).toEqual([
    { id: '1', text: 'a "b", c\nd' },
    { id: '2', text: '' },
  ])
  expect(parseCsv('a\nb', 'x.csv')).toEqual([{ a: 'b' }])
  expect(parseCsv('a,b\n', 'x.csv')).toEqual([])
  expect(parseCsv('a,b\n1,', 'x.csv')).toEqual([{ a: '1', b: '' }])
})

test.each([
  ['', 'line 1: expected a header'],
  ['a,a\n1,2', 'line 1: expected a header of different names'],
  ['a,\n1,2', 'line 1: expected a header of different names'],
  ['a,b\n1,2\n3', 'line 3: expected 2 fields, received 1'],
  ['a,b\n"1\n2",3\n4,5,6', 'line 4: expected 2 fields, received 3'],
  ['a\n"b', 'line 2: expected a quote'],
  ['a\nb"c', 'line 2: expected a quote'],
  ['a\n"b"c', 'line 2: expected a quote'],
  ['a\nb\rc', 'line 2: expected a quote'],
])('refused CSV: %j', (text, message) => {
  expect(() => parseCsv(text, 'x.csv')).toThrow(`x.csv, ${message}`)
})

test('templates', () => {
  expect(fillTemplate('{{a}} + {{ b }} = {{c}}', { a: 'x', b: 2, c: [1] }, 'the item')).toBe(
    'x + 2 = [1]',
  )
  expect(fillTemplate('{a} {{a}}', { a: '{{b}}' }, 'the item')).toBe('{a} {{b}}')
  expect(() => fillTemplate('{{b}}', { a: 1 }, 'item 3')).toThrow('item 3 has no "b"')
  expect(() => fillTemplate('{{toString}}', {}, 'item 3')).toThrow('has no "toString"')
})

/** The answer of a problem from its sentences alone. */
function solve(text: string): number {
  const n = (text.match(/\d+/g) ?? []).map(Number) as [number, number, number, number]
  if (text.includes('boxes')) return n[0] * n[1] - n[2]
  if (text.includes('on the first day')) {
    return Array.from({ length: n[2] }, (_, day) => n[0] + day * n[1]).reduce((a, b) => a + b)
  }
  if (text.includes('shares out')) return n[0] * n[1] + n[2]
  if (text.includes('pays with')) return n[2] - n[0] * n[1]
  if (text.includes('sells half')) return n[0] / 2 + (n[0] / 2) * n[1] - n[2]
  return n[0] * n[1] + (n[0] * n[2]) / 60
}

test('word problems: the same for the same seed, and their answers are right', () => {
  const options = { count: 200, seed: 3, questions: 2 }
  const items = gsmItems(options)
  expect(gsmItems(options)).toEqual(items)
  expect(gsmItems({ ...options, seed: 4 })).not.toEqual(items)
  expect(items.slice(0, 50)).toEqual(gsmItems({ ...options, count: 50 }))
  for (const { question, answer } of items) {
    const parts = question.split('\n').map((line) => line.replace(/^\d\. /, ''))
    expect(parts.map(solve)).toEqual(answer)
    expect(answer.every((number) => Number.isInteger(number) && number > 0)).toBe(true)
  }
  expect(new Set(items.map(({ id }) => id)).size).toBe(200)
})
