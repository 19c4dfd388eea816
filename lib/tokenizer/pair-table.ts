// A hash table from pairs of non-negative 32-bit integers to one: merges of two tokens, edges of a trie.
// Typed arrays, because a Map with such keys takes ten times the memory and several times as long.

const EMPTY = -1

export class PairTable {
  #first: Int32Array
  #second: Int32Array
  #value: Int32Array
  #mask: number
  #size = 0

  /** `expected`: pairs that will come, if that is known. */
  constructor(expected = 16) {
    const slots = 2 ** Math.ceil(Math.log2(Math.max(expected, 8) * 2))
    this.#first = new Int32Array(slots).fill(EMPTY)
    this.#second = new Int32Array(slots)
    this.#value = new Int32Array(slots)
    this.#mask = slots - 1
  }

  /** The value of a pair, or -1. */
  get(first: number, second: number): number {
    const slot = this.#slot(first, second)
    return this.#first[slot] === EMPTY ? EMPTY : (this.#value[slot] as number)
  }

  set(first: number, second: number, value: number): void {
    const slot = this.#slot(first, second)
    if (this.#first[slot] === EMPTY) {
      this.#first[slot] = first
      this.#second[slot] = second
      this.#size++
    }
    this.#value[slot] = value
    if (this.#size * 2 > this.#mask) this.#grow()
  }

  /** Of the pair, or the empty one where it would come. */
  #slot(first: number, second: number): number {
    let hash = Math.imul(first, 0x9e3779b1) ^ Math.imul(second, 0x85ebca6b)
    hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d)
    let slot = (hash ^ (hash >>> 13)) & this.#mask
    while (
      this.#first[slot] !== EMPTY &&
      (this.#first[slot] !== first || this.#second[slot] !== second)
    ) {
      slot = (slot + 1) & this.#mask
    }
    return slot
  }

  #grow(): void {
    const [first, second, value] = [this.#first, this.#second, this.#value]
    const slots = first.length * 2
    this.#first = new Int32Array(slots).fill(EMPTY)
    this.#second = new Int32Array(slots)
    this.#value = new Int32Array(slots)
    this.#mask = slots - 1
    first.forEach((key, i) => {
      if (key === EMPTY) return
      const slot = this.#slot(key, second[i] as number)
      this.#first[slot] = key
      this.#second[slot] = second[i] as number
      this.#value[slot] = value[i] as number
    })
  }
}
