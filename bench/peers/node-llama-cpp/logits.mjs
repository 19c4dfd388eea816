// The logits of node-llama-cpp, teacher-forced; ../../kl.ts starts it with a model's path, token ids and threads as JSON.
// Writes the logits after each token to stdout, [V] in f32.

import { once } from 'node:events'
import { getLlama, LlamaLogLevel } from 'node-llama-cpp'

/** Tokens evaluated at once, so many rows of logits are in memory. */
const PIECE = 50

const { path, tokens, threads } = JSON.parse(process.argv[2])
const llama = await getLlama({
  gpu: false,
  build: 'never',
  maxThreads: threads,
  logLevel: LlamaLogLevel.error,
})
const model = await llama.loadModel({ modelPath: path })
const context = await model.createContext({
  contextSize: tokens.length + 1,
  threads: { ideal: threads, min: threads },
  flashAttention: true,
})
const sequence = context.getSequence()
for (let begin = 0; begin < tokens.length; begin += PIECE) {
  const piece = tokens.slice(begin, begin + PIECE)
  const outputs = await sequence.controlledEvaluate(
    piece.map((token) => [token, { generateNext: { logits: true } }]),
  )
  for (const { next } of outputs) {
    const row = new Float32Array(next.logits.size)
    for (const [token, logit] of next.logits) row[token] = logit
    if (!process.stdout.write(new Uint8Array(row.buffer))) await once(process.stdout, 'drain')
  }
}
// It may still hold what has not been read.
process.stdout.end(() => process.exit(0))
