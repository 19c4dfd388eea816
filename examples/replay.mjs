// An experiment on a run that is replayed: what does a worker owe to the others? Two workers write, and a trace of their run is
// kept. Then the trace is computed again, once as it was and once with Bob's view cut down: he no longer sees Alice. The tokens
// are those of the run both times, so that each step shows what he would have chosen next at that very place.
//
//   node examples/replay.mjs [MODEL]
//
// MODEL: a folder or a GGUF file, by default that of the demo, with which it is told for the demo's task.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { demoModelPath, loadModel, loadTokenizer, runWorkers } from 'hogwild'

const path = process.argv[2] ?? demoModelPath
const folder = mkdtempSync(join(tmpdir(), 'hogwild-replay-'))
const trace = join(folder, 'run.jsonl')

// ---- the run

const model = await loadModel(path)
const tokenizer = await loadTokenizer(path)
const encode = (text) => tokenizer.encodeSync(text, { addSpecialTokens: false })
const run = runWorkers({
  model,
  tokenizer,
  layout: 'contiguous',
  prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\nD:thgil\nE:krow\n'),
  workers: ['Alice', 'Bob'].map((name) => ({ name, prompt: encode(name) })),
  maxTokens: 60,
  trace,
})
for await (const _ of run); // the trace has it all
await model.close()

// ---- twice again

/** The command `hogwild replay`: a line of JSON for each step, with each worker's most likely next token. */
function replay(script) {
  const hogwild = dirname(createRequire(import.meta.url).resolve('hogwild/package.json'))
  const main = join(hogwild, 'dist', 'cli', 'main.js')
  const lines = execFileSync(process.execPath, [main, 'replay', script, '--model', path], {
    encoding: 'utf8',
  })
  return lines
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
}

/** A trace is a script of ops, one in each line; what Bob sees is the op that defines him. */
const alone = join(folder, 'alone.jsonl')
const ops = readFileSync(trace, 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line))
const changed = ops.map((op) =>
  op.op === 'worker' && op.name === 'Bob'
    ? { ...op, view: op.view.filter((block) => block !== 'own Alice') }
    : op,
)
writeFileSync(alone, changed.map((op) => `${JSON.stringify(op)}\n`).join(''))

const [before, after] = [replay(trace), replay(alone)]
rmSync(folder, { recursive: true })

// ---- what differs

const steps = before.flatMap((result, i) => {
  const at = ops[result.op]?.workers?.indexOf('Bob') ?? -1
  return at < 0 ? [] : [{ with: result.argmax[at], without: after[i].argmax[at] }]
})
const differ = steps.filter((step) => step.with !== step.without)
console.log(`Bob would have gone on otherwise in ${differ.length} of ${steps.length} steps:`)
for (const step of differ.slice(0, 5)) {
  const [seen, unseen] = [step.with, step.without].map((id) =>
    JSON.stringify(tokenizer.decode([id])),
  )
  console.log(`  with Alice in sight ${seen}, alone ${unseen}`)
}
await tokenizer.close()
