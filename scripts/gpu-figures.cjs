#!/usr/bin/env node
// The tables of a GPU's speed, as Markdown: from the JSON lines of scripts/gpu.sh, and what can be counted without a card
// from cuda/loops.json and cuda/budget.json.
//
//   node scripts/gpu-figures.cjs [FOLDER] [--write FILE | --check FILE]
//
// FOLDER: default bench/results/gpu; of each card the file with the latest date counts. --write puts the tables between
// the lines <!-- gpu:begin --> and <!-- gpu:end --> of FILE, and the counts between <!-- gpu-counts:begin --> and
// <!-- gpu-counts:end --> behind them; --check fails where they are not there so.
'use strict'
const { existsSync, readdirSync, readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { CARDS, estimates } = require('./gpu-estimates.cjs')

const [begin, end] = ['<!-- gpu:begin -->', '<!-- gpu:end -->']
const [beginCounts, endCounts] = ['<!-- gpu-counts:begin -->', '<!-- gpu-counts:end -->']

/** The lines of the latest run of each card. */
function readRuns(folder) {
  const latest = new Map()
  for (const name of existsSync(folder) ? readdirSync(folder) : []) {
    if (!name.endsWith('.jsonl')) continue
    const lines = readFileSync(path.join(folder, name), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    const about = lines.findLast(({ stage }) => stage === 'card')
    if (about === undefined) continue
    const known = latest.get(about.card)
    if (known === undefined || known.about.date < about.date)
      latest.set(about.card, { about, lines })
  }
  return [...latest.values()].sort((a, b) => (a.about.card < b.about.card ? -1 : 1))
}

function table(head, rows) {
  if (rows.length === 0) return []
  return [
    '',
    `| ${head.join(' | ')} |`,
    `|${head.map(() => ' ---: |').join('')}`,
    ...rows.map((row) => `| ${row.join(' | ')} |`),
  ]
}

const percent = (share) => (share === undefined ? '' : `${Math.round(share * 100)} %`)

/** The measured lines of a part, by what `key` tells of them. Where a stage was run again, its later lines count. */
function latest(lines, part, key, isMeasured = ({ us }) => us !== undefined) {
  const found = new Map()
  for (const line of lines) if (line.part === part && isMeasured(line)) found.set(key(line), line)
  return [...found.values()]
}

const shapeOf = ({ heads, head_dim = 128, tokens, workers }) =>
  `${heads} of ${head_dim}, ${tokens}, ${workers}`

function heading({ about, lines }) {
  const copy = lines.findLast(({ part, copy_gb_s }) => part === 'card' && copy_gb_s !== undefined)
  const ended = new Map()
  for (const { stage, rc } of lines)
    if (rc !== undefined && !stage.includes(':')) ended.set(stage, rc)
  const stages = [...ended].map(([stage, rc]) =>
    rc === 0 ? stage : `**${stage} (exit code ${rc})**`,
  )
  return [
    `### ${about.card}`,
    '',
    `${about.date.slice(0, 10)}, commit ${about.commit}, driver ${about.driver}, clocks ${about.clocks}.` +
      (copy === undefined ? '' : ` Copies ${copy.copy_gb_s} GB/s, reads ${copy.read_gb_s} GB/s.`) +
      ` Stages: ${stages.join(', ') || 'none'}.`,
  ]
}

function attentionTable(lines) {
  const torch = new Map(
    lines
      .filter(({ part, op, us }) => part === 'torch' && op === 'attention' && us)
      .map((line) => [shapeOf(line), line.us]),
  )
  const head = ['heads', 'cached tokens', 'workers', 'us per layer', 'of copy bandwidth']
  return table(
    [...head, 'over one worker', 'one pass per worker, us', 'PyTorch, us'],
    latest(lines, 'attention', shapeOf).map((line) => [
      `${line.heads} of ${line.head_dim}`,
      line.tokens,
      line.workers,
      line.us,
      percent(line.copy_share),
      line.over_one,
      line.pass_per_worker_us,
      torch.get(shapeOf(line)) ?? '',
    ]),
  )
}

function stepTable(lines) {
  const steps = latest(
    lines,
    'steps',
    ({ model, tokens, workers }) => `${model} ${tokens} ${workers}`,
    ({ ms }) => ms !== undefined,
  )
  return table(
    ['whole step', 'layers', 'cached tokens', 'workers', 'ms', 'time over bytes / copy bandwidth'],
    steps.map((line) => [
      line.model,
      `${line.layers} of ${line.of}`,
      line.tokens,
      line.workers,
      line.ms,
      line.time_over_bytes_at_copy_bandwidth,
    ]),
  )
}

function productTable(lines) {
  const products = latest(lines, 'matmul', ({ name, rows }) => `${name} ${rows}`)
  return table(
    ['matrix product', 'rows', 'us', 'of copy bandwidth'],
    products.map(({ name, rows, us, copy_share }) => [name, rows, us, percent(copy_share)]),
  )
}

function samplingTable(lines) {
  const samplers = latest(lines, 'sample', ({ way, rows }) => `${way} ${rows}`)
  return table(
    ['sampling', 'rows', 'vocabulary', 'us'],
    samplers.map(({ way, rows, vocab, us }) => [way, rows, vocab, us]),
  )
}

function describe(run) {
  const tables = [attentionTable, stepTable, productTable, samplingTable]
  return [...heading(run), ...tables.flatMap((rows) => rows(run.lines)), '']
}

/** Instructions of one trip round the main loops, before 16-bit activations and now, and registers. */
function counts() {
  const root = path.join(__dirname, '..')
  const read = (...name) => JSON.parse(readFileSync(path.join(root, ...name), 'utf8'))
  const [before, now, registers] = [
    read('bench', 'results', 'gpu-loops-before.json'),
    read('cuda', 'loops.json'),
    read('cuda', 'budget.json'),
  ]
  const architectures = Object.keys(Object.values(now)[0]).sort((a, b) => a - b)
  const cells = (kernel) =>
    architectures.map((name) => {
      const [old, present] = [before[kernel]?.[name], now[kernel][name]]
      const change = old === undefined || old === present ? present : `${old} → ${present}`
      return `${change} (${registers[kernel]?.[name]})`
    })
  const rows = (shown) =>
    Object.keys(now)
      .filter((kernel) => shown.test(kernel))
      .sort((a, b) => rowsOf(a) - rowsOf(b))
      .map((kernel) => [rowsOf(kernel), ...cells(kernel)])
  const quantised = (rows) =>
    RECORDS.map(([formats, record]) => [
      formats,
      ...cells(`multiply<Record<${record}>, Tile<${rows}, 128, 1, 8, 128> >`),
    ])
  const heads = architectures.map((name) => `sm_${name}`)
  const builds = Object.values(registers).flatMap((byArchitecture) => Object.values(byArchitecture))
  return [
    'Matrix products, bf16: instructions of a warp for 8 KB of weights, by rows of activations. An arrow: before and since',
    'what a product reads is written in 16 bits by the op before it. In brackets: registers of a thread.',
    ...table(['rows', ...heads], rows(/^multiply<bf16, Tile<\d+, 64,/)),
    '',
    'Quantised products: instructions of a warp for 16 outputs x 128 columns with up to 8 rows, by format; then with 64.',
    ...table(['8 rows', ...heads], quantised(8)),
    ...table(['64 rows', ...heads], quantised(64)),
    '',
    'Attention, bf16, head_dim 128: instructions of a warp for a tile of 32 KB of keys and values, by rows (new tokens x',
    'query heads of a kv head).',
    ...table(['rows', ...heads], rows(/^attend<bf16, Tile<128,/)),
    '',
    'Estimates from these counts, until a card measures them: whatever takes longer, reading at 90 % of the nominal bandwidth',
    '(3.35 and 4.8 TB/s) or issuing 85 % of 4 instructions per clock on 132 multiprocessors at 1.755 GHz; 1 µs for each',
    'kernel behind another, and 4 µs more in attention for turning queries, the first tile and joining what was cut.',
    ...table(['estimated', 'goal', ...Object.keys(CARDS)], estimates(now)),
    '',
    `${builds.length} kernel builds for ${architectures.length} architectures, at most ${Math.max(...builds)} registers, no spills.`,
    '',
  ]
}
const rowsOf = (kernel) =>
  Number(/^multiply<\w+, Tile<(\d+)/.exec(kernel)?.[1] ?? /Tile<\d+, (\d+)>/.exec(kernel)?.[1])

/** What lies alike on the card (cuda/fragments.cuh). */
const RECORDS = [
  ['Q4_0', 'Affine4, (Scales)0, 2'],
  ['Q4_1', 'Affine4, (Scales)1, 2'],
  ['Q4_K', 'Affine4, (Scales)4, 2'],
  ['Q3_K', 'Affine4, (Scales)3, 4'],
  ['Q2_K', 'Affine4, (Scales)4, 4'],
  ['AWQ, GPTQ, groups of 128', 'Affine4, (Scales)5, 1'],
  ['IQ4_NL', 'Table4, (Scales)0, 2'],
  ['IQ4_XS', 'Table4, (Scales)3, 2'],
  ['MXFP4', 'E2M1, (Scales)2, 2'],
  ['Q8_0, Q5_0', 'Signed8, (Scales)0, 2'],
  ['Q5_1', 'Signed8, (Scales)1, 2'],
  ['Q5_K', 'Signed8, (Scales)4, 2'],
  ['Q6_K', 'Signed8, (Scales)3, 4'],
]

const args = process.argv.slice(2)
const option = args.findIndex((argument) => argument.startsWith('--'))
const [mode, file] = option < 0 ? [] : args.splice(option, 2)
const runs = readRuns(args[0] ?? path.join(__dirname, '..', 'bench', 'results', 'gpu'))
const text =
  runs.length === 0
    ? 'Not measured yet: no GPU has run this. `scripts/gpu.sh first` measures it in 300 seconds.\n'
    : runs.flatMap(describe).join('\n')
if (mode === undefined) {
  process.stdout.write(text)
} else {
  const before = readFileSync(file, 'utf8')
  const [first, last] = [before.indexOf(begin), before.indexOf(end)]
  if (first < 0 || last < first)
    throw new Error(`${file}: the lines ${begin} and ${end} are not there`)
  const [firstCount, lastCount] = [before.indexOf(beginCounts), before.indexOf(endCounts)]
  if (firstCount < last || lastCount < firstCount)
    throw new Error(`${file}: the lines ${beginCounts} and ${endCounts} are not there`)
  const after =
    `${before.slice(0, first + begin.length)}\n${text}${before.slice(last, firstCount + beginCounts.length)}\n` +
    `${counts().join('\n')}${before.slice(lastCount)}`
  if (mode === '--write') writeFileSync(file, after)
  else if (after !== before) {
    console.error(
      `${file} is not what the results give: node scripts/gpu-figures.cjs --write ${file}`,
    )
    process.exitCode = 1
  }
}
