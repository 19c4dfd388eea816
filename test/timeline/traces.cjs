// Traces that no model has made: of any size, and of text that means harm.
'use strict'

const WORDS =
  ' the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these two may first then do any like my now over such our man me even most made after also did many off before must well back through years much where your way down should because long each just state people those too mr how little good world make very year still see own work men day get here old between both under last never know same us another while'.split(
    /(?= )/,
  )

/** Of a line with its time. */
const lines = (list) => `${list.map((line) => JSON.stringify(line)).join('\n')}\n`

const head = {
  ...{ trace: 2, began: '2026-01-01T00:00:00.000Z', model: 'ab'.repeat(32) },
  ...{ architecture: 'LlamaForCausalLM', layout: 'combined', share: true },
}

const nameOf = (worker) =>
  ['Alice', 'Bob', 'Carol', 'Dave', 'Erin', 'Frank'][worker] ?? `worker ${worker + 1}`

/** Numbers in [0, 1), the same for the same seed. */
function randomOf(seed) {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

/**
 * A run in the combined layout, with turns, in which everybody writes one token per step.
 *
 * @param {{ workers: number, steps: number, attention?: boolean, turn?: number, seed?: number }} options `turn`: tokens of a
 *   turn, 0: none ends.
 */
function syntheticTrace({ workers, steps, attention = false, turn = 40, seed = 1 }) {
  const random = randomOf(seed)
  const names = Array.from({ length: workers }, (_, worker) => nameOf(worker))
  const prompt = Array.from({ length: 200 }, (_, i) => i)
  const text = prompt.map((id) => WORDS[id % WORDS.length]).join('')
  const out = [
    head,
    { time: 0, op: 'block', name: 'common' },
    { time: 0, op: 'prefill', block: 'common', tokens: prompt, text },
  ]
  for (const name of names) {
    out.push({ time: 5, event: 'join', worker: name, step: 0 })
    out.push({ time: 5, op: 'block', name: `own ${name}` })
  }
  for (const name of names) {
    const others = names.filter((other) => other !== name).map((other) => `own ${other}`)
    out.push({ time: 20, op: 'worker', name, view: ['common', ...others, `own ${name}`] })
  }
  let time = 20
  for (let step = 0; step < steps; step++) {
    const milliseconds = Math.round((6 + 3 * random() + (random() < 0.01 ? 12 : 0)) * 1e3) / 1e3
    time = Math.round((time + milliseconds + random()) * 1e3) / 1e3
    const ids = names.map(() => Math.floor(random() * WORDS.length))
    out.push({
      ...{ time, op: 'step', step, workers: names, inputs: ids.map((id) => [id]) },
      ...{ forced: names.map(() => [step === 0]), texts: ids.map((id) => WORDS[id]) },
      ...(attention && { attention: names.map(() => shares(workers + 1, random)) }),
      milliseconds,
    })
    names.forEach((worker, i) => {
      if (turn === 0 || (step + 1 + 7 * i) % turn !== 0) return
      const source = `own ${worker}`
      const number = Math.floor((step + 1 + 7 * i) / turn)
      out.push({ time, event: 'turn', worker, step, turn: number })
      out.push({ time, op: 'append_from', target: 'common', source, clear_source: true })
    })
  }
  for (const worker of names)
    out.push({ time, event: 'stop', worker, step: steps - 1, reason: 'max-tokens' })
  const usage = {
    promptTokens: 200 + workers,
    reusedTokens: 0,
    completionTokens: workers * (steps - 1),
  }
  out.push({ time, event: 'end', steps, tokens: workers * steps, milliseconds: time, usage })
  return lines(out)
}

function shares(count, random) {
  const weights = Array.from({ length: count }, () => random() ** 3 + 0.01)
  const sum = weights.reduce((one, other) => one + other)
  return weights.map((weight) => Math.round((weight / sum) * 1e6) / 1e6)
}

/** What tokens, names and messages may hold at worst. */
const HOSTILE = [
  '</script><script>document.title = "owned"</script>',
  '<img src=x onerror="document.title=\'owned\'">',
  '<!-- <script>',
  ']]>',
  '\u2028\u2029',
  '\u0000\u0007\u001b[31m\u007f\u0085',
  '\u202e\u2066gnp.exe\u2069',
  '\u200b\ufeff\u{e0041}',
  '\ud800',
  '&lt;b&gt;&quot;',
  '\r\n\ttabs and\nlines',
  '漢字かな',
  'עברית',
  '👩‍👩‍👧',
  `${'long'.repeat(500)}`,
  '$' + '{alert(1)}`\\\\',
  '__proto__',
]

/** A run whose every string is hostile. */
function hostileTrace() {
  const names = HOSTILE.slice(0, 6)
  const out = [
    { ...head, architecture: HOSTILE[0] },
    { time: 0, op: 'block', name: 'common' },
    { time: 0, op: 'prefill', block: 'common', tokens: [1], text: HOSTILE.join(' ') },
  ]
  for (const name of names) {
    out.push({ time: 1, event: 'join', worker: name, step: 0 })
    out.push({ time: 1, op: 'block', name: `own ${name}` })
    out.push({ time: 1, op: 'worker', name, view: ['common', `own ${name}`] })
  }
  HOSTILE.forEach((text, step) => {
    out.push({
      ...{ time: 2 + step, op: 'step', step, workers: names, inputs: names.map(() => [step]) },
      ...{ forced: names.map(() => [false]), texts: names.map(() => text), milliseconds: 1 },
    })
  })
  out.push({ time: 30, event: 'warning', step: 17, code: HOSTILE[1], message: HOSTILE[0] })
  out.push({ time: 30, event: 'pause', worker: names[0], step: 17, parked: { data: HOSTILE[0] } })
  return lines(out)
}

module.exports = { syntheticTrace, hostileTrace, HOSTILE }
