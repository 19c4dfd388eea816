// Estimates of the goals of docs/performance.md, from the instructions that cuda/loops.json counts: how long it takes to read
// what is read, or to issue what is issued, and what each kernel costs beside. Until a card measures them.
'use strict'

/** Architecture, and bytes per second of its memory by its data sheet. */
const CARDS = {
  H100: { architecture: 90, nominal: 3.35e12 },
  H200: { architecture: 90, nominal: 4.8e12 },
}
/** Of both: multiprocessors, clocks per second. */
const [MULTIPROCESSORS, CLOCK] = [132, 1.755e9]
/** Reached: of the nominal bandwidth, by a copy; of four instructions per clock and multiprocessor. */
const [COPY_SHARE, ISSUE_SHARE] = [0.9, 0.85]
/** Seconds: a kernel behind another, and what attention takes more (queries, the first tile, joining what was cut). */
const [KERNEL, ATTENTION] = [1e-6, 4e-6]

const ROW_BYTES = 2 * 128
const TILE_KEYS = 64
/** The attention of the goals, and the shape of Qwen2.5-7B. */
const HEADS = { kvHeads: 4, cached: 65536 }
const MODEL = {
  layers: 28,
  hidden: 3584,
  intermediate: 18944,
  vocab: 152064,
  queryHeads: 28,
  kvHeads: 4,
}

const quantised = (record, bytes) => ({
  kernel: `multiply<Record<${record}>, Tile<8, 128, 1, 8, 128> >`,
  warps: 1,
  tripBytes: 2 * bytes,
  bytesPerWeight: bytes / 1024,
})
const FORMATS = {
  bf16: {
    kernel: 'multiply<bf16, Tile<8, 64, 1, 4, 64> >',
    warps: 4,
    tripBytes: 8192,
    bytesPerWeight: 2,
  },
  Q4_0: quantised('Affine4, (Scales)0, 2', 576),
  Q4_K: quantised('Affine4, (Scales)4, 2', 640),
  Q8_0: quantised('Signed8, (Scales)0, 2', 1088),
}

const copySeconds = ({ nominal }, bytes) => bytes / (nominal * COPY_SHARE)

/** `instructions`: of all warps that work on one trip of `tripBytes`. */
function streamSeconds(card, bytes, tripBytes, instructions) {
  const issue = ((bytes / tripBytes) * instructions) / (MULTIPROCESSORS * 4 * CLOCK * ISSUE_SHARE)
  return Math.max(copySeconds(card, bytes), issue)
}

function productSeconds(counts, card, { kernel, warps, tripBytes }, bytes) {
  return streamSeconds(card, bytes, tripBytes, warps * counts[kernel][card.architecture])
}

const cachedBytes = (kvHeads, tokens) => tokens * kvHeads * 2 * ROW_BYTES

/** Its two kernels; `rows`: per row tile. */
function attentionSeconds(counts, card, { kvHeads, tokens, rows }) {
  const instructions = 4 * counts[`attend<bf16, Tile<128, ${rows}> >`][card.architecture]
  const bytes = cachedBytes(kvHeads, tokens)
  return (
    2 * KERNEL + ATTENTION + streamSeconds(card, bytes, TILE_KEYS * 2 * ROW_BYTES, instructions)
  )
}

/** A whole step of one worker behind so many tokens, over the time to copy its bytes. */
function stepOverCopy(counts, card, format, tokens) {
  const { layers, hidden, intermediate, vocab, queryHeads, kvHeads } = MODEL
  const ofLayer = hidden * (2 * (queryHeads + kvHeads) * 128 + 3 * intermediate)
  const weights = (layers * ofLayer + vocab * hidden) * format.bytesPerWeight
  const attention = attentionSeconds(counts, card, { kvHeads, tokens, rows: 16 })
  const seconds = layers * (7 * KERNEL + attention) + productSeconds(counts, card, format, weights)
  return seconds / copySeconds(card, weights + layers * cachedBytes(kvHeads, tokens))
}

/** Rows of a table: what, its goal, and the estimate for each card. */
function estimates(counts) {
  const row = (what, goal, estimate) => [what, goal, ...Object.values(CARDS).map(estimate)]
  const percent = (share) => `${Math.round(100 * share)} %`
  const { kvHeads, cached } = HEADS
  const attention = (card, tokens, rows) =>
    attentionSeconds(counts, card, { kvHeads, tokens, rows })
  const microseconds = (tokens) => (card) => `${(1e6 * attention(card, tokens, 16)).toFixed(1)} µs`
  const shareOfCopy = (rows) => (card) =>
    percent(copySeconds(card, cachedBytes(kvHeads, cached)) / attention(card, cached, rows))
  const product = (name) => (card) =>
    percent(copySeconds(card, 1) / productSeconds(counts, card, FORMATS[name], 1))
  const step = (name) => (card) => `${stepOverCopy(counts, card, FORMATS[name], 4096).toFixed(2)} x`
  return [
    row(
      'attention of one layer, 32/4 heads of 128, 1k cached tokens',
      '≤ 7 µs',
      microseconds(1024),
    ),
    row('the same at 16k', '≤ 26 µs', microseconds(16384)),
    row('at 64k, 1 worker, of copy bandwidth', '≥ 90 %', shareOfCopy(16)),
    row('at 64k, 4 workers, of copy bandwidth', '≥ 90 %', shareOfCopy(32)),
    row('products of up to 8 rows in Q4_0, of copy bandwidth', '≥ 60 %', product('Q4_0')),
    row('in Q4_K', '≥ 60 %', product('Q4_K')),
    row('in Q8_0', '≥ 60 %', product('Q8_0')),
    row(
      'a step of a 7 B shape, 4k cached, bf16, over bytes / copy bandwidth',
      '≤ 1.1 x',
      step('bf16'),
    ),
    row('in Q8_0', '', step('Q8_0')),
    row('in Q4_K', '≤ 1.67 x', step('Q4_K')),
  ]
}

module.exports = { CARDS, estimates }
