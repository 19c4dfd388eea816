// `hogwild demo`: a sentence of reversed words, written the right way round by workers that share one
// cache; then the race.

import { setTimeout as sleep } from 'node:timers/promises'
import { drawFrame, lineText, type Member, palette } from './demo/frame'
import { formatRace, type RaceRun, race } from './demo/race'
import {
  createTask,
  type DemoTask,
  holderOf,
  type Line,
  parseSentence,
  readAnswers,
  readLines,
  score,
  WORKER_NAMES,
  type WrittenToken,
} from './demo/task'
import { DemoModel } from './demo/team'
import { canDrawLive, colors, LiveArea, print, readKeys } from './terminal'

export interface DemoOptions {
  workers: number
  share: boolean
  /** Steps per second; 0: as fast as possible. */
  pace: number
  json?: boolean
}

/** Resolves to the exit code: 0, or 130 where Ctrl-C ended it. */
export async function demo(sentence: string, options: DemoOptions): Promise<number> {
  const words = parseSentence(sentence)
  const task = createTask(words)
  const team = await DemoModel.load()
  try {
    if (options.json) {
      print(JSON.stringify({ sentence: words.join(' '), runs: await race(team, task) }))
      return 0
    }
    const show = new Show(team, task, options)
    const exitCode = await show.play()
    if (exitCode !== undefined) return exitCode
    showRace(await race(team, task))
    return 0
  } finally {
    await team.close()
  }
}

function showRace(runs: readonly RaceRun[]): void {
  print()
  print(colors.bold('  The same list as a race'))
  print()
  formatRace(runs).forEach((line, index) => {
    print(`  ${index < 2 ? colors.dim(line) : line}`)
  })
  print()
  print(
    colors.dim(
      '  steps: until all workers had stopped; done twice: items that got more than one answer',
    ),
  )
}

/** The workers of one run and what is shown of them. */
class Show {
  private readonly blocks = new Map<string, WrittenToken[]>()
  private readonly members: { name: string; state: Member['state'] }[]
  private readonly notes: string[] = []
  private readonly paint = palette(colors)
  private readonly ended = new AbortController()
  private readonly live = canDrawLive()
  private exitCode: number | undefined

  constructor(
    private readonly team: DemoModel,
    private readonly task: DemoTask,
    private readonly options: DemoOptions,
  ) {
    this.members = WORKER_NAMES.map((name, index) => ({
      name,
      state: index < options.workers ? 'active' : 'absent',
    }))
  }

  /** Resolves when all workers have halted, or to an exit code where the person ended it. */
  async play(): Promise<number | undefined> {
    const { workers, share } = this.options
    const names = WORKER_NAMES.slice(0, workers)
    const which = share ? 'into one cache' : 'each into a cache of its own'
    print()
    print(
      `  ${colors.bold('hogwild')}  ${workers} ${workers === 1 ? 'worker writes' : 'workers write'} ${which}`,
    )
    print()
    if (!this.live)
      print(`  ${this.task.prompt.slice('<s>'.length).trim().split('\n').join('  ')}\n`)
    await using run = this.team.start(this.task, names, share)
    const area = this.live ? new LiveArea() : undefined
    const stopKeys = readKeys((key) => {
      if (key.name === 'q' || (key.ctrl && key.name === 'c')) {
        this.exitCode = key.ctrl ? 130 : 0
        this.ended.abort()
        return
      }
      const member = this.members[Number(key.name) - 1]
      if (member?.state === 'active') {
        this.team.takeAway(run, member.name)
        member.state = 'taken away'
        this.note(`${member.name} was taken away (#): what it had begun is free again`)
      } else if (member?.state === 'absent') {
        this.team.join(run, member.name)
        member.state = 'active'
        this.note(`${member.name} joins`)
      }
    })
    try {
      for await (const event of run) {
        if (event.type === 'token') {
          this.write(event.worker, { text: this.team.symbol(event.token), step: event.step })
        } else if (event.type === 'stop') {
          const member = this.members.find(({ name }) => name === event.worker)
          if (member?.state === 'active') member.state = 'halted'
        } else if (event.type === 'step') {
          this.draw(area, event.step)
          await this.pause()
          if (this.ended.signal.aborted) break
        }
      }
    } finally {
      stopKeys()
      area?.close()
    }
    if (this.exitCode === undefined) this.showResult()
    return this.exitCode
  }

  private async pause(): Promise<void> {
    const { pace } = this.options
    // A step every 1 / pace seconds; at full speed still one turn of the event loop, for the keys.
    const wait = pace > 0 ? 1000 / pace : 0
    await sleep(wait, undefined, { signal: this.ended.signal }).catch(() => {})
  }

  private write(name: string, token: WrittenToken): void {
    const block = this.blocks.get(name) ?? []
    const before = readLines(name, block)
    block.push(token)
    this.blocks.set(name, block)
    const lines = readLines(name, block)
    const line = lines.at(-1)
    const ended = lines.length > before.length ? lines.at(-2) : undefined
    if (line?.state === 'yielded') this.noteYield(name, line)
    if (this.live) return
    if (ended?.state === 'answered') this.printLine(name, ended)
    if (line && line.state !== 'open' && line.state !== 'answered') this.printLine(name, line)
  }

  private printLine(name: string, line: Line): void {
    const step = `step ${String(line.lastStep + 1).padStart(3)}`
    print(`  ${colors.dim(step)}  ${this.paint(name)(`${name.padEnd(5)} ${lineText(line)}`)}`)
  }

  private noteYield(name: string, line: Line): void {
    const holder = holderOf(line, name, this.blocks)
    const held = readLines(holder ?? '', this.blocks.get(holder ?? '') ?? [])
    const tie = held.some(
      (other) => other.label === line.label && other.claimedAt === line.claimedAt,
    )
    const why = tie ? `${holder} took it in the same step` : `${holder} had taken it`
    this.note(`${name} yields ${line.label}${holder ? `: ${why}` : ''}`, name)
  }

  private note(text: string, name?: string): void {
    this.notes.push(`  ${name ? this.paint(name)('~') : '·'} ${text}`)
    if (!this.live) print(`            ${text}`)
  }

  private draw(area: LiveArea | undefined, step: number): void {
    const tokens = [...this.blocks.values()].reduce((sum, block) => sum + block.length, 0)
    const keys = process.stdin.isTTY ? '   keys: 1-4 stop or call a worker, q quits' : ''
    const scene = {
      task: this.task,
      members: this.members,
      blocks: this.blocks,
      notes: this.notes,
      status: `step ${step + 1}   ${tokens} tokens${keys}`,
    }
    area?.draw(drawFrame(scene, colors, process.stdout.columns, process.stdout.rows))
  }

  private showResult(): void {
    const answers = readAnswers(this.blocks)
    const words = this.task.labels.map((label) => {
      const answer = answers.get(label)
      return answer ? this.paint(answer.name)(answer.answer) : colors.dim('…')
    })
    const { items, undone, steps, tokens } = score(this.task, this.blocks)
    print()
    print(`  ${words.join(' ')}`)
    print()
    print(colors.dim(`  ${items - undone} of ${items} words, ${steps} steps, ${tokens} tokens`))
  }
}
