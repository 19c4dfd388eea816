// The one way out for what a user should know and no error is: each kind of warning once per object.

import { escapeUnsafe } from './printable'
import { checkOptionalFunction } from './validate'

/**
 * Something that works, but maybe not as its user thinks. `code` is for programs and stays, `message` is
 * for people.
 */
export interface Warning {
  /** For programs: docs/troubleshooting.md has each. */
  code: `HOGWILD_${string}`
  /** For people. */
  message: string
}

/** Takes the warnings of a model, tokenizer or cache. Default: `process.emitWarning` with the code. */
export type WarningHandler = (warning: Warning) => void

/** The warnings of one object: each code is told once. */
export class Warnings {
  readonly #handler: WarningHandler
  readonly #told = new Set<string>()

  /** `handler` is the caller's option `onWarning`, not checked yet; `name` is what messages call it. */
  constructor(handler: WarningHandler | undefined, name = 'options.onWarning') {
    this.#handler = checkOptionalFunction(handler, name) ?? emit
  }

  /** Those of another object, for which `handler` stands; where it is undefined, they go where these go. */
  child(handler: WarningHandler | undefined): Warnings {
    return new Warnings(handler ?? this.#handler)
  }

  /** Codes that were told. */
  get told(): string[] {
    return [...this.#told]
  }

  /** These codes count as told. */
  skip(codes: readonly string[]): void {
    for (const code of codes) this.#told.add(code)
  }

  warn(code: Warning['code'], message: string): void {
    if (this.#told.has(code)) return
    this.#told.add(code)
    this.#handler({ code, message: escapeUnsafe(message) })
  }
}

function emit({ code, message }: Warning): void {
  process.emitWarning(message, { type: 'HogwildWarning', code })
}
