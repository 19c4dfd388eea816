#!/usr/bin/env node
// Fills the part of README.md between the `measured` markers from bench/results/*.json.
//
//   node scripts/readme-figures.cjs [--check]
//
// --check: changes nothing and fails where README.md is not in step with the results.
'use strict'
const { existsSync, readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')

const root = path.join(__dirname, '..')
const readme = path.join(root, 'README.md')
const [BEGIN, END] = ['<!-- measured:begin -->', '<!-- measured:end -->']

function result(name) {
  const file = path.join(root, 'bench', 'results', `${name}.json`)
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined
}

function table(header, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`
  const rule = header.map((_, column) => (column === 0 ? '---' : '--:'))
  return [line(header), line(rule), ...rows.map(line)].join('\n')
}

const percent = (share) => `${Math.round(100 * share)} %`
const workersOf = (count) => (count === 1 ? '1 worker' : `${count} workers`)

function peers(report) {
  const counts = Object.keys(report.decode_ratio).map(Number)
  const { version } = report.engines['node-llama-cpp']
  const own = (count) =>
    report.runs.find((run) => run.engine === 'hogwild' && run.workers === count)
  const best = (count, figure) =>
    report.runs
      .filter((run) => run.engine !== 'hogwild' && run.workers === count)
      .map((run) => run[figure].median)
      .reduce((one, other) => Math.max(one, other))
  const { machine } = report
  const step = (count) => own(count).step_ms.median
  const rows = [
    ['hogwild, tokens/s', ...counts.map((count) => own(count).decode_tokens_per_s.median)],
    [
      `node-llama-cpp ${version}, tokens/s`,
      ...counts.map((count) => best(count, 'decode_tokens_per_s')),
    ],
    ['ratio', ...counts.map((count) => `${report.decode_ratio[count].toFixed(2)} ×`)],
    ['a step of hogwild, ms', ...counts.map((count) => step(count).toFixed(1))],
  ]
  return [
    `Decoding with a ${report.model}: ${report.threads} threads of ${machine.processor}, ` +
      `${machine.date}. Both engines compute the same logits from the same weights and take turns in one ` +
      `run of \`npm run bench:peers\` (${report.rounds === 1 ? 'one round' : `medians of ${report.rounds} rounds`}; [every sample]` +
      '(bench/results/peers-cpu.json)). hogwild: workers that share a prompt and see each other; ' +
      'node-llama-cpp: as many independent sequences in a batch, flash attention on or off, whichever is faster.',
    '![Tokens per second of both engines](bench/results/peers-cpu.svg)',
    table(['', ...counts.map(workersOf)], rows),
    `Prefill of ${report.prompt} tokens: ${report.prefill_ratio.toFixed(2)} × as fast. One worker reads ` +
      `weights and cache at ${percent(report.read_share)} of the machine's read bandwidth ` +
      `(${report.read_gb_per_s.median} GB/s in the same run). Peak memory: weights, cache and ` +
      `${report.memory_overhead_mb} MB.`,
  ]
}

function attention(report) {
  const tokens = [...new Set(report.runs.map((run) => run.cached_tokens))]
  const counts = [1, 4]
  const shapes = [...new Set(report.runs.map((run) => run.shape))]
  const rows = shapes.flatMap((shape) =>
    counts.map((workers) => [
      `${shape}, ${workersOf(workers)}`,
      ...tokens.map((length) => {
        const run = report.runs.find(
          (one) => one.shape === shape && one.workers === workers && one.cached_tokens === length,
        )
        return `${run.ms.median.toFixed(2)} ms, ${percent(run.read_share)}`
      }),
    ]),
  )
  return [
    `Attention alone, one layer, ${report.dtype} cache, ${report.threads} threads (\`npm run bench:attention\`): ` +
      'time, and bytes of keys and values per second as a share of the read bandwidth. 7/8 of the cached ' +
      'tokens are shared, the rest is what the workers have written; everyone sees all.',
    table(['cached tokens', ...tokens.map((length) => `${length / 1024}k`)], rows),
  ]
}

function bench(report) {
  const { runs, model, dtype, prompt, generate, processor, threads, simd, date } = report
  const rows = [
    ['a step, ms', ...runs.map((run) => run.step_ms.toFixed(1))],
    ['a step / that of one worker', ...runs.map((run) => run.step_over_one.toFixed(2))],
    ['tokens/s', ...runs.map((run) => run.decode_tokens_per_s.toFixed(0))],
    ['share of read bandwidth', ...runs.map((run) => percent(run.read_share))],
    ['prefill, tokens/s', ...runs.map((run) => run.prefill_tokens_per_s.toFixed(0))],
  ]
  return [
    `A ${model}, ${dtype}, workers that share a prompt of ${prompt} tokens and write ${generate} each: ` +
      `${processor}, ${threads} threads, ${simd}, ${date}, \`npm run bench -- --workers ` +
      `${runs.map((run) => run.workers).join(',')} --threads ${threads}\` (medians). Read bandwidth, measured ` +
      `in the same run: ${report.read_gb_per_s} GB/s.`,
    table(['', ...runs.map((run) => workersOf(run.workers))], rows),
  ]
}

const sections = [
  ['bench-cpu', bench],
  ['peers-cpu', peers],
  ['attention-cpu', attention],
].flatMap(([name, write]) => {
  const report = result(name)
  return report === undefined ? [] : write(report)
})

const text = readFileSync(readme, 'utf8')
const [begin, end] = [text.indexOf(BEGIN), text.indexOf(END)]
if (begin < 0 || end < begin) {
  console.error(`README.md: no ${BEGIN} ... ${END}`)
  process.exit(1)
}
const generated = ['', ...sections, ''].join('\n\n').slice(1, -1)
const filled = text.slice(0, begin + BEGIN.length) + generated + text.slice(end)
if (process.argv.includes('--check')) {
  if (filled !== text) {
    console.error('README.md is not in step with bench/results: run `npm run readme:figures`')
    process.exit(1)
  }
} else {
  writeFileSync(readme, filled)
}
