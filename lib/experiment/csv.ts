// CSV as RFC 4180 has it. It is read strictly: what is not in it is refused with the line, never guessed.

import { HogwildError } from '../errors'

/**
 * The rows behind the header, each an object of texts by the names in it. Fields may be quoted, with '""' for a quote in them;
 * lines end with LF or CRLF; a byte order mark is left out. `where` is for messages.
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function parseCsv(text: string, where: string): Record<string, string>[] {
  const [header, ...rows] = readRows(text.replace(/^\uFEFF/, ''), where)
  if (header === undefined) throw refused(where, 1, 'a header')
  const names = header.fields
  if (names.includes('') || new Set(names).size < names.length) {
    throw refused(where, 1, 'a header of different names')
  }
  return rows.map(({ fields, line }) => {
    if (fields.length !== names.length) {
      throw refused(where, line, `${names.length} fields, received ${fields.length}`)
    }
    return Object.fromEntries(names.map((name, i) => [name, fields[i] as string]))
  })
}

interface Row {
  fields: string[]
  /** Where it begins, from 1. */
  line: number
}

/** A field with what ends it; quoted, or without any quote in it. */
const FIELD = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/y

function readRows(text: string, where: string): Row[] {
  const rows: Row[] = []
  let fields: string[] = []
  let [line, begin, at] = [1, 1, 0]
  while (at < text.length || fields.length > 0) {
    FIELD.lastIndex = at
    const match = FIELD.exec(text)
    if (match === null) throw refused(where, line, 'a quote only around a whole field')
    const [whole, quoted, plain = '', end] = match
    fields.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'))
    at += whole.length
    line += whole.split('\n').length - 1
    if (end === ',') continue
    rows.push({ fields, line: begin })
    fields = []
    begin = line
  }
  return rows
}

/** The text of rows; of nothing, undefined or null, is an empty field. */
export function formatCsv(rows: readonly (readonly unknown[])[]): string {
  return rows
    .map((row) => `${row.map((value) => formatField(String(value ?? ''))).join(',')}\n`)
    .join('')
}

function formatField(text: string): string {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

function refused(where: string, line: number, expected: string): HogwildError {
  return new HogwildError(
    `${where}, line ${line}: expected ${expected}`,
    'HOGWILD_INVALID_ARGUMENT',
  )
}
