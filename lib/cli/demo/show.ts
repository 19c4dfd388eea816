// One run of the workers for people to watch, at a pace they can follow; keys stop workers or call them.

import { setTimeout as sleep } from 'node:timers/promises'
import type { WorkerEvent, WorkerRun } from '../../index'
import { canDrawLive, colors, print, readKeys } from '../terminal'
import type { Member, Scene } from './frame'
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
import { LiveView, PlainView, palette, type ShowView } from './views'

export class Show {
  private readonly blocks = new Map<string, WrittenToken[]>()
  private readonly members: { name: string; state: Member['state'] }[]
  private readonly notes: string[] = []
  private readonly paint = palette(colors)
  private readonly view: ShowView = canDrawLive() ? new LiveView() : new PlainView()
  private readonly quit = new AbortController()
  private exitCode: number | undefined
  private step = 0

  constructor(
    private readonly team: DemoModel,
    private readonly task: DemoTask,
    private readonly workers: number,
    private readonly share: boolean,
    /** Steps per second; 0: as fast as possible. */
    private readonly pace: number,
  ) {
    // Somebody who can press keys can call those who do not begin.
    const names = process.stdin.isTTY ? WORKER_NAMES : WORKER_NAMES.slice(0, workers)
    this.members = names.map((name, index) => ({
      name,
      state: index < workers ? 'active' : 'absent',
    }))
  }

  /** Resolves when all workers have halted, or to an exit code where the person ended it. */
  async play(): Promise<number | undefined> {
    this.introduce()
    await using run = this.team.start(this.task, WORKER_NAMES.slice(0, this.workers), this.share)
    this.view.open(this.scene())
    const releaseKeys = readKeys(({ name, ctrl }) => {
      if (ctrl && name === 'c') this.end(130)
      else if (name === 'q') this.end(0)
      else this.stopOrCall(run, Number(name) - 1)
    })
    try {
      for await (const event of run) {
        this.follow(event)
        if (event.type === 'step') await this.pause()
        if (this.exitCode !== undefined) return this.exitCode
      }
    } finally {
      releaseKeys()
      this.view.close(this.scene())
    }
    this.conclude()
    return undefined
  }

  private introduce(): void {
    const who = `${this.workers} ${this.workers === 1 ? 'worker writes' : 'workers write'}`
    const where = this.share ? 'into one shared cache' : 'without seeing each other'
    print()
    print(`  ${colors.bold(`hogwild: ${who} ${where}`)}`)
    print()
    print('  The job: write each word the right way round, once.')
    if (this.share) {
      print('  Nobody hands out the work: each worker sees at once what')
      print('  the others write, and takes a word that nobody has taken.')
    }
    print()
  }

  private follow(event: WorkerEvent): void {
    if (event.type === 'token') {
      this.write(event.worker, { text: this.team.symbol(event.token), step: event.step })
    } else if (event.type === 'stop') {
      const member = this.members.find(({ name }) => name === event.worker)
      if (member?.state === 'active') member.state = 'halted'
    } else if (event.type === 'step') {
      this.step = event.step + 1
      this.view.show(this.scene())
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
    if (last?.state === 'yielded') this.noteYield(name, last)
  }

  private noteYield(name: string, line: Line): void {
    const holder = holderOf(line, name, this.blocks)
    if (holder === undefined) {
      this.note(name, `${name} gives ${line.label} back`)
      return
    }
    const tie = readLines(holder, this.blocks.get(holder) ?? []).some(
      ({ label, claimedAt }) => label === line.label && claimedAt === line.claimedAt,
    )
    const when = tie ? 'took it in the same step' : 'had taken it'
    this.note(name, `${name} yields ${line.label}: ${holder} ${when}`)
  }

  private note(name: string, text: string): void {
    const note = this.paint(name)(text)
    this.notes.push(note)
    this.view.note(note)
  }

  private stopOrCall(run: WorkerRun, index: number): void {
    const member = this.members[index]
    if (member?.state === 'active') {
      this.team.takeAway(run, member.name)
      member.state = 'taken away'
      this.note(member.name, `${member.name} is taken away: what was begun is free again`)
    } else if (member?.state === 'absent') {
      this.team.join(run, member.name)
      member.state = 'active'
      this.note(member.name, `${member.name} joins`)
    }
  }

  private end(exitCode: number): void {
    this.exitCode = exitCode
    this.quit.abort()
  }

  private async pause(): Promise<void> {
    // At full speed still a turn of the event loop, for the keys.
    const milliseconds = this.pace > 0 ? 1000 / this.pace : 0
    await sleep(milliseconds, undefined, { signal: this.quit.signal }).catch(() => {})
  }

  private scene(): Scene {
    const { task, members, blocks, notes, step } = this
    return { task, members, blocks, notes, step }
  }

  private conclude(): void {
    const answers = readAnswers(this.blocks)
    const words = this.task.labels.map((label) => {
      const answer = answers.get(label)
      return answer ? this.paint(answer.name)(answer.answer) : colors.dim('…')
    })
    const { items, undone, steps, tokens } = score(this.task, this.blocks)
    print()
    print(`  ${words.join(' ')}`)
    print()
    print(colors.dim(`  ${items - undone} of ${items} words in ${steps} steps, ${tokens} tokens`))
  }
}
