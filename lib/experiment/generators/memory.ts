// A conversation in which several things go on at once and change (arXiv 2409.20222): messages of all tasks, interleaved, some
// of which come while workers write, and at the end a question about each task.

import { between, random, sample } from '../random'

export interface MemoryOptions {
  /** Items. */
  count: number
  seed: number
  /** Messages of each task. */
  messages: number
  /** Steps between two messages that come late; 0: all of them stand in the prompt. */
  every: number
}

export interface MemoryItem {
  [field: string]: unknown
  id: string
  /** What was said before workers begin, a line for each message. */
  before: string
  /** What is said afterwards: the text enters the common block behind that many steps. */
  late: { step: number; text: string }[]
  question: string
  /** Of each task, in the question's order: the colour, the shopping list, the distance. */
  answer: (string | string[])[]
}

const COLOURS = ['red', 'green', 'blue', 'yellow', 'black', 'white', 'orange', 'purple']
const GOODS = ['milk', 'bread', 'apples', 'rice', 'tea', 'salt', 'soap', 'eggs', 'onions', 'flour']

/** One thing that is told bit by bit. */
interface Thread {
  messages: string[]
  answer: string | string[]
}

/** Only the last colour counts. */
function colourThread(messages: number, next: () => number): Thread {
  const colours = Array.from({ length: messages }, () => sample(COLOURS, 1, next)[0] as string)
  return {
    messages: colours.map((colour) => `My favourite colour is ${colour} now.`),
    answer: colours.at(-1) as string,
  }
}

/** Goods come onto the list and leave it. */
function shoppingThread(messages: number, next: () => number): Thread {
  const list: string[] = []
  const texts = Array.from({ length: messages }, () => {
    const missing = GOODS.filter((thing) => !list.includes(thing))
    if (list.length > 1 && next() < 0.3) {
      const [thing = ''] = sample(list, 1, next)
      list.splice(list.indexOf(thing), 1)
      return `Please take ${thing} off the shopping list.`
    }
    const [thing = ''] = sample(missing.length > 0 ? missing : list, 1, next)
    if (!list.includes(thing)) list.push(thing)
    return `Please put ${thing} on the shopping list.`
  })
  return { messages: texts, answer: list }
}

/** Distances add up. */
function walkThread(messages: number, next: () => number): Thread {
  const miles = Array.from({ length: messages }, () => between(1, 9, next))
  return {
    messages: miles.map((mile) => `Today I walked ${mile} miles.`),
    answer: String(miles.reduce((sum, mile) => sum + mile, 0)),
  }
}

/** The same items for the same options, on every machine. */
export function memoryItems({ count, seed, messages, every }: MemoryOptions): MemoryItem[] {
  const next = random(seed)
  return Array.from({ length: count }, (_, index) => {
    const threads = [colourThread, shoppingThread, walkThread].map((make) => make(messages, next))
    const texts = interleaved(
      threads.map((thread) => thread.messages),
      next,
    )
    const early = every === 0 ? texts.length : Math.ceil(texts.length / 2)
    return {
      id: `memory-${seed}-${index}`,
      before: texts.slice(0, early).join('\n'),
      late: texts
        .slice(early)
        .map((text, i) => ({ step: (i + 1) * every, text: `\n\nUser: ${text}` })),
      question:
        'What is my favourite colour; what is on the shopping list, separated by commas; how many miles have I walked in all?',
      answer: threads.map(({ answer }) => answer),
    }
  })
}

/** All lists in one, each in its own order. */
function interleaved(lists: readonly (readonly string[])[], next: () => number): string[] {
  const left = lists.map((list) => [...list])
  const all: string[] = []
  for (let open = left; open.length > 0; open = open.filter((list) => list.length > 0)) {
    all.push((sample(open, 1, next)[0] as string[]).shift() as string)
  }
  return all
}
