// Which tokens keep a text well-formed UTF-8, and JSON without control characters: what xgrammar's classes of
// characters let through (0.1.27: surrogates, what lies beyond U+10FFFF, and control characters in strings of bounded
// length) must not come out.

/** What may follow: a character, or the rest of one that a token has left incomplete. */
const STATES = {
  begin: 0,
  oneMore: 1,
  twoMore: 2,
  threeMore: 3,
  afterE0: 4,
  afterED: 5,
  afterF0: 6,
  afterF4: 7,
} as const
type State = (typeof STATES)[keyof typeof STATES]

/** Unicode's table of well-formed UTF-8. undefined: it is none. */
function afterByte(state: State, byte: number): State | undefined {
  const within = (low: number, high: number, next: State) =>
    byte >= low && byte <= high ? next : undefined
  switch (state) {
    case STATES.begin:
      return afterFirst(byte)
    case STATES.oneMore:
      return within(0x80, 0xbf, STATES.begin)
    case STATES.twoMore:
      return within(0x80, 0xbf, STATES.oneMore)
    case STATES.threeMore:
      return within(0x80, 0xbf, STATES.twoMore)
    case STATES.afterE0:
      return within(0xa0, 0xbf, STATES.oneMore)
    case STATES.afterED:
      return within(0x80, 0x9f, STATES.oneMore)
    case STATES.afterF0:
      return within(0x90, 0xbf, STATES.twoMore)
    case STATES.afterF4:
      return within(0x80, 0x8f, STATES.twoMore)
  }
}

function afterFirst(byte: number): State | undefined {
  if (byte < 0x80) return STATES.begin
  if (byte < 0xc2 || byte > 0xf4) return undefined
  if (byte < 0xe0) return STATES.oneMore
  if (byte === 0xe0) return STATES.afterE0
  if (byte === 0xed) return STATES.afterED
  if (byte < 0xf0) return STATES.twoMore
  if (byte === 0xf0) return STATES.afterF0
  return byte === 0xf4 ? STATES.afterF4 : STATES.threeMore
}

/** How far a text is in its last character. */
export type TextState = State

/** Of one vocabulary. */
export class TextMasks {
  static readonly begin: TextState = STATES.begin
  readonly #tokens: readonly Uint8Array[]
  readonly #refused: (byte: number) => boolean
  readonly #masks = new Map<State, Int32Array>()

  /** `refused`: bytes below 0x80 that must not come out. */
  constructor(tokens: readonly Uint8Array[], refused: (byte: number) => boolean) {
    this.#tokens = tokens
    this.#refused = refused
  }

  /** Takes out of `mask`, bit id % 32 of element id / 32, what must not come next, and ids that are no token's. */
  apply(state: TextState, mask: Int32Array): void {
    const own = this.#mask(state)
    for (let i = 0; i < mask.length; i++) (mask[i] as number) &= own[i] ?? 0
  }

  /** After a token; undefined where it must not come. One without bytes comes between characters. */
  after(state: TextState, token: number): TextState | undefined {
    const bytes = this.#tokens[token] as Uint8Array
    if (bytes.length === 0) return state === STATES.begin ? state : undefined
    let next: State | undefined = state
    for (const byte of bytes) {
      if (this.#refused(byte)) return undefined
      next = afterByte(next, byte)
      if (next === undefined) return undefined
    }
    return next
  }

  #mask(state: State): Int32Array {
    const known = this.#masks.get(state)
    if (known !== undefined) return known
    const mask = new Int32Array(Math.ceil(this.#tokens.length / 32))
    for (let id = 0; id < this.#tokens.length; id++) {
      if (this.after(state, id) !== undefined) (mask[id >>> 5] as number) |= 1 << (id & 31)
    }
    this.#masks.set(state, mask)
    return mask
  }
}
