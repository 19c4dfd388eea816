#!/usr/bin/env node
// The tables of a GPU's speed, as Markdown, from the JSON lines of scripts/gpu.sh.
//
//   node scripts/gpu-figures.cjs [FOLDER] [--write FILE | --check FILE]
//
// FOLDER: default bench/results/gpu; of each card the file with the latest date counts. --write puts the tables
// between the lines <!-- gpu:begin --> and <!-- gpu:end --> of FILE; --check fails where they are not there so.
'use strict'
const { existsSync, readdirSync, readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')

const [begin, end] = ['<!-- gpu:begin -->', '<!-- gpu:end -->']

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

function describe({ about, lines }) {
  // Where a stage was run again, its later lines count.
  const of = (part, key) => {
    const found = new Map()
    for (const line of lines)
      if (line.part === part && line.us !== undefined) found.set(key(line), line)
    return [...found.values()]
  }
  const shape = ({ heads, head_dim = 128, tokens, workers }) =>
    `${heads} of ${head_dim}, ${tokens}, ${workers}`
  const torch = new Map(
    lines
      .filter(({ part, op, us }) => part === 'torch' && op === 'attention' && us)
      .map((line) => [shape(line), line.us]),
  )
  const copy = lines.findLast(({ part, copy_gb_s }) => part === 'card' && copy_gb_s !== undefined)
  const steps = new Map()
  for (const line of lines) {
    if (line.part === 'steps' && line.ms !== undefined)
      steps.set(`${line.model} ${line.tokens} ${line.workers}`, line)
  }
  const failed = new Map()
  for (const { stage, rc } of lines)
    if (rc !== undefined && !stage.includes(':')) failed.set(stage, rc)
  const stages = [...failed].map(([stage, rc]) =>
    rc === 0 ? stage : `**${stage} (exit code ${rc})**`,
  )
  return [
    `### ${about.card}`,
    '',
    `${about.date.slice(0, 10)}, commit ${about.commit}, driver ${about.driver}, clocks ${about.clocks}.` +
      (copy === undefined ? '' : ` Copies ${copy.copy_gb_s} GB/s, reads ${copy.read_gb_s} GB/s.`) +
      ` Stages: ${stages.join(', ') || 'none'}.`,
    ...table(
      [
        'heads',
        'cached tokens',
        'workers',
        'us per layer',
        'of copy bandwidth',
        'over one worker',
        'one pass per worker, us',
        'PyTorch, us',
      ],
      of('attention', shape).map((line) => [
        `${line.heads} of ${line.head_dim}`,
        line.tokens,
        line.workers,
        line.us,
        percent(line.copy_share),
        line.over_one,
        line.pass_per_worker_us,
        torch.get(shape(line)) ?? '',
      ]),
    ),
    ...table(
      [
        'whole step',
        'layers',
        'cached tokens',
        'workers',
        'ms',
        'time over bytes / copy bandwidth',
      ],
      [...steps.values()].map((line) => [
        line.model,
        `${line.layers} of ${line.of}`,
        line.tokens,
        line.workers,
        line.ms,
        line.time_over_bytes_at_copy_bandwidth,
      ]),
    ),
    ...table(
      ['matrix product', 'rows', 'us', 'of copy bandwidth'],
      of('matmul', ({ name, rows }) => `${name} ${rows}`).map(({ name, rows, us, copy_share }) => [
        name,
        rows,
        us,
        percent(copy_share),
      ]),
    ),
    ...table(
      ['sampling', 'rows', 'vocabulary', 'us'],
      of('sample', ({ way, rows }) => `${way} ${rows}`).map(({ way, rows, vocab, us }) => [
        way,
        rows,
        vocab,
        us,
      ]),
    ),
    '',
  ]
}

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
  const after = `${before.slice(0, first + begin.length)}\n${text}${before.slice(last)}`
  if (mode === '--write') writeFileSync(file, after)
  else if (after !== before) {
    console.error(
      `${file} is not what the results give: node scripts/gpu-figures.cjs --write ${file}`,
    )
    process.exitCode = 1
  }
}
