// Documents of which one says what is asked for, at a chosen depth among others of its kind, in the manner of LOFT's corpora in
// context (arXiv 2406.13121).

import { between, random, sample } from '../random'

export interface NeedlesOptions {
  /** Items of each number of documents and depth. */
  count: number
  seed: number
  /** Numbers of documents in a context, at most 8000; a document has some 25 tokens. */
  documents: readonly number[]
  /** Where the document stands, from 0, the first, to 1, the last. */
  depths: readonly number[]
}

export interface NeedlesItem {
  [field: string]: unknown
  id: string
  /** All documents, a line each, with ids from 0. */
  corpus: string
  question: string
  /** The number that is asked for. */
  answer: number
  /** The id of the document that has it. */
  ids: string[]
  documents: number
  depth: number
}

const COLOURS = [
  ...['amber', 'azure', 'beige', 'black', 'brown', 'copper', 'crimson', 'golden', 'green', 'grey'],
  ...[
    'ivory',
    'lilac',
    'olive',
    'orange',
    'pink',
    'purple',
    'scarlet',
    'silver',
    'white',
    'yellow',
  ],
]
const THINGS = [
  ...['anchor', 'basket', 'bell', 'bottle', 'camera', 'carpet', 'clock', 'drum', 'flute', 'kettle'],
  ...[
    'ladder',
    'lamp',
    'lantern',
    'mirror',
    'radio',
    'saddle',
    'statue',
    'suitcase',
    'vase',
    'violin',
  ],
]
const OWNERS = [
  ...['Ada', 'Boris', 'Chen', 'Dalia', 'Emeka', 'Freya', 'Goran', 'Hana', 'Idris', 'Jun'],
  ...['Kofi', 'Lena', 'Marco', 'Nadia', 'Omar', 'Priya', 'Quinn', 'Rosa', 'Sven', 'Tariq'],
]
const SUBJECTS = COLOURS.flatMap((colour) =>
  THINGS.flatMap((thing) => OWNERS.map((owner) => ({ colour, thing, owner }))),
)
export const MAX_DOCUMENTS = SUBJECTS.length

/** Items in the order of lengths, then depths. The same for the same options, on every machine. */
export function needlesItems({ count, seed, documents, depths }: NeedlesOptions): NeedlesItem[] {
  const next = random(seed)
  return documents.flatMap((size) =>
    depths.flatMap((depth) =>
      Array.from({ length: count }, (_, index) => needle(size, depth, index, seed, next)),
    ),
  )
}

function needle(
  size: number,
  depth: number,
  index: number,
  seed: number,
  next: () => number,
): NeedlesItem {
  const at = Math.round(depth * (size - 1))
  const facts = sample(SUBJECTS, size, next).map((subject) => ({
    ...subject,
    number: between(1000, 9999, next),
  }))
  const lines = facts.map(
    ({ colour, thing, owner, number }, id) =>
      `ID: ${id} | The ${colour} ${thing} of ${owner} is kept under number ${number}.`,
  )
  const { colour, thing, owner, number } = facts[at] as (typeof facts)[number]
  return {
    id: `needle-${seed}-${size}-${depth}-${index}`,
    corpus: lines.join('\n'),
    question: `Under which number is the ${colour} ${thing} of ${owner} kept?`,
    answer: number,
    ids: [String(at)],
    documents: size,
    depth,
  }
}
