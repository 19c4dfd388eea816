// What happened to each worker, and to what everybody sees, from the events of a run.

import type { TimelineEvent } from '../data'
import type { Timeline } from './timeline'

type EventOf<Type extends TimelineEvent['type']> = Extract<TimelineEvent, { type: Type }>

/** A worker sat out. */
export interface Wait {
  from: EventOf<'pause'>
  /** undefined: until the end. */
  to: TimelineEvent | undefined
  /** Workers that branched off this one and stopped meanwhile. */
  joined: number[]
}

export interface Life {
  join: EventOf<'join'> | undefined
  stop: EventOf<'stop'> | undefined
  /** The worker that it branches off; -1: none. */
  parent: number
  waits: Wait[]
  turns: EventOf<'turn'>[]
}

/** Tokens came into what everybody sees. */
export interface Arrival {
  event: EventOf<'prefill' | 'move'>
  /** Whose turn it was; -1: it was given. */
  worker: number
}

export interface Lives {
  workers: Life[]
  arrivals: Arrival[]
  warnings: EventOf<'warning'>[]
  end: EventOf<'end'> | undefined
}

export function livesOf({ data }: Timeline): Lives {
  const workers = data.workers.map((): Life => {
    return { join: undefined, stop: undefined, parent: -1, waits: [], turns: [] }
  })
  const lives: Lives = { workers, arrivals: [], warnings: [], end: undefined }
  for (const event of data.events) add(lives, event, data.blocks)
  return lives
}

function add(lives: Lives, event: TimelineEvent, blocks: Timeline['data']['blocks']): void {
  const { workers } = lives
  switch (event.type) {
    case 'join':
      workers[event.worker]!.join = event
      break
    case 'pause':
      workers[event.worker]!.waits.push({ from: event, to: undefined, joined: [] })
      break
    case 'resume':
      endWait(workers[event.worker]!, event)
      break
    case 'turn':
      workers[event.worker]!.turns.push(event)
      break
    case 'stop':
      stop(workers, event)
      break
    case 'fork': {
      const [child, parent] = [blocks[event.block]!, blocks[event.from]!]
      if (child.kind === 'own' && parent.kind === 'own' && child.owner !== parent.owner) {
        workers[child.owner]!.parent = parent.owner
      }
      break
    }
    case 'prefill':
      if (blocks[event.block]!.kind === 'common') lives.arrivals.push({ event, worker: -1 })
      break
    case 'move':
      if (blocks[event.target]!.kind === 'common') {
        lives.arrivals.push({ event, worker: blocks[event.source]!.owner })
      }
      break
    case 'warning':
      lives.warnings.push(event)
      break
    case 'end':
      lives.end = event
      break
    default:
      break
  }
}

function endWait(life: Life, event: TimelineEvent): void {
  const wait = life.waits.at(-1)
  if (wait !== undefined && wait.to === undefined) wait.to = event
}

function stop(workers: readonly Life[], event: EventOf<'stop'>): void {
  const life = workers[event.worker]!
  life.stop = event
  endWait(life, event)
  const wait = workers[life.parent]?.waits.at(-1)
  if (wait !== undefined && wait.to === undefined) wait.joined.push(event.worker)
}

/** Steps in front of which something happened, ascending, each once: where keys jump to. */
export function stopsOf({ data, steps }: Timeline): number[] {
  const types = ['join', 'pause', 'resume', 'turn', 'stop', 'append', 'warning']
  const places = data.events.filter(({ type }) => types.includes(type)).map(({ at }) => at)
  return [...new Set(places.map((at) => Math.min(at, steps - 1)))]
}
