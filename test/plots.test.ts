// Plots: what is drawn of results, and drawings that can be read on light and dark pages.

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { listCells } from '../lib/experiment/cells'
import { checkExperiment } from '../lib/experiment/definition'
import { experimentPlots } from '../lib/experiment/plots/plots'
import type { Dimension } from '../lib/experiment/plots/series'
import { speedUps } from '../lib/experiment/plots/speedup'
import { type CellResult, formatResults, type Results } from '../lib/experiment/results-file'
import { summarise } from '../lib/experiment/summary'
import { benchmarkPlots, readBenchmarks } from '../lib/plots/benchmarks'
import { color, workerColors } from '../lib/plots/theme'
import { codeOf, temporaryFolder } from './fixtures'
import { installPackage } from './installed'
import { boxesOf, type Element, elementsOf, parseSvg } from './svg'

const root = join(__dirname, '..')
const main = join(root, 'dist', 'cli', 'main.js')
const demo = join(root, 'examples', 'experiments', 'demo.results')
const hogwild = (...args: string[]) =>
  spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })

/** Results of a made-up experiment; `scoreOf` says how right a cell is, `stepsOf` after how many steps it ends. */
function resultsOf(
  change: object,
  scoreOf: (cell: CellResult, budget: number) => number,
  stepsOf: (cell: CellResult, budget: number) => number = (_, budget) => budget,
): Results {
  const definition = checkExperiment(
    {
      ...{ data: { items: [{ answer: 1 }, { answer: 2 }] }, prompt: 'x', grader: 'exact' },
      ...{ models: ['m'], budgets: [10, 20], ...change },
    },
    'made-up',
  )
  const cells = listCells(definition, 2).map((cell) => {
    const points = definition.budgets.map((budget) => {
      const steps = stepsOf(cell as CellResult, budget)
      const score = scoreOf(cell as CellResult, budget)
      return { budget, steps, tokens: steps * cell.workers, answer: null, early: true, score }
    })
    return { ...cell, points } as CellResult
  })
  const head = { experiment: 1 as const, identity: 'x', name: 'made-up', hogwild: '1' }
  return { head: { ...head, definition, hashes: { items: 'x' }, cells: cells.length }, cells }
}

const GRID = { workers: [1, 2, 4], share: [true, false], layouts: ['combined', 'interleaved'] }
const namesOf = (results: Results, by?: Dimension) =>
  experimentPlots(results, { by }).map(({ name }) => name)
const seriesOf = (results: Results, name: string, by?: Dimension) => {
  const { rows } = experimentPlots(results, { by }).find((plot) => plot.name === name)!
  return [...new Set(rows.map(({ series }) => series))]
}

describe('what is drawn', () => {
  const grid = resultsOf(GRID, () => 1)

  test('by default, workers are told apart, and what else differs has plots of its own', () => {
    expect(namesOf(grid)).toEqual([
      ...['accuracy-combined', 'tokens-combined', 'accuracy-not-shared', 'tokens-not-shared'],
      ...['accuracy-interleaved', 'tokens-interleaved', 'speedup'],
    ])
    for (const name of ['accuracy-combined', 'tokens-not-shared']) {
      expect(seriesOf(grid, name)).toEqual(['1 worker', '2 workers', '4 workers'])
    }
    expect(seriesOf(grid, 'speedup')).toEqual(['combined', 'not shared', 'interleaved'])
  })

  test('layouts, with one worker beside each team', () => {
    expect(namesOf(grid, 'layout')).toEqual([
      ...['accuracy-2-workers', 'tokens-2-workers', 'accuracy-4-workers', 'tokens-4-workers'],
      'speedup',
    ])
    expect(seriesOf(grid, 'accuracy-4-workers', 'layout')).toEqual([
      ...['1 worker', 'combined', 'not shared', 'interleaved'],
    ])
  })

  test('schemes and models', () => {
    const schemes = resultsOf({ schemes: ['collaborate', 'plain'], workers: [1, 2] }, () => 1)
    expect(namesOf(schemes, 'scheme')).toEqual([
      ...['accuracy-1-worker', 'tokens-1-worker', 'accuracy-2-workers', 'tokens-2-workers'],
      'speedup',
    ])
    expect(seriesOf(schemes, 'speedup')).toEqual(['collaborate', 'plain'])
    const models = resultsOf({ models: ['a.gguf', 'b/c'] }, () => 1)
    expect(namesOf(models)).toEqual(['accuracy', 'tokens'])
    expect(seriesOf(models, 'accuracy')).toEqual(['a.gguf', 'c'])
    expect(namesOf(models, 'workers')).toEqual([
      ...['accuracy-a-gguf', 'tokens-a-gguf', 'accuracy-c', 'tokens-c'],
    ])
  })

  test('with one layout: whether workers see one another', () => {
    const { layouts: _, ...change } = GRID
    const shared = resultsOf(change, () => 1)
    expect(namesOf(shared)).toContain('accuracy-shared')
    expect(seriesOf(shared, 'speedup')).toEqual(['shared', 'not shared'])
  })

  test('every row of the summary, with its interval', () => {
    const { rows } = experimentPlots(grid).find(({ name }) => name === 'accuracy-combined')!
    const summary = summarise(grid).filter(({ layout, workers }) => {
      return layout === 'combined' || workers === 1
    })
    expect(rows).toEqual(
      summary.map(({ workers, budget, accuracy, low, high }) => ({
        ...{ series: workers === 1 ? '1 worker' : `${workers} workers` },
        ...{ budget, accuracy, low, high },
      })),
    )
  })

  test('colours are those of a number of workers, in each plot', () => {
    const [few, many] = [workerColors([2, 4]), workerColors([1, 2, 3, 4, 5, 8])]
    expect([few.get(2), few.get(4)]).toEqual([many.get(2), many.get(4)])
    expect(new Set(many.values()).size).toBe(6)
  })
})

describe('speed-up', () => {
  test('of steps to 90 % of what one worker gets right, on lines between budgets', () => {
    // One worker: 0.5 after 10 steps, 1 after 20: 0.9 after 18. Two: 0.75 after 5 steps, 1 after 10: 0.9 after 8.
    const halves = resultsOf(
      { workers: [1, 2] },
      ({ workers }, budget) => (budget === 20 ? 1 : workers === 1 ? 0.5 : 0.75),
      ({ workers }, budget) => budget / workers,
    )
    expect(speedUps(halves)).toEqual([
      expect.objectContaining({ workers: 2, items: 2, speedUp: expect.closeTo(18 / 8, 10) }),
    ])
  })

  test('its interval is that of items drawn with replacement, the same each time', () => {
    // Item 0 takes a team half the steps, item 1 as many: by the mean of both, of one alone, or of the other.
    const uneven = resultsOf(
      { workers: [1, 2], budgets: [10] },
      () => 1,
      ({ workers, item }, budget) => (workers === 2 && item === 0 ? budget / 2 : budget),
    )
    const [team] = speedUps(uneven)
    expect(team).toMatchObject({ speedUp: expect.closeTo(10 / 7.5, 10), low: 1, high: 2 })
    expect(speedUps(uneven)).toEqual([team])
  })

  test('none of teams that do not get there, or without a worker alone', () => {
    const worse = resultsOf({ workers: [1, 2] }, ({ workers }) => (workers === 1 ? 1 : 0.5))
    expect(speedUps(worse)).toMatchObject([{ speedUp: 0 }])
    expect(namesOf(worse)).toEqual(['accuracy', 'tokens'])
    expect(namesOf(resultsOf({ workers: [2, 4] }, () => 1))).toEqual(['accuracy', 'tokens'])
    expect(namesOf(resultsOf({ workers: [1, 2] }, () => 0))).toEqual(['accuracy', 'tokens'])
  })

  test('a team keeps its name and colour where another one does not get there', () => {
    const change = { workers: [1, 2], layouts: ['combined', 'contiguous'], share: [true, false] }
    const score = ({ workers, layout }: CellResult) =>
      workers === 1 || layout === 'contiguous' ? 1 : 0
    expect(seriesOf(resultsOf(change, score), 'speedup')).toEqual(['contiguous'])
  })

  test('the ideal is the number of workers, or what a grader says', () => {
    const guideOf = (results: Results) => {
      const { spec } = experimentPlots(results).find(({ name }) => name === 'speedup')!
      return (spec.layer as { data: object }[])[0]!.data
    }
    const plain = resultsOf({ workers: [1, 4] }, () => 1)
    const line = (top: number) => ({
      values: [
        { workers: 1, speedup: 1 },
        { workers: 4, speedup: top },
      ],
    })
    expect(guideOf(plain)).toEqual(line(4))
    for (const { workers, points } of plain.cells) {
      for (const point of points) point.metrics = { ideal: workers === 4 ? 2.5 : 1 }
    }
    expect(guideOf(plain)).toEqual(line(2.5))
  })
})

describe('drawings', () => {
  const folders = [join(demo, 'plots'), join(root, 'bench', 'results', 'plots')]
  const drawings = folders.flatMap((folder) =>
    readdirSync(folder)
      .filter((name) => name.endsWith('.svg'))
      .map((name): [string, string] => [name, folder]),
  )

  test('the committed ones are what the results give, to the byte', () => {
    execFileSync(process.execPath, [join(root, 'scripts', 'plots.cjs'), '--check'])
    expect(drawings.length).toBeGreaterThanOrEqual(9)
  })

  test.each(drawings)(
    '%s is well-formed, says its axes, and paints within its frame',
    (name, folder) => {
      const svg = parseSvg(readFileSync(join(folder, name), 'utf8'))
      const spec = JSON.parse(readFileSync(join(folder, name.replace('.svg', '.vl.json')), 'utf8'))
      const texts = elementsOf(svg).map(({ text }) => text)
      const { x, y } = spec.encoding
      for (const title of [spec.title.text, ...spec.title.subtitle, x.title, y.title]) {
        if (title !== '') expect(texts).toContain(title)
      }
      expect(svg.children[0]).toMatchObject({ name: 'title', text: spec.title.text })
      const [, , width, height] = svg.attributes.viewBox!.split(' ').map(Number)
      expect([width, height]).toEqual([Number(svg.attributes.width), Number(svg.attributes.height)])
      const outside = boxesOf(svg).filter(
        ({ left, right, top, bottom }) => left < 0 || right > width! || top < 0 || bottom > height!,
      )
      expect(
        outside.map(({ element: { name, text, attributes } }) => [name, text, attributes]),
      ).toEqual([])
      // Each row is there: as a point or as the figure of a bar.
      const marks = elementsOf(svg).filter(({ name }) => name === 'path' || name === 'text')
      expect(marks.length).toBeGreaterThanOrEqual(spec.data.values.length)
    },
  )

  test.each(drawings)('%s can be read on light and on dark ground', (name, folder) => {
    const svg = parseSvg(readFileSync(join(folder, name), 'utf8'))
    const style = elementsOf(svg).find((element) => element.name === 'style')!.text
    const dark = new Map(
      [...style.matchAll(/\[(?:fill|stroke)="(#\w+)"\]\{(?:fill|stroke):(#\w+)\}/g)].map(
        ([, one = '', other = '']) => [one, other],
      ),
    )
    const paints = (element: Element) =>
      [element.attributes.fill, element.attributes.stroke].filter(
        (paint) => paint !== undefined && !['none', 'transparent'].includes(paint),
      )
    const used = new Set(elementsOf(svg).flatMap(paints) as string[])
    expect([...used].filter((paint) => !dark.has(paint))).toEqual([])
    const ground = color('ground')
    expect(svg.children.find((element) => element.name === 'rect')!.attributes.fill).toBe(ground)
    const inks = elementsOf(svg)
      .filter((element) => element.name === 'text')
      .map(({ attributes }) => attributes.fill as string)
    for (const ink of inks) {
      expect(contrast(ink, ground)).toBeGreaterThanOrEqual(4.5)
      expect(contrast(dark.get(ink)!, dark.get(ground)!)).toBeGreaterThanOrEqual(4.5)
    }
    expect(new Set(dark.values()).size).toBe(dark.size)
  })
})

/** WCAG 2: (lighter + 0.05) / (darker + 0.05) of relative luminances. */
function contrast(one: string, other: string): number {
  const luminance = (colour: string) =>
    [1, 3, 5]
      .map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, i) => sum + value * ([0.2126, 0.7152, 0.0722][i] as number), 0)
  const [lighter, darker] = [luminance(one), luminance(other)].sort((a, b) => b - a)
  return ((lighter as number) + 0.05) / ((darker as number) + 0.05)
}

describe('the commands', () => {
  test('any grid is drawn, with PNG where it is asked for', () => {
    const folder = temporaryFolder()
    const results = resultsOf(GRID, ({ workers }, budget) => Math.min(1, (budget * workers) / 40))
    writeFileSync(join(folder, 'results.jsonl'), formatResults(results))
    const { status, stdout, stderr } = hogwild(
      ...['experiment', 'plot', folder, '--by', 'layout', '--png', '--json'],
    )
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    const { out, drawings } = JSON.parse(stdout)
    expect(out).toBe(join(folder, 'plots'))
    const [, png, dark] = ['.svg', '.png', '.dark.png'].map((end) =>
      readFileSync(join(out, `accuracy-4-workers${end}`)),
    ) as [Buffer, Buffer, Buffer]
    expect(drawings).toContain('accuracy-4-workers.dark.png')
    for (const image of [png, dark]) {
      expect(image.subarray(1, 4).toString()).toBe('PNG')
      expect(image.readUInt32BE(16)).toBe(2 * 400)
    }
    expect(dark.equals(png)).toBe(false)
  })

  test('results that are not finished are drawn as far as they go', () => {
    const folder = temporaryFolder()
    const results = resultsOf({ workers: [1, 2] }, () => 1)
    const file = join(folder, 'results.1-of-2.jsonl')
    writeFileSync(file, formatResults({ ...results, cells: results.cells.slice(0, 1) }))
    const { stdout } = hogwild('experiment', 'plot', file)
    expect(stdout).toContain('of 1 of 4 cells')
    expect(existsSync(join(folder, 'plots', 'accuracy.svg'))).toBe(true)
    writeFileSync(file, formatResults({ ...results, cells: [] }))
    expect(hogwild('experiment', 'plot', file)).toMatchObject({
      ...{ status: 1, stderr: expect.stringContaining('no finished cells') },
    })
  })

  test('without the packages that draw: data, and what to install', () => {
    const folder = installPackage()
    for (const name of ['vega', '@resvg/resvg-js']) {
      rmSync(join(folder, 'node_modules', name))
    }
    const run = (...args: string[]) => {
      const command = join(folder, 'node_modules', '.bin', 'hogwild')
      return spawnSync(command, args, { cwd: folder, encoding: 'utf8' })
    }
    expect(run('experiment', 'plot', demo, '--out', 'plots')).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(
        /the package vega, which is not installed: npm install vega vega-lite \[HOGWILD_UNSUPPORTED\]/,
      ),
    })
    const names = readdirSync(join(folder, 'plots'))
    expect(names.filter((name) => !/\.(csv|vl\.json)$/.test(name))).toEqual([])
    for (const name of names) {
      const committed = readFileSync(join(demo, 'plots', name), 'utf8')
      expect(readFileSync(join(folder, 'plots', name), 'utf8')).toBe(committed)
    }
  })

  test('a GPU that nobody has measured is not drawn', async () => {
    const empty = temporaryFolder()
    mkdirSync(join(empty, 'gpu'))
    const unmeasured = () => readBenchmarks([join(empty, 'gpu')])
    await expect(unmeasured()).rejects.toThrow('none has been measured')
    expect(await codeOf(unmeasured)).toBe('HOGWILD_INVALID_ARGUMENT')
    await expect(readBenchmarks([join(empty, 'none')])).rejects.toThrow('none has been measured')
    await expect(readBenchmarks([join(empty, 'none.json')])).rejects.toThrow('cannot read')
    writeFileSync(join(empty, 'x.json'), '{"runs":[{"tokens":1}]}')
    await expect(readBenchmarks([join(empty, 'x.json')])).rejects.toThrow('is none of the results')
    writeFileSync(join(empty, 'x.json'), '{"runs":[{"read_share":"much"}]}')
    const [report] = await readBenchmarks([join(empty, 'x.json')])
    expect(() => benchmarkPlots(report!)).toThrow('"model"')
  })

  test('what a card has measured is, beside the goals; of a stage that was run again, the last', async () => {
    const file = join(temporaryFolder(), 'card.jsonl')
    const line = (tokens: number, workers: number, share: number) => ({
      ...{ part: 'attention', heads: '32/4', head_dim: 128, tokens, workers, us: 1 },
      copy_share: share,
    })
    const put = (step: object) => {
      const lines = [
        { stage: 'card', card: 'A Card' },
        ...[line(64, 1, 0.2), line(65536, 1, 0.5), line(65536, 1, 0.95), line(64, 4, 0.3)],
        { part: 'steps', model: 'M', tokens: 64, workers: 4, ms: 3, ...step },
      ]
      writeFileSync(file, lines.map((one) => `${JSON.stringify(one)}\n`).join(''))
    }
    put({})
    const [card] = await readBenchmarks([file])
    expect(() => benchmarkPlots(card!)).toThrow('time_over_bytes_at_copy_bandwidth')
    put({ time_over_bytes_at_copy_bandwidth: 1.07 })
    const { status, stderr } = hogwild('bench', 'plot', file)
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    const plots = benchmarkPlots((await readBenchmarks([file]))[0]!)
    expect(plots.map(({ name, rows }) => [name, rows])).toEqual([
      [
        'card.attention.32-4-heads-of-128',
        [
          { series: '1 worker', tokens: 64, share: 0.2 },
          { series: '1 worker', tokens: 65536, share: 0.95 },
          { series: '4 workers', tokens: 64, share: 0.3 },
        ],
      ],
      ['card.steps', [{ group: 'M, 64, 4', series: 'hogwild', value: 1.07, label: '1.07 x' }]],
    ])
    const folder = join(file, '..', 'plots')
    const svg = readFileSync(join(folder, 'card.attention.32-4-heads-of-128.svg'), 'utf8')
    expect(svg).toContain('>goal<')
  })
})
