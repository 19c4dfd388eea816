// What text from outside may do to a terminal: nothing but show. Model files, scripts, callers and models
// can put control characters into names and texts; these move the cursor, hide or reorder what is there,
// or write to the clipboard.

/**
 * Characters that a terminal obeys instead of showing them, or that show nothing: C0 and C1 controls and
 * DEL, line and paragraph separators, bidi controls, and what Unicode calls default ignorable (zero width
 * spaces, tags, fillers). Lone surrogates are no characters at all. Left as they are: joiners and variation
 * selectors, which Persian, Indic scripts and emoji need.
 */
const UNSAFE =
  /(?!\p{Join_Control}|[\ufe00-\ufe0f])[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Bidi_Control}\p{Default_Ignorable_Code_Point}\ufff9-\ufffb]/gu

const LINE_BREAK = /\r\n|[\r\v\f\u0085\u2028\u2029]/g
const TAB = '    '

/**
 * A text of several lines without its unsafe characters. Every kind of line break becomes '\n', tabs become
 * spaces. No escape sequence is looked for: without its first character it is harmless text, wherever
 * the text is cut.
 */
export function printable(text: string): string {
  return text
    .replace(LINE_BREAK, '\n')
    .replaceAll('\t', TAB)
    .replace(UNSAFE, (character) => (character === '\n' ? '\n' : ''))
}

const SHORT_ESCAPES: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' }

/**
 * One line in which unsafe characters stand as escapes ('\n', '\u202e'), so that names which differ in them
 * look different. JSON in which this is done still has the same value.
 */
export function escapeUnsafe(text: string): string {
  return text.replace(UNSAFE, (character) => SHORT_ESCAPES[character] ?? escapeUnits(character))
}

/** As in JSON: one escape per UTF-16 code unit. */
function escapeUnits(character: string): string {
  return character
    .split('')
    .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
    .join('')
}

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB']

/** A number of bytes for people: '397 MB', '1.25 GB', three digits. */
export function inBytes(bytes: number): string {
  const power = bytes < 1000 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log10(bytes) / 3))
  const value = bytes / 1000 ** power
  const digits = power === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2
  return `${value.toFixed(digits)} ${UNITS[power]}`
}
