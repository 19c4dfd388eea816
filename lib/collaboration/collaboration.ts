// A problem and the names of a team, made into the options of a run.

import { type ChatOptions, Tokenizer } from '../tokenizer/tokenizer'
import {
  checkArray,
  checkBoolean,
  checkInstance,
  checkInteger,
  checkOneOf,
  checkOptions,
  checkSignal,
  checkString,
  invalid,
  optionKeys,
} from '../validate'
import { commitsTurns, LAYOUT_NAMES, type LayoutName } from '../workers/layout'
import type { RunOptions, WorkerSpec } from '../workers/options'
import { checkAnswerFormat } from './answer'
import {
  checkTemplateOptions,
  checkWords,
  encodePart,
  encodePrompt,
  holdsSpecialTokens,
  worded,
} from './encode'
import { WORKER_NAMES } from './names'
import { blockTexts, type CollaborationTexts, collaborationTexts } from './texts'
import { paragraphEnds } from './turns'

/** Options of `collaborate`. */
export interface CollaborationOptions {
  /** Of the model. Its chat template is used where it has one. */
  tokenizer: Tokenizer
  /** What the workers are to solve, as text. */
  problem: string
  /**
   * Names, each once, of one line and without special tokens, or how many workers, called Alice, Bob, … (at most 16).
   * Default 2.
   */
  workers?: number | readonly string[] | undefined
  /** Default 'combined'. */
  layout?: LayoutName | undefined
  /** false: no worker sees another one, and each is told to solve the problem alone. Default true. */
  share?: boolean | undefined
  /**
   * A worker that has sampled so many tokens since it was last asked is asked at the beginning of its next paragraph
   * whether its work is redundant (`texts.check`). 0: never, as in layout 'contiguous', which has no turns, and where a
   * worker sees nobody else. Default 256.
   */
  checkEvery?: number | undefined
  /** Words in place of those of `collaborationTexts`. */
  texts?: Partial<CollaborationTexts> | undefined
  /** Whether the rules are a system's message or, as in the paper, the beginning of the user's. Default 'user'. */
  rulesAs?: 'system' | 'user' | undefined
  /** Of the chat template: its name and variables, e.g. { enable_thinking: false }. */
  chat?: Pick<ChatOptions, 'template' | 'variables'> | undefined
  /** Rejects with HOGWILD_ABORTED. */
  signal?: AbortSignal | undefined
}

const KEYS = optionKeys<CollaborationOptions>()({
  tokenizer: true,
  problem: true,
  workers: true,
  layout: true,
  share: true,
  checkEvery: true,
  texts: true,
  rulesAs: true,
  chat: true,
  signal: true,
})

const DEFAULT_CHECK_EVERY = 256

/** The part of a run's options that makes it a collaboration. */
export type CollaborationRun = Pick<
  RunOptions,
  'tokenizer' | 'prompt' | 'layout' | 'share' | 'sharedHeader' | 'turnEnds' | 'turnHeader'
> & {
  /** In worker order. */
  workers: WorkerSpec[]
}

/** Made by `collaborate`, for one run: it counts that run's tokens. */
export interface Collaboration {
  /** Of the workers, in worker order. */
  names: readonly string[]
  /** How they see one another. */
  layout: LayoutName
  /** Whether workers see one another; false where there is only one. */
  share: boolean
  /** Their words: `collaborationTexts`, with those that were given. */
  texts: Readonly<CollaborationTexts>
  /** Options of `runWorkers`. Workers are greedy: give each a sampler as you like. */
  run: CollaborationRun
}

/**
 * Prepares a run whose workers solve a problem together, as in "Hogwild! Inference" (arXiv 2504.06261): rules and
 * problem go through the chat template, headings stand between the parts of each view, paragraphs are turns, and now and
 * then a worker is asked whether it does what another one does. docs/prompting.md tells why, docs/layouts.md what a worker sees.
 *
 *     const team = await collaborate({ tokenizer, problem, workers: ['Ann', 'Ben'] })
 *     await using run = runWorkers({ model, ...team.run, maxTokens: 1000 })
 *
 * Throws HOGWILD_INVALID_ARGUMENT, also where the chat template refuses the messages, HOGWILD_TIMEOUT and
 * HOGWILD_ABORTED.
 */
export async function collaborate(options: CollaborationOptions): Promise<Collaboration> {
  const { tokenizer, problem, names, layout, share, checkEvery, texts, rulesAs, chat, signal } =
    checkCollaboration(options)
  const team = { names, layout }
  const { commonEnd, sharedHeader, header, openings } = blockTexts(texts, team, share)
  const rules = share ? worded(texts.rules(team), 'rules') : texts.soloRules
  const text = { rules, between: texts.problem, problem, rulesAs, answerPrefix: commonEnd }
  const prompt = await encodePrompt(tokenizer, text, chat, signal)
  const encode = (part: string) => encodePart(tokenizer, part)
  const run: CollaborationRun = {
    tokenizer,
    prompt,
    layout,
    share,
    workers: names.map((name, i) => ({
      name,
      prompt: encode(openings[i] as string),
      header: encode(header),
    })),
    ...(sharedHeader !== '' && { sharedHeader: encode(sharedHeader) }),
    ...(commitsTurns(layout) && share && turnOptions(tokenizer, texts, checkEvery)),
  }
  return { names, layout, share, texts, run }
}

/** How turns end and begin, with a check where one is due. */
function turnOptions(
  tokenizer: Tokenizer,
  texts: CollaborationTexts,
  checkEvery: number,
): Required<Pick<RunOptions, 'turnEnds' | 'turnHeader'>> {
  const ends = paragraphEnds(tokenizer)
  /** Tokens that each worker sampled since its last check, in turns that have ended. */
  const unchecked = new Map<string, number>()
  let lastLength = 0
  return {
    turnEnds: (ids) => {
      lastLength = ids.length
      return ends(ids)
    },
    // A run asks for the header of a worker's next turn right after it has asked whether its last one ends.
    turnHeader: (name, turn) => {
      const tokens = (unchecked.get(name) ?? 0) + lastLength
      const isDue = checkEvery > 0 && tokens >= checkEvery
      unchecked.set(name, isDue ? 0 : tokens)
      const opening = worded(texts.turn(name, turn + 1), 'turn')
      return encodePart(tokenizer, isDue ? opening + texts.check : opening)
    },
  }
}

function checkCollaboration(options: CollaborationOptions) {
  options = checkOptions(options, 'options', KEYS)
  const layout = checkOneOf(options.layout ?? 'combined', 'options.layout', LAYOUT_NAMES)
  const byDefault = commitsTurns(layout) ? DEFAULT_CHECK_EVERY : 0
  const checkEvery = checkInteger(options.checkEvery ?? byDefault, 'options.checkEvery', 0)
  if (checkEvery > 0 && !commitsTurns(layout)) {
    const expected = `0 in layout '${layout}', which has no turns (interleaved and combined have)`
    throw invalid('options.checkEvery', expected, checkEvery)
  }
  const texts = checkWords(collaborationTexts, options.texts)
  const tokenizer = checkInstance(options.tokenizer, 'options.tokenizer', Tokenizer)
  const names = checkNames(options.workers ?? 2, tokenizer)
  return {
    tokenizer,
    problem: checkString(options.problem, 'options.problem'),
    names,
    layout,
    share: checkBoolean(options.share ?? true, 'options.share') && names.length > 1,
    checkEvery,
    texts: { ...texts, answer: checkAnswerFormat(texts.answer, 'options.texts.answer') },
    rulesAs: checkOneOf(options.rulesAs ?? 'user', 'options.rulesAs', ['system', 'user']),
    chat: checkTemplateOptions(options.chat),
    signal: checkSignal(options.signal, 'options.signal'),
  }
}

function checkNames(workers: number | readonly string[], tokenizer: Tokenizer): string[] {
  const name = 'options.workers'
  if (typeof workers === 'number') {
    return WORKER_NAMES.slice(0, checkInteger(workers, name, 1, WORKER_NAMES.length))
  }
  const names = checkArray(workers, name).map((one, i) => {
    const text = checkString(one, `${name}[${i}]`)
    if (/^\S(.*\S)?$/u.test(text) && !holdsSpecialTokens(tokenizer, text)) return text
    const expected = 'a name of one line, without white space around it and special tokens in it'
    throw invalid(`${name}[${i}]`, expected, text)
  })
  if (names.length === 0) throw invalid(name, 'at least one name', workers)
  if (new Set(names).size < names.length) throw invalid(name, 'each name once', workers)
  return names
}
