// One assistant as two workers (AsyncReasoning, arXiv 2512.10931): a thinker, and a writer that makes the reply out of its
// thoughts. Either sees the other's text as it grows. Now and then the thinker is asked whether the reply may go on.

import { type ChatOptions, Tokenizer } from '../tokenizer/tokenizer'
import {
  checkInstance,
  checkInteger,
  checkOneOf,
  checkOptions,
  checkSignal,
  checkString,
  invalid,
  optionKeys,
} from '../validate'
import { checkTemplateOptions, checkWords, encodePart, encodePrompt } from './encode'
import { blankLineEnds } from './turns'

/** The words of a thinker and a writer. */
export interface ThinkerWriterTexts {
  /** What the thinker is told before the problem. The writer is told nothing but the problem. */
  thinkerRules: string
  /** Stands before the problem. */
  problem: string
  /** Between the reply so far and the thoughts, in the thinker's view. */
  thinkerHeading: string
  /** Between the thoughts so far and the reply, in the writer's view. */
  writerHeading: string
  /** What the thoughts begin with. */
  thoughts: string
  /** What the reply begins with. */
  reply: string
  /** Before thoughts, of models that have a token `<think>`. */
  thinkOpening: string
  /** Behind them. */
  thinkClosing: string
  /** Before thoughts, of other models. */
  plainOpening: string
  /** Behind them. */
  plainClosing: string
  /** Asked behind the thoughts, in a block that is thrown away. */
  question: string
  /** Answer to the question: the reply may go on. It differs from `no` in its first token. */
  yes: string
  /** The other answer: the reply has to wait. */
  no: string
}

/** The words that `thinkAndWrite` has by default; any of them may be replaced. */
export const thinkerWriterTexts: Readonly<ThinkerWriterTexts> = Object.freeze<ThinkerWriterTexts>({
  thinkerRules: `You think about the problem below while the reply to it is being written: an automatic writer makes it out of your thoughts. The user sees the reply only. It stands above your thoughts, as far as it has come.

- Think in short paragraphs. What the reply needs first comes first: the user is waiting.
- Now and then you are asked whether your thoughts are ahead of the reply by enough for one more paragraph of it. Say yes where they are, and no where you have to think before it can go on.
- Read the reply. Where something in it is wrong, think of what is right, and the writer will correct it.
- Go on until the reply holds the whole result and you have checked it.`,
  problem: '\n\nThe problem:\n\n',
  thinkerHeading: '\n\n[the reply goes on here]\n\n',
  writerHeading: '\n\n[more thoughts come here]',
  thoughts: 'Let me think step by step.',
  reply: '\n\n',
  thinkOpening: '<think>\n',
  thinkClosing: '\n</think>',
  plainOpening: 'My thoughts:\n\n',
  plainClosing: '\n\nMy reply:',
  question:
    '\n\nOne moment: are these thoughts ahead of the reply by enough for one more paragraph of it? (yes/no):',
  yes: ' yes',
  no: ' no',
})

/** Options of `thinkAndWrite`. */
export interface ThinkerWriterOptions {
  /** Of the model. Its chat template is used where it has one. */
  tokenizer: Tokenizer
  /** What the user asks, as text. */
  problem: string
  /** How many thoughts' tokens lie between two questions, at least 1; default 20. */
  askEvery?: number | undefined
  /** Words in place of those of `thinkerWriterTexts`. */
  texts?: Partial<ThinkerWriterTexts> | undefined
  /** Whether the rules are a system's message or the beginning of the user's. Default 'user'. */
  rulesAs?: 'system' | 'user' | undefined
  /** Of the chat template: its name and variables. */
  chat?: Pick<ChatOptions, 'template' | 'variables'> | undefined
  /** Rejects with HOGWILD_ABORTED. */
  signal?: AbortSignal | undefined
}

const KEYS = optionKeys<ThinkerWriterOptions>()({
  tokenizer: true,
  problem: true,
  askEvery: true,
  texts: true,
  rulesAs: true,
  chat: true,
  signal: true,
})

const DEFAULT_ASK_EVERY = 20

/** Token ids of the blocks of a thinker and a writer, and when they wait for one another. */
export interface ThinkerWriter {
  /** The words: `thinkerWriterTexts`, with those that were given. */
  texts: Readonly<ThinkerWriterTexts>
  /** Content of the blocks before anyone has written. Thoughts and reply have at least one token, to go on from. */
  blocks: ThinkerWriterBlocks<number[]>
  /** The question and the tokens that the thinker may answer it with: what has the higher logit counts. */
  question: ThinkerQuestion
  /** Whether it is time to ask; `thoughts`: the tokens that the thinker has sampled. */
  asks(thoughts: readonly number[]): boolean
  /** Whether the writer has come to the end of a paragraph, where it waits for a yes; `reply`: the tokens that it has sampled. */
  waits(reply: readonly number[]): boolean
}

/** What the thinker is asked. */
export interface ThinkerQuestion {
  /** Ids of the question. */
  tokens: number[]
  /** Id of the token that says yes. */
  yes: number
  /** Id of the token that says no. */
  no: number
}

/** The blocks of a thinker and a writer. `B` is a Block, a name, anything but undefined. */
export interface ThinkerWriterBlocks<B> {
  /** Rules and problem, for the thinker. */
  thinkerPrompt: B
  /** Between the reply so far and the thoughts. */
  thinkerHeading: B
  /** The problem, for the writer. */
  writerPrompt: B
  /** Between the thoughts so far and the reply. */
  writerHeading: B
  /** What the thinker writes. */
  thoughts: B
  /** What the writer writes. */
  reply: B
}

/** What the user says meanwhile, where there is a block for it. */
export interface LateInputs<B> {
  /** Absent: there is no such block. */
  inputs?: B | undefined
}

/**
 * What the thinker sees, the thoughts last: [thinkerPrompt, reply, thinkerHeading, inputs, thoughts]. The question is asked in
 * this view with one more block behind it.
 */
export function thinkerView<B>(blocks: ThinkerWriterBlocks<B> & LateInputs<B>): B[] {
  const { thinkerPrompt, reply, thinkerHeading, inputs, thoughts } = blocks
  return [thinkerPrompt, reply, thinkerHeading, ...optional(inputs), thoughts]
}

/** What the writer sees, the reply last: [writerPrompt, inputs, thoughts, writerHeading, reply]. */
export function writerView<B>(blocks: ThinkerWriterBlocks<B> & LateInputs<B>): B[] {
  const { writerPrompt, inputs, thoughts, writerHeading, reply } = blocks
  return [writerPrompt, ...optional(inputs), thoughts, writerHeading, reply]
}

function optional<B>(block: B | undefined): B[] {
  return block === undefined ? [] : [block]
}

/**
 * Prepares a thinker and a writer (AsyncReasoning, arXiv 2512.10931). The thinker begins alone. Where `asks` says so, the
 * question is put behind its view; at a yes the writer writes beside it, one paragraph, up to where `waits` says so. When
 * the thinker has ended, the writer goes on alone.
 *
 * Throws HOGWILD_INVALID_ARGUMENT, also where the chat template refuses the messages, HOGWILD_TIMEOUT and
 * HOGWILD_ABORTED.
 */
export async function thinkAndWrite(options: ThinkerWriterOptions): Promise<ThinkerWriter> {
  const { tokenizer, problem, askEvery, texts, rulesAs, chat, signal } = checkThinkerWriter(options)
  const encode = (text: string) => encodePart(tokenizer, text)
  const hasTag = tokenizer.tokenId('<think>') !== undefined
  const opening = hasTag ? texts.thinkOpening : texts.plainOpening
  const closing = hasTag ? texts.thinkClosing : texts.plainClosing
  const prompt = (rules: string, answerPrefix: string) => {
    const text = { rules, between: texts.problem, problem, rulesAs, answerPrefix }
    return encodePrompt(tokenizer, text, chat, signal)
  }
  const isOpen = await opensThoughts(tokenizer, opening, chat, signal)
  const thinking = isOpen ? '' : opening
  const endsBlank = blankLineEnds(tokenizer)
  return {
    texts,
    blocks: {
      thinkerPrompt: await prompt(texts.thinkerRules, ''),
      thinkerHeading: encode(texts.thinkerHeading + thinking),
      writerPrompt: await prompt('', thinking),
      writerHeading: encode(texts.writerHeading + closing),
      thoughts: encode(texts.thoughts),
      reply: encode(texts.reply),
    },
    question: question(encode, texts),
    asks: (thoughts) =>
      thoughts.length > 0 && (thoughts.length % askEvery === 0 || endsBlank(thoughts)),
    waits: (reply) => endsBlank(reply),
  }
}

/** Whether a chat template itself ends with the opening of thoughts. */
async function opensThoughts(
  tokenizer: Tokenizer,
  opening: string,
  chat: Pick<ChatOptions, 'template' | 'variables'>,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  if (!tokenizer.hasChatTemplate) return false
  const text = await tokenizer.chat([{ role: 'user', content: 'x' }], { ...chat, signal })
  return text.trimEnd().endsWith(opening.trimEnd())
}

/** Answers are told apart by the first token in which they differ; what they share belongs to the question. */
function question(
  encode: (text: string) => number[],
  { question: text, yes, no }: ThinkerWriterTexts,
): ThinkerWriter['question'] {
  const [ifYes, ifNo] = [encode(text + yes), encode(text + no)]
  const at = ifYes.findIndex((id, i) => id !== ifNo[i])
  const [yesToken, noToken] = [ifYes[at], ifNo[at]]
  if (at < 1 || yesToken === undefined || noToken === undefined) {
    throw invalid('options.texts', 'a question and two answers that differ in a token', { yes, no })
  }
  return { tokens: ifYes.slice(0, at), yes: yesToken, no: noToken }
}

function checkThinkerWriter(options: ThinkerWriterOptions) {
  options = checkOptions(options, 'options', KEYS)
  return {
    tokenizer: checkInstance(options.tokenizer, 'options.tokenizer', Tokenizer),
    problem: checkString(options.problem, 'options.problem'),
    askEvery: checkInteger(options.askEvery ?? DEFAULT_ASK_EVERY, 'options.askEvery', 1),
    texts: checkWords(thinkerWriterTexts, options.texts),
    rulesAs: checkOneOf(options.rulesAs ?? 'user', 'options.rulesAs', ['system', 'user']),
    chat: checkTemplateOptions(options.chat),
    signal: checkSignal(options.signal, 'options.signal'),
  }
}
