// Word problems in the manner of grade school mathematics, several to an item, as the synthetic task of Hogwild! Inference
// (arXiv 2504.06261) has them: parts that can be shared out, each of some dependent steps. The sentences are this package's own.

import { between, random, sample } from '../random'

export interface GsmOptions {
  /** Items. */
  count: number
  seed: number
  /** Problems of an item. */
  questions: number
}

export interface GsmItem {
  [field: string]: unknown
  id: string
  question: string
  /** An integer for each problem. */
  answer: number[]
}

interface Problem {
  text: string
  answer: number
}

type Draw = (least: number, most: number) => number

const NAMES = ['Ada', 'Boris', 'Chen', 'Dalia', 'Emeka', 'Freya', 'Goran', 'Hana', 'Idris', 'Jun']
const THINGS = ['apples', 'stamps', 'marbles', 'shells', 'postcards', 'beads', 'pencils', 'coins']

/** Each ends with a positive integer. */
const PROBLEMS: readonly ((name: string, thing: string, draw: Draw) => Problem)[] = [
  (name, thing, draw) => {
    const [boxes, each, gone] = [draw(3, 9), draw(4, 12), draw(2, 10)]
    return {
      text: `${name} has ${boxes} boxes with ${each} ${thing} in each and gives ${gone} ${thing} away. How many ${thing} are left?`,
      answer: boxes * each - gone,
    }
  },
  (name, thing, draw) => {
    const [first, more, days] = [draw(2, 9), draw(1, 5), draw(3, 6)]
    return {
      text: `${name} finds ${first} ${thing} on the first day and on each following day ${more} more than on the day before. How many ${thing} does ${name} find in ${days} days?`,
      answer: days * first + (more * days * (days - 1)) / 2,
    }
  },
  (name, thing, draw) => {
    const [friends, each, kept] = [draw(2, 8), draw(3, 9), draw(1, 9)]
    return {
      text: `${name} shares out ${thing} among ${friends} friends, ${each} to each, and keeps ${kept}. How many ${thing} were there at first?`,
      answer: friends * each + kept,
    }
  },
  (name, thing, draw) => {
    const [price, count] = [draw(2, 9), draw(3, 12)]
    const paid = price * count + draw(1, 40)
    return {
      text: `${name} buys ${count} ${thing} at $${price} each and pays with $${paid}. How many dollars does ${name} get back?`,
      answer: paid - price * count,
    }
  },
  (name, thing, draw) => {
    const [half, times, lost] = [draw(4, 15), draw(2, 4), draw(1, 8)]
    return {
      text: `${name} has ${2 * half} ${thing} and sells half of them. Then ${name} gets ${times} times as many as are left, and loses ${lost}. How many ${thing} does ${name} have now?`,
      answer: half + half * times - lost,
    }
  },
  (name, thing, draw) => {
    const [perHour, hours, minutes] = [4 * draw(2, 9), draw(2, 5), 15 * draw(1, 3)]
    return {
      text: `${name} sorts ${perHour} ${thing} per hour. How many ${thing} does ${name} sort in ${hours} hours and ${minutes} minutes?`,
      answer: perHour * hours + (perHour * minutes) / 60,
    }
  },
]

/** The same items for the same options, on every machine. */
export function gsmItems({ count, seed, questions }: GsmOptions): GsmItem[] {
  const next = random(seed)
  const draw: Draw = (least, most) => between(least, most, next)
  return Array.from({ length: count }, (_, index) => {
    const problems = Array.from({ length: questions }, () => {
      const problem = PROBLEMS[draw(0, PROBLEMS.length - 1)] as (typeof PROBLEMS)[number]
      const [name, thing] = [sample(NAMES, 1, next)[0], sample(THINGS, 1, next)[0]]
      return problem(name as string, thing as string, draw)
    })
    return {
      id: `gsm-${seed}-${index}`,
      question:
        problems.length === 1
          ? (problems[0] as Problem).text
          : problems.map(({ text }, i) => `${i + 1}. ${text}`).join('\n'),
      answer: problems.map(({ answer }) => answer),
    }
  })
}
