// The demo's run of the workers, with a view of the test's own: when it waits, and what keys do.

import type { Key } from 'node:readline'
import { createColors } from 'picocolors'
import type { Scene } from '../lib/cli/demo/frame'
import { Pace } from '../lib/cli/demo/pace'
import { Show } from '../lib/cli/demo/show'
import { createTask } from '../lib/cli/demo/task'
import { DemoModel } from '../lib/cli/demo/team'

let team: DemoModel

beforeAll(async () => {
  team = await DemoModel.load()
})

afterAll(() => team.close())

/** Plays at full speed; `onShow` is called after each step. */
function start(
  options: { workers?: number; firstPauseMs?: number },
  onShow: (scene: Scene, press: (sequence: string) => void) => void = () => {},
  onClose: (press: (sequence: string) => void) => void = () => {},
) {
  const seen: Scene[] = []
  let press: (sequence: string) => void = () => {}
  const show = new Show(team, createTask(['many', 'hands', 'make', 'light', 'work']), {
    ...{ workers: 4, share: true, pace: 0, firstPauseMs: 0, hasKeys: true, ...options },
    view: (scene, onKey) => {
      press = (sequence) => onKey({ sequence, name: sequence } as Key)
      const copy = () => structuredClone(scene())
      return {
        open: () => {},
        line: () => {},
        note: () => {},
        close: () => {
          onClose(press)
          seen.push(copy())
        },
        show: () => {
          const isNew = scene().step !== seen.at(-1)?.step
          seen.push(copy())
          if (isNew) onShow(scene(), press)
        },
      }
    },
  })
  return { seen, played: show.play(), press: (sequence: string) => press(sequence), show }
}

const notesOf = ({ notes }: Scene) => notes.map(({ text }) => text)

test('nothing is written in the first pause; any key ends it', async () => {
  const { seen, played, press } = start({ firstPauseMs: 1e9 })
  await new Promise((resolve) => setTimeout(resolve, 50))
  expect(seen).toEqual([])
  press('x')
  expect(await played).toBeUndefined()
  expect(seen.at(-1)).toMatchObject({ step: expect.any(Number) })
  expect(seen.at(-1)?.step).toBeGreaterThan(10)
})

test('held, it waits; quit, it ends with what was written', async () => {
  const { seen, played, press } = start({}, ({ step }, key) => {
    if (step === 3) key('space')
  })
  await new Promise((resolve) => setTimeout(resolve, 200))
  expect(seen.at(-1)).toMatchObject({ step: 3, pace: 'held' })
  press('q')
  expect(await played).toBe(0)
  expect(seen.at(-1)?.step).toBe(3)
})

test('who is stopped can be called back, as often as one likes', async () => {
  const { seen, played, show } = start({}, ({ step }, key) => {
    if (step >= 2 && step <= 7) key('2')
  })
  await played
  const last = seen.at(-1) as Scene
  const taken = 'Bob is taken away: what was begun is free again'
  const back = 'Bob is back'
  expect(notesOf(last).filter((text) => text === taken || text === back)).toEqual(
    [1, 2, 3].flatMap(() => [taken, back]),
  )
  expect(show.conclusion(createColors(false), 80)[0]).toBe('many hands make light work')
  expect([...last.blocks.keys()].sort()).toEqual(['Alice', 'Bob', 'Carol', 'Dave'])
})

test('the last one at work stays; somebody may join until the end, and not afterwards', async () => {
  const { seen, played } = start(
    { workers: 1 },
    ({ step, members }, key) => {
      if (step === 2) key('1')
      const [alice, bob] = members
      if (alice?.state === 'halted' && bob?.state === 'absent') key('2')
    },
    (key) => key('4'),
  )
  await played
  const last = seen.at(-1) as Scene
  expect(notesOf(last)).toEqual([
    'Alice stays: nobody else is at work',
    'Bob joins',
    'Dave comes too late: all the others have stopped',
  ])
  expect(last.members.map(({ state }) => state)).toEqual(['halted', 'halted', 'absent', 'absent'])
})

test('paces: doubled and halved within bounds, full speed and back', () => {
  const pace = new Pace(4)
  const shown = (change: 'faster' | 'slower' | 'hold', times = 1) => {
    for (let i = 0; i < times; i++) pace[change]()
    return String(pace)
  }
  expect(shown('faster')).toBe('8/s')
  expect(shown('faster', 9)).toBe('64/s')
  expect(shown('slower', 20)).toBe('0.5/s')
  expect(shown('hold')).toBe('held')
  expect(pace.milliseconds).toBe(Number.POSITIVE_INFINITY)
  expect(shown('hold')).toBe('0.5/s')
  expect(pace.milliseconds).toBe(2000)
  const full = new Pace(0)
  expect([String(full), full.milliseconds]).toEqual(['full', 0])
  full.faster()
  expect(String(full)).toBe('full')
  full.slower()
  expect(String(full)).toBe('64/s')
})
