// The words that let the workers of one model share a cache: plain text, in the order in which a view shows it. What they
// have to say is told by the paper (Hogwild! Inference, arXiv 2504.06261, section 3.3 and appendix); the words are
// this package's own.

import { commitsTurns, type LayoutName } from '../workers/layout'
import type { AnswerFormat } from './answer'

/** Whom the texts are about. */
export interface Team {
  /** Names, in worker order. */
  names: readonly string[]
  /** How they see one another. */
  layout: LayoutName
}

/**
 * All words of a collaboration. Nothing that a worker goes on from ends with white space, which most tokenizers put
 * at the beginning of the next word; what follows another block begins with its own line breaks.
 */
export interface CollaborationTexts {
  /** How to work together; the problem follows. */
  rules: (team: Team) => string
  /** For a worker that sees nobody else. */
  soloRules: string
  /** Stands between rules and problem where both are one message. */
  problem: string
  /** Ends the common block where finished paragraphs come behind it (interleaved, combined). */
  record: string
  /** Stands before what others have not finished (contiguous, combined). */
  others: string
  /** Marks the end of what others have not finished. */
  unfinished: string
  /** Stands before what a worker writes itself. */
  own: string
  /** Opens a paragraph: whose it is, and which of that worker's, from 1. */
  turn: (name: string, turn: number) => string
  /** The beginning of a worker's first paragraph, from which it goes on; `index`: in worker order. */
  greeting: (name: string, index: number) => string
  /** The beginning of what a worker writes that sees nobody else. */
  soloGreeting: string
  /** Asked now and then at the beginning of a paragraph; the worker answers by writing on. */
  check: string
  /** Comes behind all that was written to have an answer at once; ends with the opening of one. */
  finisher: string
  /** What stands around the final answer. */
  answer: AnswerFormat
}

const ANSWER: AnswerFormat = { opening: '\\boxed{', closing: '}' }
/** With nothing inside that a model would copy. */
const BOX = `${ANSWER.opening}${ANSWER.closing}`

const RECORD = '# Finished paragraphs'
const OTHERS = '# What the others are writing'
const OWN = '# What I am writing'
const UNFINISHED = '[...]'

/** The words that a collaboration has by default; any of them may be replaced. */
export const collaborationTexts: Readonly<CollaborationTexts> = Object.freeze<CollaborationTexts>({
  rules,
  soloRules: `Solve the following problem step by step, in short paragraphs. Once you are sure of the result, write it inside ${BOX} and stop.`,
  problem: '\n\nThe problem:\n\n',
  record: RECORD,
  others: OTHERS,
  unfinished: ` ${UNFINISHED}`,
  own: OWN,
  turn: (name, turn) => `**${name} [${turn}]:**`,
  greeting: (name, index) =>
    index === 0 ? ` ${name} here. I suggest that we` : ` ${name} here. I will`,
  soloGreeting: 'Step by step:',
  check: ' Before I go on: am I repeating what somebody else has done or is doing? (yes/no):',
  finisher: `\n\nTime is up, so the answer has to be given now. From all that was found so far, it is ${ANSWER.opening}`,
  answer: ANSWER,
})

function rules({ names, layout }: Team): string {
  const [first = '', second = ''] = names
  return `${listOf(names)} solve the problem below together, all at the same time. You are one of these ${names.length}: the one whose text comes last.

How the text is laid out:
${howItIsLaidOut(layout, second)}

How to work together:
- Share the work: say early which part you take, and take one that nobody has. Where proposals differ, that of ${first} counts.
- Where there is nothing to share, go different ways to the same result, or check what another one has found and nobody has checked.
- Read what the others have written before you go on. Build on their results, answer their questions, tell them their mistakes by name: "${second}, the sign in your second line is wrong."
- Never do what another one has done or is doing. As soon as you notice it, stop in the middle of the sentence, say so ("${first} has this already") and take up something else.
- Once the result is sure, one of you writes it inside ${BOX}. That ends the work: nobody can change it afterwards.`
}

function howItIsLaidOut(layout: LayoutName, name: string): string {
  const paragraphs = commitsTurns(layout)
    ? `- Everyone writes paragraphs. Each begins with its writer and its number, as in **${name} [2]:**, and ends with a blank line.
- Finished paragraphs of all of you stand under "${RECORD}", in the order in which they were finished.`
    : `- Everyone writes a text of paragraphs. It begins with its writer, as in **${name} [1]:**.`
  const others =
    layout === 'interleaved'
      ? '- You see what the others write as soon as a paragraph is finished. While you write yours, new ones of theirs appear before it.'
      : `- Under "${OTHERS}" stands what the others have written so far. It grows while you write; "${UNFINISHED}" marks where it goes on.`
  return `${paragraphs}\n${others}\n- What you write comes last, under "${OWN}".`
}

/** 'Alice, Bob and Carol' */
function listOf(names: readonly string[]): string {
  return names.length < 2
    ? names.join('')
    : `${names.slice(0, -1).join(', ')} and ${names.at(-1) as string}`
}

/** The texts of a layout's blocks, of any number of workers. */
export interface BlockTexts {
  /** Where the assistant's answer begins, at the end of the common block; '' where nothing is to be said. */
  commonEnd: string
  /** What all workers see before the others' unfinished text; '' for none. */
  sharedHeader: string
  /** What each worker sees before its own text; '' for none. */
  header: string
  /** What each worker's own block begins with, in worker order. */
  openings: string[]
}

/** What stands in which block. `share`: whether workers see one another. */
export function blockTexts(texts: CollaborationTexts, team: Team, share: boolean): BlockTexts {
  const { names, layout } = team
  if (!share) {
    const openings = names.map(() => texts.soloGreeting)
    return { commonEnd: '', sharedHeader: '', header: '', openings }
  }
  const own = `\n\n${texts.own}`
  return {
    commonEnd: commitsTurns(layout) ? texts.record : texts.others,
    sharedHeader: layout === 'combined' ? `\n\n${texts.others}` : '',
    header: layout === 'interleaved' ? own : texts.unfinished + own,
    openings: names.map((name, i) => `\n\n${texts.turn(name, 1)}${texts.greeting(name, i)}`),
  }
}
