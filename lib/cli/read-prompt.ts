// The prompt of a command: as given, or, where it is '-', from stdin.

import { HogwildError } from '../errors'

const MAX_BYTES = 16 * 2 ** 20

/** Of the words that were typed. Throws HOGWILD_INVALID_ARGUMENT for nothing, too much, or what is no UTF-8. */
export async function readPrompt(words: readonly string[]): Promise<string> {
  const prompt = words.join(' ')
  if (prompt !== '-') return prompt
  if (process.stdin.isTTY) process.stderr.write('The prompt, then Ctrl-D:\n')
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of process.stdin as AsyncIterable<Buffer>) {
    pieces.push(piece)
    bytes += piece.length
    if (bytes > MAX_BYTES) throw refused(`at most ${MAX_BYTES} bytes`)
  }
  // What a pipe ends with is no part of the text.
  const text = decode(Buffer.concat(pieces)).replace(/\r?\n$/, '')
  if (text === '') throw refused('a text that is not empty')
  return text
}

function decode(bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw refused('text in UTF-8')
  }
}

function refused(expected: string): HogwildError {
  return new HogwildError(`expected ${expected} on stdin`, 'HOGWILD_INVALID_ARGUMENT')
}
