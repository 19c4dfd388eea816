// What reaches a terminal: texts of models, names in messages.

import { createCache, HogwildError } from '../lib'
import { LinePrinter } from '../lib/cli/run/line-printer'
import { printJson } from '../lib/cli/terminal'
import { escapeUnsafe, printable } from '../lib/printable'
import { codeOf } from './fixtures'

/** By code point, not by a property of Unicode: what must never reach a terminal. */
const RANGES: [number, number][] = [
  [0x00, 0x09],
  [0x0b, 0x1f],
  [0x7f, 0x9f],
  [0x61c, 0x61c],
  [0x200b, 0x200b],
  [0x200e, 0x200f],
  [0x2028, 0x202e],
  [0x2060, 0x206f],
  [0xfeff, 0xfeff],
  [0xfff9, 0xfffb],
  [0xe0000, 0xe007f],
]

function unsafe(text: string): string[] {
  return [...text].filter((character) => {
    const point = character.codePointAt(0) ?? 0
    return RANGES.some(([first, last]) => point >= first && point <= last)
  })
}

/** What `write` prints, of one writer after the other. */
function printed(
  texts: readonly [name: string, text: string][],
  columns?: number,
  names = ['Alice', 'Bob'],
): string {
  const out: string[] = []
  const write = jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
    out.push(String(text))
    return true
  })
  const before = Object.getOwnPropertyDescriptor(process.stdout, 'columns')
  Object.defineProperty(process.stdout, 'columns', { value: columns, configurable: true })
  try {
    const printer = new LinePrinter(names)
    for (const [name, text] of texts) printer.write(name, text)
    for (const name of names) printer.flush(name)
  } finally {
    write.mockRestore()
    if (before) Object.defineProperty(process.stdout, 'columns', before)
    else Reflect.deleteProperty(process.stdout, 'columns')
  }
  return out.join('')
}

const SEQUENCES: [kind: string, text: string][] = [
  ['CSI', '\x1b[2Jx'],
  ['CSI with parameters', '\x1b[38;2;255;0;0;1;2;3;4;5;6;7mred'],
  ['CSI, private', '\x1b[?1049hx'],
  ['CSI with intermediate bytes', '\x1b[5 q\x1b[!p\x1b[1$r\x1b[>4;2mx'],
  ['OSC ended by BEL', '\x1b]0;title\x07x'],
  ['OSC ended by ST', '\x1b]0;title\x1b\\x'],
  ['OSC 52, the clipboard', '\x1b]52;c;cm0gLXJm\x1b\\x'],
  ['OSC 8, a link', '\x1b]8;;http://example.org\x1b\\click\x1b]8;;\x1b\\'],
  ['DCS', '\x1bPq#0\x1b\\x'],
  ['APC, PM, SOS', '\x1b_a\x1b\\\x1b^b\x1b\\\x1bXc\x1b\\'],
  ['reset, charset, save, keypad', '\x1bc\x1b(0\x1b7\x1b8\x1b=\x1b#8x'],
  ['C1 CSI', '\x9b2Jx'],
  ['C1 OSC', '\x9d52;c;cm0gLXJm\x9cx'],
  ['C1 DCS', '\x90x\x9c'],
  ['carriage return', 'x\rBob   | said by Alice'],
  ['backspaces', `ab${'\b'.repeat(10)}Bob | said by Alice`],
  ['delete', 'a\x7fb'],
  ['tab, vertical tab, form feed', 'a\tb\x0bc\x0cd'],
  ['next line', 'a\x85Bob   | said by Alice'],
  ['line and paragraph separators', 'a\u2028Bob   | said by Alice\u2029b'],
  ['bidi overrides and embeddings', 'a\u202a\u202b\u202c\u202d\u202egnp.exe'],
  ['bidi isolates', 'a\u2066\u2067\u2068\u2069b'],
  ['bidi marks', 'a\u200e\u200f\u061cb'],
  ['zero width space, word joiner, BOM', 'a\u200b\u2060\ufeffb'],
  ['interlinear annotation', 'a\ufff9b\ufffac\ufffbd'],
  ['tags', 'a\u{e0001}\u{e0041}\u{e007f}b'],
  ['lone surrogates', 'a\ud800b\udfffc'],
]

describe('the text of a worker', () => {
  test.each(SEQUENCES)('%s: nothing that a terminal obeys, and every line named', (_, text) => {
    const pieces = [[text], [...text], text.split('')]
    for (const parts of pieces) {
      const out = printed(parts.map((part) => ['Alice', part]))
      expect(unsafe(out)).toEqual([])
      expect(out).not.toMatch(/\p{Cs}/u)
      expect(out).not.toBe('')
      for (const line of out.trimEnd().split('\n')) expect(line).toMatch(/^Alice \| /)
    }
  })

  test('a sequence over the place where a long line is cut', () => {
    for (let before = 90; before <= 102; before++) {
      const out = printed([
        ['Alice', `${'a'.repeat(before)}\x1b[2J \x1b]0;t\x07 ${'b'.repeat(30)}\n`],
      ])
      expect(unsafe(out)).toEqual([])
      expect(out.replace(/Alice \| |\s/g, '')).toBe(`${'a'.repeat(before)}[2J]0;t${'b'.repeat(30)}`)
    }
  })

  test('sequences of two writers do not meet', () => {
    const out = printed([
      ['Alice', '\x1b'],
      ['Bob', '[2J\n'],
      ['Alice', 'c\n'],
    ])
    expect(out).toBe('Bob   | [2J\nAlice | c\n')
  })

  test.each([20, 40, 80, 120])('no line is broken by a terminal of %d columns', (columns) => {
    const text = `${'wide 漢字漢字漢字 🙂🙂 '.repeat(20)}${'x'.repeat(300)}${'漢'.repeat(100)}\n`
    const out = printed([['Alice', text]], columns)
    const cells = (line: string) =>
      [...line].reduce((sum, character) => sum + (character <= '\x7f' ? 1 : 2), 0)
    const lines = out.trimEnd().split('\n')
    // However narrow, a line has room for 20 columns of text.
    for (const line of lines) expect(cells(line)).toBeLessThanOrEqual(Math.max(columns, 28))
    for (const line of lines) expect(line).toMatch(/^Alice \| /)
    expect(
      lines
        .map((line) => line.slice(8))
        .join('')
        .replaceAll(' ', ''),
    ).toBe(text.replaceAll(/\s/g, ''))
  })

  test('a line is filled up to the edge, by text of any script; wide names are counted', () => {
    const text = `${'größe — да '.repeat(12)}${'漢字'.repeat(40)}`
    const names = ['漢字', 'Al']
    const out = printed([['Al', text]], 40, names)
    const lines = out.trimEnd().split('\n')
    for (const line of lines) expect(line).toMatch(/^Al {3}\| /)
    expect(lines[0]).toBe(`Al   | ${'größe — да '.repeat(3).trimEnd()}`)
    expect(lines.at(-2)).toBe(`Al   | ${'漢字'.repeat(8)}`)
    expect(printed([['漢字', 'x']], 40, names)).toBe('漢字 | x\n')
  })

  test('what needs joiners and variation selectors keeps them', () => {
    const text = 'می‌خواهم 👩‍👩‍👧 ❤️ क्‍ष'
    expect(printable(text)).toBe(text)
  })
})

describe('messages', () => {
  test.each(SEQUENCES)('%s in a name stands there as an escape', (_, text) => {
    const { message, stack } = new HogwildError(`unknown "${text}"`, 'HOGWILD_INVALID_ARGUMENT')
    for (const shown of [message, stack?.split('\n')[0] ?? '']) {
      expect(unsafe(shown)).toEqual([])
      expect(shown).not.toContain('\n')
      expect(shown).toContain('\\')
    }
  })

  test('names that differ in what cannot be seen look different', () => {
    expect(escapeUnsafe('a\u200bb')).toBe('a\\u200bb')
    expect(escapeUnsafe('a\x1b[1m\n\u{e0041}')).toBe('a\\u001b[1m\\n\\udb40\\udc41')
  })

  test('a name of megabytes is cut', () => {
    const { message } = new HogwildError(`unknown "${'🙂'.repeat(1e6)}"`, 'HOGWILD_INVALID_MODEL')
    expect(message.length).toBeLessThan(2100)
    expect(message.endsWith('…')).toBe(true)
  })

  test('of a public call', async () => {
    const options = { layers: 1, kvHeads: 1, headDim: 8, dtype: '\x1b]0;\x07\u202e\x9b' }
    const call = () => createCache(options as never)
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
    try {
      call()
    } catch (error) {
      expect(unsafe((error as Error).message)).toEqual([])
    }
  })
})

test('JSON: escapes, the same value, one line', () => {
  const value = Object.fromEntries(SEQUENCES)
  const out: string[] = []
  const write = jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
    out.push(String(text))
    return true
  })
  printJson(value)
  write.mockRestore()
  const [line = '', rest] = out.join('').split('\n')
  expect(rest).toBe('')
  expect(unsafe(line)).toEqual([])
  expect(JSON.parse(line)).toEqual(value)
})
