// Where a worker's paragraph, and with it its turn, ends.

import type { Tokenizer } from '../tokenizer/tokenizer'

const BLANK_LINE = /\n[^\S\n]*\n\s*$/
/** The end of a sentence and what may close behind it: brackets, quotation marks, Markdown's emphasis, formulas. */
const SENTENCE_END = /[\p{Sentence_Terminal}…][\p{Pe}\p{Pf}\p{Quotation_Mark}*_`$]*$/u
/** Each opens and closes a block within which blank lines end nothing. */
const FENCES = ['```', '~~~', '$$']

/** Whether a text ends with a blank line. */
export function endsWithBlankLine(text: string): boolean {
  return BLANK_LINE.test(text)
}

/**
 * Whether a text ends with a whole paragraph: a blank line behind the end of a sentence, outside of code and formulas.
 * "It follows that:" and a blank line, before what follows, end none.
 */
export function endsParagraph(text: string): boolean {
  return (
    endsWithBlankLine(text) &&
    SENTENCE_END.test(text.trimEnd()) &&
    FENCES.every((fence) => (text.split(fence).length - 1) % 2 === 0)
  )
}

/**
 * `endsParagraph` for tokens, as `RunOptions.turnEnds` asks it. The blank line may be one token, part of one (".\n\n") or
 * spread over several. A token that goes on behind the blank line ("\n\nSo") ends no paragraph: its second half
 * would be lost to the next one.
 */
export function paragraphEnds(
  tokenizer: Pick<Tokenizer, 'decode'>,
): (ids: readonly number[]) => boolean {
  const endsBlank = blankLineEnds(tokenizer)
  return (ids) => endsBlank(ids) && endsParagraph(tokenizer.decode(ids))
}

/** `endsWithBlankLine` for tokens. */
export function blankLineEnds(
  tokenizer: Pick<Tokenizer, 'decode'>,
): (ids: readonly number[]) => boolean {
  return (ids) => endsWithBlankLine(lastText(tokenizer, ids))
}

/** The text of the last tokens: as many as it takes to see all white space at the end. */
function lastText(tokenizer: Pick<Tokenizer, 'decode'>, ids: readonly number[]): string {
  for (let count = 1; ; count *= 2) {
    const text = tokenizer.decode(ids.slice(-count))
    // U+FFFD stands for the end of a character that begins further ahead.
    if (count >= ids.length || /[^\s\ufffd]/.test(text)) return text
  }
}
