// The text of tokens that come one after the other.

import type { Tokenizer } from './tokenizer'

/**
 * Text of a growing list of tokens. A character whose bytes are spread over several tokens comes with
 * the last of them; special tokens give no text.
 */
export class TextStream {
  readonly #tokenizer: Tokenizer
  // Tokens whose text has been given out, as far as the next one's text may depend on them (leading
  // spaces), and tokens that wait for the rest of a character.
  #context: number[] = []
  #waiting: number[] = []

  /** @internal */
  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer
  }

  /** The text that one more token brings; '' while a character is incomplete. */
  push(id: number): string {
    this.#waiting.push(id)
    const given = this.#decode(this.#context)
    const text = this.#decode([...this.#context, ...this.#waiting])
    if (text.endsWith('\uFFFD')) return ''
    this.#context = this.#waiting
    this.#waiting = []
    return text.slice(given.length)
  }

  /** The text of tokens that wait for the rest of a character which does not come. */
  end(): string {
    const given = this.#decode(this.#context)
    const text = this.#decode([...this.#context, ...this.#waiting])
    this.#context = this.#waiting
    this.#waiting = []
    return text.slice(given.length)
  }

  #decode(ids: readonly number[]): string {
    return this.#tokenizer.decode(ids, { skipSpecialTokens: true })
  }
}
