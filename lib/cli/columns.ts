// Columns that text takes on a terminal, which are not its characters: 世 takes two, an accent on a letter none.

import { getEAW } from 'meaw'

/** Columns of a character. */
const WIDEST = 2

const graphemes = new Intl.Segmenter(undefined, { granularity: 'grapheme' })

/** Characters that stand on the one before them; U+FE0F makes a wide picture of a narrow sign. */
const WITHOUT_WIDTH = /^(?!\ufe0f)[\p{Mn}\p{Me}\p{Cf}]$/u

/** Of printable text of one line, as terminals show it that put no characters together to one picture; none shows it wider. */
export function columnsOf(text: string): number {
  let columns = 0
  for (const character of text) columns += columnsOfCharacter(character)
  return columns
}

function columnsOfCharacter(character: string): number {
  if (character <= '\x7f') return 1
  if (WITHOUT_WIDTH.test(character)) return 0
  const width = getEAW(character)
  return width === 'W' || width === 'F' ? 2 : 1
}

/**
 * How much of a text fits into `room` columns, in UTF-16 code units; at least one character. Signs of several
 * characters are cut only where one alone is too wide.
 */
export function fittingLength(text: string, room: number): number {
  return (
    lengthOf(graphemes.segment(text), room) || lengthOf(charactersOf(text), Math.max(room, WIDEST))
  )
}

function* charactersOf(text: string): Iterable<{ segment: string }> {
  for (const segment of text) yield { segment }
}

function lengthOf(parts: Iterable<{ segment: string }>, room: number): number {
  let columns = 0
  let length = 0
  for (const { segment } of parts) {
    columns += columnsOf(segment)
    if (columns > room) break
    length += segment.length
  }
  return length
}

/** `text` with spaces behind it, `columns` wide. */
export function padColumns(text: string, columns: number): string {
  return text + ' '.repeat(Math.max(0, columns - columnsOf(text)))
}

/** Lines of at most `columns`, broken between words. A word that is wider has a line of its own. */
export function wrapWords(text: string, columns: number): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const line = lines.at(-1)
    if (line === undefined || columnsOf(line) + 1 + columnsOf(word) > columns) lines.push(word)
    else lines[lines.length - 1] = `${line} ${word}`
  }
  return lines
}
