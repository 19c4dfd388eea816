// Final answers in a text.

import { checkOptions, checkString, invalid, optionKeys } from '../validate'

/** What stands around a final answer, e.g. `\boxed{` and `}`. */
export interface AnswerFormat {
  /** Before the answer, not empty. */
  opening: string
  /** Behind it, not empty. */
  closing: string
}

const FORMAT_KEYS = optionKeys<AnswerFormat>()({ opening: true, closing: true })

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkAnswerFormat(value: AnswerFormat, name: string): AnswerFormat {
  const format = checkOptions(value, name, FORMAT_KEYS)
  for (const key of ['opening', 'closing'] as const) {
    const text = checkString(format[key], `${name}.${key}`)
    if (text === '') throw invalid(`${name}.${key}`, 'a text that is not empty', text)
  }
  return format
}

/** Closings that may stand inside an answer with a partner of their own. */
const PARTNERS: Readonly<Record<string, string>> = { '}': '{', ')': '(', ']': '[' }

/**
 * The last complete answer in a text, without white space around it; undefined where there is none. Brackets of the
 * closing's kind nest: `\boxed{\frac{1}{2}}` holds `\frac{1}{2}`. What is empty or nothing but dots is no
 * answer: it was copied from a rule.
 */
export function findAnswer(text: string, { opening, closing }: AnswerFormat): string | undefined {
  let at = text.lastIndexOf(opening)
  while (at >= 0) {
    const begin = at + opening.length
    const end = closingOf(text, begin, closing)
    const answer = end < 0 ? '' : text.slice(begin, end).trim()
    if (/[^.…]/.test(answer)) return answer
    if (at === 0) return undefined
    at = text.lastIndexOf(opening, at - 1)
  }
  return undefined
}

/** Where the closing stands that belongs to an opening before `begin`, or -1. */
function closingOf(text: string, begin: number, closing: string): number {
  const partner = PARTNERS[closing]
  let depth = 0
  for (let i = begin; i < text.length; i++) {
    if (text.startsWith(closing, i)) {
      if (depth === 0) return i
      depth--
    } else if (text[i] === partner) depth++
  }
  return -1
}
