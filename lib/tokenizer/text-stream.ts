// The text of tokens that come one after the other.

import { invalid } from '../validate'
import type { Decoder, TextSink } from './decoders'
import type { TokenTable } from './token-table'

/** What a stream needs of a tokenizer. */
export interface DecodeSource {
  tokens: TokenTable
  decoder: Decoder
}

/**
 * Text of a growing list of tokens: what `push` and `end` return, joined, is what `decode` gives for the list.
 * A character whose bytes are spread over several tokens comes with the last of them, so at most 3 bytes are
 * held back. Made by `Tokenizer.stream`.
 */
export class TextStream {
  readonly #source: DecodeSource
  readonly #skipSpecialTokens: boolean
  #sink: TextSink
  #text = ''

  /** @internal */
  constructor(source: DecodeSource, skipSpecialTokens: boolean) {
    this.#source = source
    this.#skipSpecialTokens = skipSpecialTokens
    this.#sink = this.#begin()
  }

  /** The text that one more token brings; '' while a character is incomplete. Ids without a token give no text. Throws HOGWILD_INVALID_ARGUMENT. */
  push(id: number): string {
    if (!Number.isInteger(id)) throw invalid('id', 'a token id', id)
    const { tokens } = this.#source
    if (tokens.has(id) && !(this.#skipSpecialTokens && tokens.isSpecial(id))) {
      this.#sink.text(tokens.text(id))
      this.#sink.close()
    }
    return this.#take()
  }

  /** The text held back: U+FFFD for an incomplete character. A token that is pushed later begins a new text. */
  end(): string {
    this.#sink.end()
    this.#sink = this.#begin()
    return this.#take()
  }

  /** @internal One of its own for what may come next. */
  fork(): TextStream {
    const fork = new TextStream(this.#source, this.#skipSpecialTokens)
    fork.#sink = this.#sink.copy(fork.#collector())
    return fork
  }

  #begin(): TextSink {
    return this.#source.decoder.start(this.#collector())
  }

  #collector(): TextSink {
    return {
      text: (piece) => {
        this.#text += piece
      },
      close() {},
      end() {},
      copy: (end) => end,
    }
  }

  #take(): string {
    const text = this.#text
    this.#text = ''
    return text
  }
}
