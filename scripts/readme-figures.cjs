#!/usr/bin/env node
// Fills the parts between the `measured` markers: of README.md (what comes first) and docs/performance.md (all of them, with
// the plots) from bench/results, of docs/experiments.md and the card of models/graph from examples/experiments/graph.results.
//
//   node scripts/readme-figures.cjs [--check]
//
// --check: changes nothing and fails where a document is not in step with the results.
'use strict'
const { existsSync, readdirSync, readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')

const root = path.join(__dirname, '..')
const [BEGIN, END] = ['<!-- measured:begin -->', '<!-- measured:end -->']
/** Results of bench:peers, the one that the README shows first. */
const PEERS = ['peers-0.6b', 'peers-0.6b-avx2', 'peers-135m', 'peers-SmolLM2-135M-Instruct.Q4_1']
/** A result of bench:hooks. */
const HOOKS = 'hooks-SmolLM2-135M-Instruct.Q4_1'
/** Results of bench:kl. */
const ROUNDING = ['kl-random', 'kl-SmolLM2-135M-Instruct.Q4_1']

function result(name) {
  const file = path.join(root, 'bench', 'results', `${name}.json`)
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined
}

function table(header, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`
  const rule = header.map((_, column) => (column === 0 ? '---' : '--:'))
  return [line(header), line(rule), ...rows.map(line)].join('\n')
}

const isFile = (model) => model.endsWith('.gguf')
const percent = (share) => `${Math.round(100 * share)} %`
const workersOf = (count) => (count === 1 ? '1 worker' : `${count} workers`)

const FORMAT_NAMES = { bf16: 'BF16', q8_0: 'Q8_0', q4_0: 'Q4_0', q4_1: 'Q4_1', q4_k: 'Q4_K' }

function peers(report, name, folder) {
  const { machine, formats } = report
  const counts = Object.keys(formats[0].decode_ratio).map(Number)
  const { version } = report.engines['node-llama-cpp']
  const rate = (runs, isOurs, count) =>
    runs
      .filter((run) => (run.engine === 'hogwild') === isOurs && run.workers === count)
      .map((run) => run.decode_tokens_per_s.median)
      .reduce((one, other) => Math.max(one, other))
  const load = (runs, isOurs) =>
    Math.min(
      ...runs
        .filter((run) => (run.engine === 'hogwild') === isOurs)
        .map((run) => run.load_s.median),
    )
  const list = (figures) => figures.join(' / ')
  const rows = formats.map((one) => [
    FORMAT_NAMES[one.format] ?? one.format,
    list(counts.map((count) => Math.round(rate(one.runs, true, count)))),
    list(counts.map((count) => Math.round(rate(one.runs, false, count)))),
    list(counts.map((count) => one.decode_ratio[count].toFixed(1))),
    one.prefill_ratio.toFixed(1),
    percent(one.read_share),
    one.step_4_over_1.toFixed(2),
    `${load(one.runs, true).toFixed(2)} / ${load(one.runs, false).toFixed(2)}`,
  ])
  const bandwidths = formats.flatMap((one) => one.bandwidth_gb_per_s)
  const workers = list(counts)
  return [
    `Decoding with ${isFile(report.model) ? '' : 'a '}${report.model} beside node-llama-cpp ${version}: ${report.threads} threads of ` +
      `${machine.processor} (${report.simd}), ${machine.date}, \`${report.command}\`. Both engines read the same file and ` +
      `take turns (medians of ${report.rounds} rounds; [every sample](${folder}bench/results/${name}.json)). hogwild: workers ` +
      'that share a prompt and see each other; node-llama-cpp: as many independent sequences in a batch, flash attention on ' +
      `or off, whichever is faster. Read bandwidth meanwhile: ${Math.min(...bandwidths)} to ${Math.max(...bandwidths)} GB/s.`,
    table(
      [
        'format',
        `hogwild, tokens/s with ${workers} workers`,
        'node-llama-cpp',
        'ratio',
        `prefill of ${report.prompt}, ratio`,
        'read bandwidth used by 1 worker',
        'a step of 4 / of 1',
        'load, s (ours / theirs)',
      ],
      rows,
    ),
  ]
}

function attention(report, name, folder) {
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
    `Attention alone, one layer, ${report.dtype} cache, ${report.threads} threads (\`npm run bench:attention\`, ` +
      `[result](${folder}bench/results/${name}.json)): ` +
      'time, and bytes of keys and values per second as a share of the read bandwidth. 7/8 of the cached ' +
      'tokens are shared, the rest is what the workers have written; everyone sees all.',
    table(['cached tokens', ...tokens.map((length) => `${length / 1024}k`)], rows),
  ]
}

const nameOf = (run) => `${run.shape}, ${workersOf(run.workers)}`

/** An int8 cache beside the bf16 cache of the same run. */
function attentionOfInt8(report, name, folder) {
  const { runs } = result('attention-cpu')
  const tokens = [...new Set(report.runs.map((run) => run.cached_tokens))]
  const names = [...new Set(report.runs.map(nameOf))]
  const ratio = (one) => {
    const same = (run) =>
      ['shape', 'workers', 'cached_tokens'].every((field) => run[field] === one[field])
    return (runs.find(same).ms.median / one.ms.median).toFixed(2)
  }
  return [
    'An int8 cache in turn with that bf16 cache, time of bf16 / time of int8 ' +
      `([result](${folder}bench/results/${name}.json)):`,
    table(
      ['cached tokens', ...tokens.map((length) => `${length / 1024}k`)],
      names.map((row) => [row, ...report.runs.filter((run) => nameOf(run) === row).map(ratio)]),
    ),
  ]
}

function bench(report, name, folder) {
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
      `${runs.map((run) => run.workers).join(',')} --threads ${threads}\` (medians, [result](${folder}bench/results/${name}.json)). Read bandwidth, measured ` +
      `in the same run: ${report.read_gb_per_s} GB/s.`,
    table(['', ...runs.map((run) => workersOf(run.workers))], rows),
  ]
}

/** Powers of ten with two digits. */
const small = (number) => number.toExponential(1).replace('+', '')
const times = (ratio) => `${ratio < 10 ? ratio.toFixed(1) : Math.round(ratio)} x`

function rounding(report, name, folder) {
  const { runs, peer_run, peer, model, tokens, simd, machine, command } = report
  const byDefault = runs.find(({ cache }) => cache === 'f16')
  const rows = runs.map(({ cache, mean_kl, perplexity }) => [
    cache === 'f16' ? 'f16 (default of quantised models)' : cache,
    small(mean_kl),
    perplexity.toFixed(3),
  ])
  return [
    `The same on a real file, with a cache of each dtype: ${model}, over ${tokens} tokens of this ` +
      `repository's prose and code, ${simd}, ${machine.date}, \`${command}\` ` +
      `([result](${folder}bench/results/${name}.json)). The reference is the float32 run of the dequantised weights; its ` +
      `perplexity is ${report.reference_perplexity.toFixed(3)}. ${peer}, on the same file and tokens in the same run, is ` +
      `${times(peer_run.mean_kl / byDefault.mean_kl)} as far from it as the default.`,
    table(
      ['cache', 'mean KL(reference, model), nats', 'perplexity'],
      [...rows, [`${peer}, f16`, small(peer_run.mean_kl), peer_run.perplexity.toFixed(3)]],
    ),
  ]
}

function roundingByFormat(report, name, folder) {
  const { runs, peer, model, tokens, simd, machine } = report
  const rows = runs.map(({ format, mean_kl, peer_mean_kl, argmax }) => [
    format,
    small(mean_kl),
    small(peer_mean_kl),
    times(peer_mean_kl / mean_kl),
    `${argmax.equal} of ${argmax.compared}`,
  ])
  return [
    '### Rounding',
    `What storage formats cost: a ${model} in each, teacher-forced over ${tokens} tokens with the default cache, beside the ` +
      `float32 run of the dequantised weights (${simd}, ${machine.date}, \`npm run bench:kl\`, ` +
      `[result](${folder}bench/results/${name}.json)); and at how many of the tokens at which ${peer}'s first choice leads ` +
      `by more than ${runs[0].argmax.margin} it is ours too.`,
    table(['format', 'mean KL, nats', `${peer}`, 'ratio', 'same first choice'], rows),
  ]
}

/** The plots of a result (npm run plots). */
function plots(name, folder) {
  const drawn = path.join(root, 'bench', 'results', 'plots')
  return readdirSync(drawn)
    .filter((file) => file.endsWith('.svg'))
    .filter((file) => file === `${name}.svg` || file.startsWith(`${name}.`))
    .map((file) => {
      const spec = readFileSync(path.join(drawn, file.replace(/svg$/, 'vl.json')), 'utf8')
      const { text, subtitle } = JSON.parse(spec).title
      return `![${text}: ${subtitle.join(', ')}](${folder}bench/results/plots/${file})`
    })
    .join('\n')
}

function groups(report, name, folder) {
  const { throughput, latency, model, dtype, simd, threads, machine, command } = report
  const { groups: count, workers, prompt } = report
  const { step_ms_alone: alone, step_with_chunk_ms: withChunk, wait_ms: wait } = latency
  const each = ({ median, min, max }, digits) =>
    [median, min, max].map((figure) => figure.toFixed(digits))
  return [
    '### Groups',
    `A ${model}, ${dtype}, ${threads} threads of ${machine.processor} (${simd}), ${machine.date}, \`${command}\` ` +
      `([result](${folder}bench/results/${name}.json)). ${count} groups of ${workers} workers with a prompt of ${prompt} tokens, ` +
      `together on one scheduler and one group after another` +
      `${throughput.every((row) => row.same_tokens) ? ': with the same tokens' : ''}. Medians; tokens/s are those that workers write.`,
    table(
      ['tokens of each worker', 'together', 'one after another', 'times as fast'],
      throughput.map((row) => [
        `${row.generate}`,
        `${row.together_seconds.median.toFixed(1)} s, ${row.together_tokens_per_s.toFixed(0)} tokens/s`,
        `${row.apart_seconds.median.toFixed(1)} s, ${row.apart_tokens_per_s.toFixed(0)} tokens/s`,
        row.times_as_fast.toFixed(2),
      ]),
    ),
    `Then one group writes while a prompt of ${latency.prompt} tokens is computed beside it, ${latency.chunk} tokens in a step: ` +
      'its next token comes with the step that brings the chunk.',
    table(
      ['', 'median', 'least', 'most'],
      [
        ['a step of the group alone, ms', ...each(alone, 1)],
        ['a step with a chunk beside it, ms', ...each(withChunk, 1)],
        ['wait for its next token meanwhile, ms', ...each(wait, 1)],
      ],
    ),
  ]
}

function hooks(report, name, folder) {
  const { runs, parked, model, workers, prompt, rounds, simd, threads, machine, command } = report
  const rows = runs.map(({ hook, step_ms, over_none }) => [
    hook,
    step_ms.median.toFixed(2),
    over_none.toFixed(3),
  ])
  return [
    '### Hooks',
    `What each hook costs in a step of ${workers} workers that see each other behind ${prompt} tokens: ${model}, ${threads === 1 ? '1 thread, so that a processor is left for JavaScript,' : `${threads} threads`} ` +
      `of ${machine.processor} (${simd}), ${machine.date}, medians of ${rounds} rounds in turn, ratios within a round, \`${command}\` ` +
      `([result](${folder}bench/results/${name}.json)). The grammar's tokens are those of long JSON strings.`,
    table(['hook', 'a step, ms', 'over none'], rows),
    `Beside a parked worker ${parked.active} others write ${parked.with_over_without} of the tokens per second that they write ` +
      `without it (${parked.with_tokens_per_s.median} and ${parked.without_tokens_per_s.median}, medians of ` +
      `${parked.rounds} runs each, in turn).`,
  ]
}

function sessions(report, name, folder) {
  const { tokens, bytes, run_bytes, machine, command } = report
  const row = (what, size, { median, min, max }) => [
    what,
    `${(size / 1e6).toFixed(0)} MB`,
    ...[median, min, max].map((figure) => figure.toFixed(2)),
  ]
  return [
    '### Sessions',
    `${tokens} tokens of the shape of SmolLM2-135M, bf16, to a file and back, GB/s: ${machine.processor}, ${machine.date}, ` +
      `\`${command}\` ([result](${folder}bench/results/${name}.json)). The disk, written in the same run without a hash, is the ` +
      'last row.',
    table(
      ['', 'file', 'median', 'least', 'most'],
      [
        row('blocks: `cache.export`', bytes, report.save_gb_per_s),
        row('blocks: `cache.import`', bytes, report.load_gb_per_s),
        row('a run: `run.save`', run_bytes, report.run_save_gb_per_s),
        row('a run: `restoreRun`', run_bytes, report.run_restore_gb_per_s),
        row('the disk alone, writing', bytes, report.disk_write_gb_per_s),
      ],
    ),
  ]
}

/** What a document shows, from the results that are there. */
function sections(names, folder, withPlots) {
  const write = (name) => (name.startsWith('peers-') ? peers : (WRITERS[name] ?? rounding))
  return names.flatMap((name) => {
    const report = result(name)
    if (report === undefined) return []
    const drawn = withPlots ? plots(name, folder) : ''
    return [...write(name)(report, name, folder), ...(drawn === '' ? [] : [drawn])]
  })
}

const WRITERS = {
  'bench-cpu': bench,
  'attention-cpu': attention,
  'attention-cpu-int8': attentionOfInt8,
  'kl-random': roundingByFormat,
  [HOOKS]: hooks,
  groups,
  sessions,
}

const LAYOUTS = ['contiguous', 'combined', 'interleaved']

/** Dependent work: what the committed experiment came to, at its largest budget. */
function dependentWork() {
  const folder = path.join(root, 'examples', 'experiments', 'graph.results')
  if (!existsSync(folder)) return []
  const { rows } = JSON.parse(readFileSync(path.join(folder, 'summary.json'), 'utf8'))
  const last = Math.max(...rows.map(({ budget }) => budget))
  const final = rows.filter(({ budget }) => budget === last)
  const alone = final.find(({ workers }) => workers === 1)
  const places = [null, ...LAYOUTS]
  const inOrder = final.toSorted(
    (one, other) =>
      one.workers - other.workers || places.indexOf(one.layout) - places.indexOf(other.layout),
  )
  const share = (number) => `${(100 * number).toFixed(1)} %`
  return [
    table(
      ['', 'steps', 'speed-up', 'of ideal', 'tokens', 'waits', 'yields', 'done twice', 'right'],
      inOrder.map(({ workers, layout, steps, tokens, accuracy, metrics }) => [
        `${workersOf(workers)}${workers === 1 ? '' : `, ${layout ?? 'not shared, by vote'}`}`,
        steps.toFixed(1),
        workers === 1 ? '' : `${(alone.steps / steps).toFixed(2)}x`,
        metrics.ofIdeal.toFixed(3),
        tokens.toFixed(0),
        metrics.waits.toFixed(1),
        metrics.yields.toFixed(2),
        share(metrics.twice),
        share(accuracy),
      ]),
    ),
  ]
}

function fill(file, parts) {
  const document = path.join(root, file)
  const text = readFileSync(document, 'utf8')
  const [begin, end] = [text.indexOf(BEGIN), text.indexOf(END)]
  if (begin < 0 || end < begin) {
    console.error(`${file}: no ${BEGIN} ... ${END}`)
    process.exit(1)
  }
  const generated = ['', ...parts, ''].join('\n\n').slice(1, -1)
  const filled = text.slice(0, begin + BEGIN.length) + generated + text.slice(end)
  if (!process.argv.includes('--check')) {
    writeFileSync(document, filled)
  } else if (filled !== text) {
    console.error(`${file} is not in step with the results: run \`npm run readme:figures\``)
    process.exit(1)
  }
}

fill('README.md', sections(['bench-cpu', ...PEERS.slice(0, 1)], '', false))
const attentions = ['attention-cpu', 'attention-cpu-int8']
fill(
  'docs/performance.md',
  sections(
    ['bench-cpu', ...PEERS, ...attentions, ...ROUNDING, 'groups', HOOKS, 'sessions'],
    '../',
    true,
  ),
)
fill('docs/experiments.md', dependentWork())
fill('models/graph/README.md', dependentWork())
