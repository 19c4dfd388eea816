// Tokens are strangers' text: what cannot be seen, moves the cursor or turns the direction is shown by what it is.

/** Controls, separators, bidi controls, what shows nothing, and lone surrogates; joiners that scripts need stay. */
const UNSEEN =
  /(?!\p{Join_Control}|[\ufe00-\ufe0f])[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Bidi_Control}\p{Default_Ignorable_Code_Point}\ufff9-\ufffb]/gu

/** One line, in which spaces, line breaks and tabs have signs. */
export function inOneLine(text: string): string {
  return text
    .replace(/\r\n|\n/g, '↵')
    .replaceAll('\t', '⇥')
    .replaceAll(' ', '·')
    .replace(UNSEEN, nameOf)
}

/** As it is, but for what cannot be seen. */
export function inLines(text: string): string {
  return text
    .replace(/\r\n?/g, '\n')
    .replace(UNSEEN, (character) => (/[\n\t]/.test(character) ? character : nameOf(character)))
}

function nameOf(character: string): string {
  return `⟨${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0')}⟩`
}

/** At most so many characters. */
export function clipped(text: string, room: number): string {
  const characters = Array.from(text)
  return characters.length <= room
    ? text
    : `${characters.slice(0, Math.max(1, room - 1)).join('')}…`
}

const NUMBER = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })

/** 12,345 */
export function inDigits(value: number): string {
  return NUMBER.format(value)
}

/** '1 token', '2 tokens' */
export function counted(value: number, what: string): string {
  return `${inDigits(value)} ${what}${value === 1 ? '' : 's'}`
}

/** A number of milliseconds with three digits. */
export function inTime(milliseconds: number): string {
  if (milliseconds === 0) return '0 ms'
  if (milliseconds < 1) return `${inDigits(milliseconds * 1e3)} µs`
  if (milliseconds < 999.5) return `${Number(milliseconds.toPrecision(3))} ms`
  const seconds = milliseconds / 1e3
  if (seconds < 99.95) return `${Number(seconds.toPrecision(3))} s`
  const minutes = Math.floor(seconds / 60)
  return `${inDigits(minutes)} min ${Math.round(seconds % 60)} s`
}
