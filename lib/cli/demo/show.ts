// One run of the workers for people to watch, at a pace they can follow; keys stop workers, call them and change the pace.

import type { Key } from 'node:readline'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import type { Colors } from 'picocolors/types'
import { HogwildError, type WorkerEvent, type WorkerRun } from '../../index'
import { type Member, type Note, palette, type Scene, wrapItems } from './frame'
import { Pace } from './pace'
import {
  type DemoTask,
  holderOf,
  type Line,
  readAnswers,
  readLines,
  score,
  WORKER_NAMES,
  type WrittenToken,
} from './task'
import type { DemoModel } from './team'
import type { ShowView } from './views'

export interface ShowOptions {
  /** How many begin. */
  workers: number
  share: boolean
  /** Steps per second; 0: as fast as possible. */
  pace: number
  /** Before the first step, unless a key is pressed: to read what there is to see. */
  firstPauseMs: number
  /** Whether keys are read: somebody who can press keys can call those who do not begin. */
  hasKeys: boolean
  /** `scene` gives what there is to see. */
  view: (scene: () => Scene, onKey: (key: Key) => void) => ShowView
}

interface Watched {
  readonly name: string
  state: Member['state']
  /** Its name in the run: whoever is called back is a new worker there. */
  worker: string
}

/** What the model calls a worker of the run: "Bob", also where it is the second one, "Bob 2". */
function nameOf(worker: string): string {
  return worker.replace(/ \d+$/, '')
}

export class Show {
  private readonly blocks = new Map<string, WrittenToken[]>()
  private readonly members: Watched[]
  private readonly notes: Note[] = []
  private readonly pace: Pace
  private readonly view: ShowView
  private run: WorkerRun | undefined
  private pressed = new AbortController()
  private exitCode: number | undefined
  private step = 0

  constructor(
    private readonly team: DemoModel,
    private readonly task: DemoTask,
    private readonly options: ShowOptions,
  ) {
    const { workers, pace, hasKeys, view } = options
    this.pace = new Pace(pace)
    const names = hasKeys ? WORKER_NAMES : WORKER_NAMES.slice(0, workers)
    this.members = names.map((name, index) => ({
      name,
      state: index < workers ? 'active' : 'absent',
      worker: name,
    }))
    this.view = view(
      () => this.scene(),
      (key) => this.press(key),
    )
  }

  /** Resolves when all workers have halted, or to an exit code where the person ended it. */
  async play(): Promise<number | undefined> {
    const { workers, share, firstPauseMs } = this.options
    await using run = this.team.start(this.task, WORKER_NAMES.slice(0, workers), share)
    this.run = run
    this.view.open()
    try {
      if (firstPauseMs > 0) await this.keyWithin(firstPauseMs)
      if (this.exitCode !== undefined) return this.exitCode
      for await (const event of run) {
        this.follow(event)
        if (event.type === 'step') await this.wait()
        if (this.exitCode !== undefined) return this.exitCode
      }
    } finally {
      this.view.close()
    }
    return undefined
  }

  /** The sentence, and how long it took, in lines of at most `width` columns. */
  conclusion(colors: Colors, width: number): string[] {
    const paint = palette(colors)
    const answers = readAnswers(this.blocks)
    const words = this.task.labels.map((label) => {
      const { name = '', answer = '…' } = answers.get(label) ?? {}
      return { width: answer.length + 1, text: (name ? paint(name) : colors.dim)(answer) }
    })
    const { items, undone, steps, tokens } = score(this.task, this.blocks)
    return [
      ...wrapItems(words, width).map((row) => row.map(({ text }) => text).join(' ')),
      '',
      colors.dim(`${items - undone} of ${items} words in ${steps} steps, ${tokens} tokens`),
    ]
  }

  private follow(event: WorkerEvent): void {
    if (event.type === 'token') {
      this.write(nameOf(event.worker), { text: this.team.symbol(event.token), step: event.step })
    } else if (event.type === 'stop') {
      const member = this.members.find(({ worker }) => worker === event.worker)
      if (member?.state === 'active') member.state = 'halted'
    } else if (event.type === 'step') {
      this.step = event.step + 1
      this.view.show()
    }
  }

  private write(name: string, token: WrittenToken): void {
    const block = this.blocks.get(name) ?? []
    const linesBefore = readLines(name, block).length
    block.push(token)
    this.blocks.set(name, block)
    const lines = readLines(name, block)
    const last = lines.at(-1)
    const ended = lines.length > linesBefore ? lines.at(-2) : undefined
    if (ended?.state === 'answered') this.view.line(name, ended, token.step)
    if (last && last.state !== 'open') this.view.line(name, last, token.step)
    if (last?.state === 'yielded') this.note(name, this.reasonOfYield(name, last))
  }

  private reasonOfYield(name: string, line: Line): string {
    const holder = holderOf(line, name, this.blocks)
    if (holder === undefined) return `${name} gives ${line.label} back`
    const tie = readLines(holder, this.blocks.get(holder) ?? []).some(
      ({ label, claimedAt }) => label === line.label && claimedAt === line.claimedAt,
    )
    const when = tie ? 'took it in the same step' : 'had taken it'
    return `${name} yields ${line.label}: ${holder} ${when}`
  }

  private note(name: string, text: string): void {
    const note = { name, text }
    this.notes.push(note)
    this.view.note(note)
  }

  private press({ name, ctrl, sequence }: Key): void {
    if (ctrl && name === 'c') this.exitCode = 130
    else if (name === 'q') this.exitCode = 0
    else if (name === 'space') this.pace.hold()
    else if (name === 'up' || sequence === '+' || sequence === '=') this.pace.faster()
    else if (name === 'down' || sequence === '-') this.pace.slower()
    else this.stopOrCall(Number(sequence) - 1)
    this.pressed.abort()
    this.view.show()
  }

  private stopOrCall(index: number): void {
    const member = this.members[index]
    if (this.run === undefined || member === undefined || member.state === 'halted') return
    const said =
      member.state === 'active' ? this.takeAway(this.run, member) : this.call(this.run, member)
    this.note(member.name, `${member.name} ${said}`)
  }

  private takeAway(run: WorkerRun, member: Watched): string {
    // With nobody at work the run would end.
    const atWork = this.members.filter(({ state }) => state === 'active')
    if (atWork.length === 1) return 'stays: nobody else is at work'
    this.team.takeAway(run, member.worker)
    member.state = 'taken away'
    return 'is taken away: what was begun is free again'
  }

  private call(run: WorkerRun, member: Watched): string {
    const { name, state } = member
    const worker = state === 'absent' ? name : this.nextWorker(run, name)
    try {
      this.team.join(run, name, worker)
    } catch (error) {
      if (!(error instanceof HogwildError) || error.code !== 'HOGWILD_CLOSED') throw error
      return 'comes too late: all the others have stopped'
    }
    member.worker = worker
    member.state = 'active'
    return state === 'absent' ? 'joins' : 'is back'
  }

  private nextWorker(run: WorkerRun, name: string): string {
    const before = run.workers.filter((worker) => nameOf(worker.name) === name)
    return `${name} ${before.length + 1}`
  }

  /** Until the next step is due; keys change when that is. */
  private async wait(): Promise<void> {
    const began = performance.now()
    // At full speed still a turn of the event loop, for the keys.
    await turn()
    for (;;) {
      const left = began + this.pace.milliseconds - performance.now()
      if (left <= 0 || this.exitCode !== undefined) return
      await this.keyWithin(left)
    }
  }

  private async keyWithin(milliseconds: number): Promise<void> {
    this.pressed = new AbortController()
    const { signal } = this.pressed
    await sleep(Math.min(milliseconds, 2 ** 31 - 1), undefined, { signal }).catch(() => {})
  }

  private scene(): Scene {
    const { task, members, blocks, notes, step } = this
    const { workers, share, hasKeys } = this.options
    const who = `${workers} ${workers === 1 ? 'worker writes' : 'workers write'}`
    const where = share ? 'into one shared cache' : 'without seeing each other'
    const job = 'The job: write each word the right way round, once.'
    const rule =
      'Nobody hands out the work: each worker sees at once what the others write, and takes a word that nobody has taken.'
    return {
      ...{ task, members, blocks, notes, step, hasKeys },
      title: `hogwild: ${who} ${where}`,
      job: share ? `${job} ${rule}` : job,
      pace: String(this.pace),
    }
  }
}
