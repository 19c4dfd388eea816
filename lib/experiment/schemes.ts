// Schemes: how a problem becomes a run of workers, and what their answer is at a given moment.

import { WORKER_NAMES } from '../collaboration/names'
import {
  type Collaboration,
  collaborate,
  findAnswer,
  finish,
  type LayoutName,
  type Model,
  type RunOptions,
  type Snapshot,
  type Tokenizer,
  Transcript,
  type WorkerEvent,
  type WorkerSpec,
} from '../index'
import { commitsTurns } from '../workers/layout'
import type { CheckedExperiment } from './definition'
import type { Item } from './item'
import { fillTemplate } from './template'

/** What a scheme is given. */
export interface Task {
  model: Model
  tokenizer: Tokenizer
  experiment: CheckedExperiment
  item: Item
  /** The item's prompt. */
  problem: string
  workers: number
  layout: LayoutName
  share: boolean
  signal: AbortSignal | undefined
}

/** An answer, and whether it was extracted from what was there. */
export interface Answer {
  answer: string | undefined
  early: boolean
}

/** A scheme at work on one task: follows the events of its run. */
export interface Attempt {
  readonly names: readonly string[]
  readonly run: Pick<RunOptions, 'prompt' | 'layout' | 'share'> &
    Partial<RunOptions> & { workers: WorkerSpec[] }
  take(event: WorkerEvent): void
  /** Follows the event that tells of these tokens in the common block. */
  appended(tokens: readonly number[]): void
  /** The answer that a worker has given, which ends its work and that of all who see it. */
  given(worker: string): string | undefined
  /** The answers at once: one of a team whose workers see one another, else one of each worker. */
  answers(): Promise<Answer[]>
}

export const SCHEMES = { collaborate: startCollaboration, plain: startPlain }

async function startCollaboration(task: Task): Promise<Attempt> {
  const { tokenizer, experiment, problem, workers, layout, share, signal } = task
  const options = experiment.collaborate
  const team = await collaborate({
    ...{ tokenizer, problem, workers, layout, share, signal },
    ...options,
    // Layouts without turns have no checks.
    checkEvery: layout === 'contiguous' ? undefined : options.checkEvery,
  })
  const transcript = new Transcript(team)
  /** Tokens that came into the common block, each with how many of finished paragraphs stand before. */
  const late: { behind: number; tokens: readonly number[] }[] = []
  const snapshot = () => {
    const now = transcript.snapshot()
    for (const { behind, tokens } of late.toReversed()) now.record.splice(behind, 0, ...tokens)
    return now
  }
  return {
    names: team.names,
    run: team.run,
    take: (event) => transcript.push(event),
    appended: (tokens) => late.push({ behind: transcript.snapshot().record.length, tokens }),
    given: (worker) => transcript.answerOf(worker),
    answers: async () => {
      const whose = team.share ? [undefined] : team.names
      const answers: Answer[] = []
      for (const worker of whose) answers.push(await answerOf(task, team, snapshot(), worker))
      return answers
    },
  }
}

/** The answer that was given or, where none was, the finisher's. */
async function answerOf(
  { model, experiment, signal }: Task,
  collaboration: Collaboration,
  snapshot: Snapshot,
  worker: string | undefined,
): Promise<Answer> {
  const given =
    worker === undefined
      ? snapshot.answer?.answer
      : snapshot.workers.find(({ name }) => name === worker)?.answer
  const maxTokens = experiment.finish
  if (given !== undefined || maxTokens === 0) return { answer: given, early: false }
  const { answer } = await finish({ model, collaboration, snapshot, worker, maxTokens, signal })
  return { answer, early: true }
}

/** Without a word of its own. */
function startPlain(task: Task): Attempt {
  const { tokenizer, experiment, item, problem, workers, layout, share } = task
  const { opening, answer: format, stop, turnEnds = [] } = experiment.plain
  const hasTurns = share && commitsTurns(layout) && turnEnds.length > 0
  const names = WORKER_NAMES.slice(0, workers)
  /** What each has sampled. */
  const texts = new Map(names.map((name) => [name, '']))
  const textOf = (worker: string) => texts.get(worker) as string
  const given = (worker: string) =>
    typeof format === 'object' ? findAnswer(textOf(worker), format) : undefined
  return {
    names,
    run: {
      ...{ layout, share, stop },
      ...(hasTurns && { turnEnds: endsWith(tokenizer, turnEnds) }),
      prompt: tokenizer.encodeSync(problem),
      workers: names.map((name, index) => {
        const text = fillTemplate(opening, { ...item, worker: name, index }, 'the item')
        return { name, prompt: tokenizer.encodeSync(text, { addSpecialTokens: false }) }
      }),
    },
    take: (event) => {
      if (event.type !== 'token' && event.type !== 'stop') return
      const isForced = event.type === 'token' && event.forced
      if (!isForced) texts.set(event.worker, textOf(event.worker) + (event.text ?? ''))
    },
    appended: () => {},
    given,
    answers: () => {
      const all = names.map((name) => (format === 'text' ? textOf(name).trim() : given(name)))
      const known = all.filter((answer) => answer !== undefined)
      const ofTeam = format === 'text' ? known.join('\n') : known[0]
      const answers = share ? [ofTeam] : all
      return Promise.resolve(answers.map((answer) => ({ answer, early: false })))
    },
  }
}

/** Whether the text of tokens ends with one of these, of which there is one at least, and none empty. */
function endsWith(
  tokenizer: Tokenizer,
  ends: readonly string[],
): (ids: readonly number[]) => boolean {
  // A token of a byte has no character of its own: as many tokens as bytes hold the longest text.
  const most = Math.max(...ends.map((end) => Buffer.byteLength(end)))
  return (ids) => {
    const text = tokenizer.decode(ids.slice(-most))
    return ends.some((end) => text.endsWith(end))
  }
}

/** The answer of most; among equally many that of the worker that comes first. Those without an answer do not vote. */
export function vote(answers: readonly Answer[]): Answer {
  const counts = new Map<string, number>()
  for (const { answer } of answers) {
    if (answer !== undefined) counts.set(answer, (counts.get(answer) ?? 0) + 1)
  }
  const most = Math.max(...counts.values())
  return (
    answers.find(({ answer }) => answer !== undefined && counts.get(answer) === most) ??
    (answers[0] as Answer)
  )
}
