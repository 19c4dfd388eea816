// The page of a trace: what it says of a run is what the run's own blocks and steps say, and whatever stands in a trace stays text.

import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  demoModelPath,
  type LayoutName,
  loadModel,
  loadTokenizer,
  type Model,
  type RunOptions,
  runWorkers,
  type Tokenizer,
  traceToHtml,
  viewOf,
  type WorkerEvent,
  type WorkerRun,
} from '../lib'
import { viewTrace } from '../lib/cli/view'
import type { TimelineData } from '../lib/timeline/data'
import { Attention } from '../lib/timeline/page/attention'
import { Blocks, idsOf, type Seen, textOf } from '../lib/timeline/page/blocks'
import { livesOf, stopsOf } from '../lib/timeline/page/lives'
import { search } from '../lib/timeline/page/search'
import { Sight } from '../lib/timeline/page/sight'
import { inLines, inOneLine, inTime } from '../lib/timeline/page/text'
import { Timeline } from '../lib/timeline/page/timeline'
import { readTimeline } from '../lib/timeline/read'
import { codeOf, temporaryFolder } from './fixtures'
import { HOSTILE, hostileTrace, syntheticTrace } from './timeline/traces.cjs'

let model: Model
let tokenizer: Tokenizer

beforeAll(async () => {
  model = await loadModel(demoModelPath, { device: 'cpu', threads: 1 })
  tokenizer = await loadTokenizer(demoModelPath)
})
afterAll(async () => {
  await model.close()
  await tokenizer.close()
})

const timelineOf = (text: string) => new Timeline({ title: '', ...readTimeline(text) })

/** Tokens of all blocks of a run, by the names that its trace gives them. */
function tokensIn({ blocks }: WorkerRun): Map<string, number[]> {
  const tokens = new Map<string, number[]>()
  const add = (name: string, block: { tokens(): Int32Array } | undefined) => {
    if (block !== undefined) tokens.set(name, Array.from(block.tokens()))
  }
  add('common', blocks.common)
  add('shared', blocks.shared)
  for (const [name, { own, header }] of Object.entries(blocks.workers)) {
    add(`own ${name}`, own)
    add(`header ${name}`, header)
  }
  return tokens
}

let next = 0

/** A run to its end, its trace as a timeline, and what stood in its blocks behind each step. */
async function traced(
  options: Partial<RunOptions>,
  act: (step: number, run: WorkerRun) => void = () => {},
) {
  const trace = join(temporaryFolder(), `${next++}.jsonl`)
  const run = runWorkers({
    ...{ model, tokenizer, trace, prompt: [1, 16, 3, 56], stopTokens: [], workers: [] },
    ...options,
  })
  const events: WorkerEvent[] = []
  const behind: Map<string, number[]>[] = []
  for await (const event of run) {
    events.push(event)
    if (event.type !== 'step') continue
    behind.push(tokensIn(run))
    act(event.step, run)
  }
  const text = readFileSync(trace, 'utf8')
  return { trace, text, events, behind, timeline: timelineOf(text) }
}

const idsSeen = ({ entries }: Seen, timeline: Timeline) =>
  entries.map(({ pieces }) => pieces.flatMap((piece) => idsOf(piece, timeline)))

const APPENDED = [30, 31, 32]

/** Two workers with headers of different kinds, one that comes late, one that branches off; waits, tools, what is appended. */
function richRun(layout: LayoutName, share: boolean) {
  const turns =
    layout === 'contiguous'
      ? {}
      : { turnEnds: (ids: readonly number[]) => ids.length === 4, turnHeader: () => [9, 8] }
  return traced(
    {
      ...{ layout, share, maxTokens: 14, ...turns },
      ...(layout === 'combined' ? { sharedHeader: [11, 12] } : {}),
      workers: [
        { name: 'a', prompt: [5], attentionMass: true },
        { name: 'b', prompt: [6, 7], header: [20, 21], attentionMass: true },
      ],
    },
    (step, run) => {
      if (step === 2) run.join({ name: 'late', prompt: [4], header: [30] })
      if (step === 4) run.append(APPENDED)
      if (step === 5) {
        run.join({ name: 'branch', from: 'a', prompt: [9], maxTokens: 3 })
        run.park('a', () => run.stopped(['branch']).then(() => [40, 41]), { data: { tool: 'x' } })
      }
      if (step === 7) run.pause('b')
      if (step === 9) run.resume('b')
    },
  )
}

describe.each(['contiguous', 'interleaved', 'combined'] as const)('layout %s', (layout) => {
  test('what stands in the blocks before each step', async () => {
    const { timeline, behind } = await richRun(layout, true)
    const blocks = new Blocks(timeline)
    const { data } = timeline
    expect(timeline.steps).toBe(behind.length)
    // Backwards too: the state is made anew.
    for (const step of [...behind.keys(), 7, 0]) {
      for (const [name, tokens] of behind[step]!) {
        const block = data.blocks.findIndex((known) => known.name === name)
        const content = blocks.contentOf(block, step + 1)
        const ids = content.flatMap((piece) => idsOf(piece, timeline))
        const came = name === 'common' && step === 4 ? APPENDED : []
        expect([name, step, ids]).toEqual([name, step, [...tokens, ...came]])
      }
    }
  })

  test('what each worker saw: blocks, order, places, texts', async () => {
    const { timeline, behind, events } = await richRun(layout, true)
    const blocks = new Blocks(timeline)
    const { data } = timeline
    const turned = new Set(
      events.flatMap((event) => (event.type === 'turn' ? [`${event.step} ${event.worker}`] : [])),
    )
    let compared = 0
    for (let step = 0; step < timeline.steps; step++) {
      const known = behind[step]!
      const joined = data.workers.filter((name) => known.has(`own ${name}`))
      for (const name of joined) {
        const seen = blocks.seen(step, data.workers.indexOf(name))!
        if (seen.cell < 0) continue
        const parts = joined.map((other) => ({
          own: `own ${other}`,
          header: known.has(`header ${other}`) ? `header ${other}` : undefined,
        }))
        const shared = layout === 'combined' ? 'shared' : undefined
        const order = viewOf(
          layout,
          { common: 'common', shared, workers: parts },
          joined.indexOf(name),
        )
        expect(seen.entries.map(({ entry }) => data.blocks[entry.block]!.name)).toEqual(order)
        let place = 0
        idsSeen(seen, timeline).forEach((ids, i) => {
          expect([seen.entries[i]!.start, seen.entries[i]!.shown]).toEqual([place, ids.length])
          place += ids.length
          const of = order[i]!
          const hasMoved = [...turned].some((turn) => turn.startsWith(`${step} `))
          if (of === 'common' ? hasMoved : turned.has(`${step} ${of.slice(4)}`)) return
          expect([step, name, of, ids]).toEqual([step, name, of, known.get(of)])
          compared++
        })
        expect(seen.end).toBe(place)
        const own = seen.entries.at(-1)!
        expect([own.isWritten, own.fresh]).toEqual([true, data.steps.counts[seen.cell]])
      }
    }
    expect(compared).toBeGreaterThan(50)
  })

  test('ribbons: what a lane gets is what the step told of its blocks', async () => {
    const { timeline, events } = await richRun(layout, true)
    const attention = new Attention(timeline)
    const { data, workers } = timeline
    const blocks = new Blocks(timeline)
    const sums = new Float64Array(workers * (workers + 1))
    const counts = new Float64Array(workers)
    for (const event of events) {
      if (event.type !== 'token' || event.attentionMass === undefined) continue
      const worker = data.workers.indexOf(event.worker)
      const expected = new Float64Array(workers + 1)
      blocks.seen(event.step, worker)!.entries.forEach(({ entry, share }, i) => {
        const { name } = data.blocks[entry.block]!
        const owner = data.workers.findIndex((known) =>
          [`own ${known}`, `header ${known}`].includes(name),
        )
        expected[owner < 0 ? workers : owner]! += event.attentionMass![i]!
        expect(share).toBeCloseTo(event.attentionMass![i]!, 5)
      })
      const row = attention.mean(event.step, event.step + 1).slice(worker * (workers + 1))
      expected.forEach((share, lane) => {
        expect(Math.abs(row[lane]! - share)).toBeLessThan(1e-5)
        sums[worker * (workers + 1) + lane]! += share
      })
      expect(expected.reduce((sum, share) => sum + share)).toBeCloseTo(1, 4)
      counts[worker]!++
    }
    expect(Math.min(counts[0]!, counts[1]!)).toBeGreaterThan(10)
    const mean = attention.mean(0, timeline.steps)
    mean.forEach((share, i) => {
      const worker = Math.floor(i / (workers + 1))
      expect(Math.abs(share - sums[i]! / Math.max(1, counts[worker]!))).toBeLessThan(1e-5)
    })
  })
})

test('workers that do not share see themselves alone', async () => {
  const { timeline } = await richRun('combined', false)
  const blocks = new Blocks(timeline)
  const seen = blocks.seen(timeline.steps - 1, 1)!
  const names = seen.entries.map(({ entry }) => timeline.data.blocks[entry.block]!.name)
  expect(names).toEqual(['common b', 'shared', 'header b', 'own b'])
  const common = idsSeen(seen, timeline)[0]!
  expect(common.slice(0, 4)).toEqual([1, 16, 3, 56])
  expect(common.join(' ')).toContain(APPENDED.join(' '))
})

test('what happened: joins, branches, waits, turns, stops', async () => {
  const { timeline, events } = await richRun('combined', true)
  const { workers, arrivals, end } = livesOf(timeline)
  const [a, b, late, branch] = workers
  expect([a!.parent, b!.parent, late!.parent, branch!.parent]).toEqual([-1, -1, -1, 0])
  expect([late!.join!.at, branch!.join!.at]).toEqual([3, 6])
  expect(a!.waits.map(({ from, to, joined }) => [from.parked, to?.type, joined])).toEqual([
    ['{"tool":"x"}', 'resume', [3]],
  ])
  expect(b!.waits.map(({ from, to }) => [from.at, from.parked, to!.at])).toEqual([[8, '', 10]])
  const turns = events.filter(({ type }) => type === 'turn')
  expect(workers.flatMap((life) => life.turns)).toHaveLength(turns.length)
  expect(arrivals.filter(({ worker }) => worker >= 0)).toHaveLength(turns.length)
  expect(arrivals.filter(({ worker }) => worker < 0).map(({ event }) => event.at)).toEqual([
    0, 0, 5,
  ])
  expect(workers.map(({ stop }) => stop?.reason)).toEqual(Array(4).fill('max-tokens'))
  expect(end!.completionTokens).toBe(14 * 3 + 3)
  const stops = stopsOf(timeline)
  expect(stops).toEqual([...stops].sort((one, other) => one - other))
  expect(stops).toEqual(expect.arrayContaining([3, 5, 6, 8, 10]))
})

test('texts and times of cells', async () => {
  const { timeline, events } = await richRun('combined', true)
  for (const [worker, name] of timeline.data.workers.entries()) {
    const told = events.filter((event) => event.type === 'token' && event.worker === name)
    const text = told.map((event) => (event as { text: string }).text).join('')
    expect(timeline.cellsOf[worker]!.map((cell) => timeline.textOf(cell)).join('')).toBe(text)
  }
  for (let step = 0; step < timeline.steps; step++) {
    const [left, right] = [timeline.left(step, 'time'), timeline.right(step, 'time')]
    expect(right).toBeGreaterThanOrEqual(left)
    expect(right - left).toBeLessThanOrEqual(timeline.data.steps.milliseconds[step]! + 1e-9)
    if (right > left) expect(timeline.stepAt((left + right) / 2, 'time')).toBe(step)
    expect(timeline.stepAt(step + 0.5, 'steps')).toBe(step)
  }
})

test('without a tokenizer ids take the place of texts', async () => {
  const workers = [{ name: 'a', prompt: [5, 6] }]
  const { timeline } = await traced({ tokenizer: undefined, workers, maxTokens: 3 })
  const [first] = timeline.cellsOf[0]!
  expect([timeline.data.byIds, timeline.textOf(first!)]).toEqual([true, '5 6'])
  expect(search(timeline, '1 16 3 56')).toMatchObject([{ lane: 1, from: -1 }])
})

describe('scripts', () => {
  const script = (ops: object[]) => timelineOf(JSON.stringify({ ops }))
  const names = (list: string) => [...list].map((name) => ({ op: 'block', name }))
  const places = (seen: Seen) => seen.entries.map(({ start, shown }) => [start, shown])

  // The drawings in docs/views.md.
  const late = [
    ...names('pab'),
    { op: 'prefill', block: 'p', tokens: [1, 1, 1, 1, 1, 1] },
    { op: 'prefill', block: 'a', tokens: [2, 2] },
    { op: 'prefill', block: 'b', tokens: [3, 3, 3] },
    { op: 'worker', name: 'Alice', view: ['p', { block: 'b', lag: 1 }, 'a'] },
    { op: 'worker', name: 'Bob', view: ['p', 'a', 'b'] },
    { op: 'step', workers: ['Alice', 'Bob'], inputs: [[20], [30, 31]] },
    { op: 'step', workers: ['Alice', 'Bob'], inputs: [[21], [32]] },
  ]

  test('one step late', () => {
    const blocks = new Blocks(script(late))
    expect(places(blocks.seen(0, 0)!)).toEqual([
      [0, 6],
      [6, 3],
      [9, 3],
    ]) // prettier-ignore
    expect(places(blocks.seen(0, 1)!)).toEqual([
      [0, 6],
      [6, 3],
      [9, 5],
    ]) // prettier-ignore
    expect(places(blocks.seen(1, 0)!)).toEqual([
      [0, 6],
      [6, 5],
      [11, 4],
    ]) // prettier-ignore
    expect(places(blocks.seen(1, 1)!)).toEqual([
      [0, 6],
      [6, 4],
      [10, 6],
    ]) // prettier-ignore
    expect(blocks.seen(0, 0)!.entries.map(({ fresh }) => fresh)).toEqual([0, 0, 1])
  })

  test('places, weights, and what stands behind', () => {
    const timeline = script([
      ...names('psow'),
      { op: 'prefill', block: 'p', tokens: [1, 2, 3, 4, 5, 6] },
      { op: 'prefill', block: 's', tokens: [7, 8, 9] },
      {
        ...{ op: 'worker', name: 'A', write_to: 'o' },
        view: ['p', { block: 's', at: 90, temperature: 0.5, bias: -1 }, { block: 'o', at: 6 }, 'w'],
      },
      { op: 'step', workers: ['A'], inputs: [[21, 22]] },
    ])
    const seen = new Blocks(timeline).seen(0, 0)!
    expect(places(seen)).toEqual([
      [0, 6],
      [90, 3],
      [6, 2],
      [0, 0],
    ]) // prettier-ignore
    expect(seen.end).toBe(93)
    expect(seen.entries[1]!.entry).toMatchObject({ temperature: 0.5, bias: -1 })
    expect(seen.entries.map(({ isWritten, isBehind }) => [isWritten, isBehind])).toEqual([
      [false, false],
      [false, false],
      [true, false],
      [false, true],
    ])
  })

  test('blocks that are cut, joined and forked', () => {
    const timeline = script([
      ...names('ab'),
      { op: 'prefill', block: 'a', tokens: [1, 2, 3, 4, 5] },
      { op: 'prefill', block: 'b', tokens: [6, 7] },
      { op: 'insert', target: 'a', at: 2, source: 'b' },
      { op: 'forget', block: 'a', begin: 1, end: 3 },
      { op: 'fork', block: 'a', name: 'c' },
      { op: 'truncate', block: 'a', length: 3 },
      { op: 'append_from', target: 'b', source: 'a', clear_source: true },
      { op: 'compact', block: 'b' },
      { op: 'clear', block: 'a' },
      { op: 'worker', name: 'A', view: ['a'] },
      { op: 'step', workers: ['A'], inputs: [[9]] },
    ])
    const blocks = new Blocks(timeline)
    const ids = (block: number) =>
      blocks.contentOf(block, 1).flatMap((piece) => idsOf(piece, timeline))
    expect([0, 1, 2].map(ids)).toEqual([[9], [6, 7, 1, 7, 3], [1, 7, 3, 4, 5]])
    expect(blocks.contentOf(2, 1).map((piece) => textOf(piece, timeline))).toEqual([
      '1',
      '7',
      '3 4 5',
    ])
    expect(timeline.hasTimes).toBe(false)
  })

  test('nothing that was computed', () => {
    const timeline = script([{ op: 'block', name: 'a' }])
    expect([timeline.steps, timeline.workers, timeline.range('steps')]).toEqual([0, 0, [-1, 1]])
    expect(new Blocks(timeline).seen(0, 0)).toBeUndefined()
  })
})

test('search goes across tokens and over what was given', () => {
  const timeline = timelineOf(syntheticTrace({ workers: 3, steps: 40, turn: 0 }))
  const [first, second] = timeline.cellsOf[1]!.slice(10, 12).map((cell) => timeline.textOf(cell))
  const found = search(timeline, `${first}${second}`.toUpperCase())
  const cells = timeline.cellsOf[1]!
  expect(found).toContainEqual({ lane: 1, step: 10, from: cells[10], to: cells[11] })
  expect(search(timeline, ' the of and ').map(({ lane, from }) => [lane, from])).toContainEqual([
    3, -1,
  ])
  for (const query of ['.*', '(', 'no such words']) expect(search(timeline, query)).toEqual([])
  const steps = search(timeline, 'e').map(({ step }) => step)
  expect(steps.length).toBeGreaterThan(10)
  expect(steps).toEqual([...steps].sort((one, other) => one - other))
})

test('zoom and pan stay within the run, and keep steps in sight', () => {
  const timeline = timelineOf(syntheticTrace({ workers: 2, steps: 500 }))
  for (const axis of ['steps', 'time'] as const) {
    const sight = new Sight(timeline, axis)
    const [first, last] = timeline.range(axis)
    expect([sight.begin, sight.end]).toEqual([first, last])
    sight.zoom(0.05, 0.3)
    sight.pan(-100)
    expect(sight.begin).toBe(first)
    for (const step of [499, 0, 250]) {
      sight.reveal(step)
      expect(sight.begin).toBeLessThanOrEqual(timeline.left(step, axis))
      expect(sight.end).toBeGreaterThanOrEqual(timeline.right(step, axis))
    }
    sight.zoom(1e9, 0.5)
    expect([sight.begin, sight.end]).toEqual([first, last])
  }
})

describe('the file', () => {
  const dataOf = (html: string) =>
    /<script type="application\/json" id="data">([\s\S]*?)<\/script>/.exec(html)![1]!

  test('hostile text stays data', () => {
    const html = traceToHtml(hostileTrace(), { title: HOSTILE[0] })
    expect(html.match(/<script/g)).toHaveLength(2)
    expect(html.match(/<\/script/g)).toHaveLength(2)
    expect(html).not.toMatch(/<img|<!--/)
    expect(html).not.toMatch(/(?!\n)[\p{Cc}\p{Cs}\p{Bidi_Control}\p{Zl}\p{Zp}]/u)
    const data = JSON.parse(dataOf(html)) as TimelineData
    expect(data.title).toBe(HOSTILE[0])
    expect(data.texts).toEqual(expect.arrayContaining(HOSTILE))
    expect(data.workers).toEqual(HOSTILE.slice(0, 6))
    const timeline = new Timeline(data)
    const shown = HOSTILE.flatMap((text) => [inOneLine(text), inLines(text)])
    for (const text of shown) {
      expect(text).not.toMatch(/(?![\n\t])[\p{Cc}\p{Cs}\p{Bidi_Control}\p{Zl}\p{Zp}]/u)
    }
    expect(inOneLine('a b\r\n\t\u202e\u001b\u007f')).toBe('a·b↵⇥⟨202E⟩⟨001B⟩⟨007F⟩')
    expect(inLines('a b\r\n\t\u202e')).toBe('a b\n\t⟨202E⟩')
    expect(search(timeline, '</script>').length).toBeGreaterThan(1)
  })

  test('asks for nothing, and runs nothing but its own script', () => {
    const html = traceToHtml(syntheticTrace({ workers: 2, steps: 3 }), { title: 'a & b' })
    expect(html).toContain('<title>a &#38; b</title>')
    expect(html).not.toMatch(/(src|href)=|url\(|@import|https?:/)
    const script = /<script>([\s\S]*)<\/script>\s*<\/body>/.exec(html)![1]!
    const hash = createHash('sha256').update(script).digest('base64')
    expect(html).toContain(
      `default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-${hash}'`,
    )
    expect(html).not.toMatch(/%[A-Z]+%/)
  })

  test('50,000 tokens take no more than they must', () => {
    const text = syntheticTrace({ workers: 16, steps: 3125 })
    expect(traceToHtml(text).length).toBeLessThan(1.5e6)
  })

  test('what is refused', () => {
    const good = syntheticTrace({ workers: 2, steps: 3 })
    const lines = good.split('\n')
    const changed = (pattern: string | RegExp, by: string) => good.replace(pattern, by)
    for (const [text, message] of [
      ['', /expected a JSON file with a script, or a trace/],
      ['<html>', /expected a JSON file/],
      ['{"ops": 5}', /expected a script/],
      ['{"ops": [{"op": "step", "workers": ["A"], "inputs": [[1]]}]}', /unknown worker "A"/],
      [changed('"trace":2', '"trace":9'), /version 9/],
      [changed('"began":"', '"began":5,"x":"'), /line 1: began/],
      [changed('"texts":', '"texts":5,"text":'), /line 10: texts to be an array/],
      [changed(/"forced":\[\[true\]/, '"forced":[[1]'), /line 10: forced\[0\]/],
      [changed('"milliseconds":', '"milliseconds":-'), /milliseconds/],
      [changed('"event":"join"', '"event":"jump"'), /"jump" is not known/],
      [changed('"time":5', '"time":"5"'), /line 4: time/],
      [[...lines.slice(0, 4), 'x', ''].join('\n'), /line 5 of the trace/],
    ] as const) {
      expect(() => traceToHtml(text)).toThrow(message)
    }
    expect(() => traceToHtml(5 as never)).toThrow(/text to be a string/)
    expect(() => traceToHtml(good, { name: '' } as never)).toThrow(/options has no "name"/)
    // Cut in the middle of a line: what is complete.
    expect(timelineOf(good.slice(0, good.lastIndexOf('"op":"step"'))).steps).toBe(2)
  })
})

describe('hogwild view', () => {
  const folder = temporaryFolder()
  const trace = join(folder, 'run.jsonl')
  let written = ''

  beforeEach(() => {
    written = ''
    writeFileSync(trace, syntheticTrace({ workers: 2, steps: 3 }))
    jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
      written += text
      return true
    })
  })
  afterEach(() => jest.restoreAllMocks())

  test('writes a page beside the trace, elsewhere, or to stdout', async () => {
    const page = traceToHtml(readFileSync(trace, 'utf8'), { title: 'run.jsonl' })
    await viewTrace(trace, {})
    expect(written).toBe(`${trace}.html\n`)
    expect(readFileSync(`${trace}.html`, 'utf8')).toBe(page)
    const out = join(folder, 'other.html')
    await viewTrace(trace, { out })
    expect(readFileSync(out, 'utf8')).toBe(page)
    written = ''
    await viewTrace(trace, { out: '-' })
    expect(written).toBe(page)
  })

  test('what is refused', async () => {
    const codes = (path: string, options = {}) => codeOf(() => viewTrace(path, options))
    expect(await codes(join(folder, 'none'))).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(await codes(folder)).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(await codes(trace, { out: trace })).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(await codes(trace, { out: join(folder, 'none', 'x.html') })).toBe('HOGWILD_NOT_WRITTEN')
    writeFileSync(trace, readFileSync(trace, 'utf8').replace('"trace":2', '"trace":1'))
    expect(await codes(trace)).toBe('HOGWILD_UNSUPPORTED')
  })
})

test('numbers that people read', () => {
  expect([0, 0.25, 1.234, 99.96, 999.7, 1234, 61_000, 125_000].map(inTime)).toEqual([
    ...['0 ms', '250 µs', '1.23 ms', '100 ms', '1 s', '1.23 s', '61 s', '2 min 5 s'],
  ])
})
