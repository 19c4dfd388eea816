// What the schemes share: writers that go on in lock step, and a demonstration on a model.

import { demoModelPath, loadModel, loadTokenizer } from 'hogwild'

/**
 * A writer sees `blocks` (blocks or entries of a view) and writes to the last of them: first the tokens `given`, then what
 * the model chooses, greedily, until `until` says of the tokens written so far that they are all.
 */
export const writer = (blocks, given, until) => ({ blocks, next: given, until })

/** The writer sits out until `work` is done, and goes on with the tokens that this gives, before its own. */
export function park(writer, work) {
  writer.parked = work.then((tokens) => {
    writer.next = [...tokens, ...writer.next]
    writer.parked = undefined
  })
  writer.parked.catch(() => {}) // It is told when nobody writes any more.
  return writer
}

/**
 * Steps of all writers that are not held or parked, until none is left; `betweenSteps` may hold writers and release them.
 * What a writer wrote is in `written`, and in its block up to its last token: others may see it. Returns the number of steps.
 */
export async function writeTogether(model, writers, betweenSteps = () => {}) {
  for (let steps = 0; ; ) {
    const active = writers.filter(({ next, held, parked }) => next.length > 0 && !held && !parked)
    const waiting = writers.flatMap(({ parked }) => parked ?? [])
    if (active.length === 0) {
      if (waiting.length === 0) return steps
      await Promise.race(waiting)
      continue
    }
    const outputs = await model.step(
      active.map(({ blocks, next }) => ({ view: { blocks }, tokens: next })),
    )
    active.forEach((each, i) => {
      each.written = each.written === undefined ? [] : [...each.written, ...each.next]
      each.next = each.until(each.written) ? [] : [outputs[i].token]
    })
    steps++
    await betweenSteps()
  }
}

/** Calls `use` with a cache whose first block holds the prompt, and closes it. */
export async function withPrompt(model, prompt, use) {
  const cache = model.createCache({ capacity: 4096 })
  try {
    const block = cache.createBlock()
    if (prompt.length > 0) await model.prefill(block, prompt, { sampler: null })
    return await use(block, cache)
  } finally {
    await cache.close()
  }
}

/** Ends a text at one of the model's stop tokens, or when it has so many tokens. */
export const atStop = (model, maxTokens) => (tokens) =>
  tokens.length >= maxTokens || model.config.eosTokenIds.includes(tokens.at(-1))

/** Ends a text when it ends with `tag`, across tokens, or has so many tokens. */
export const atTag = (tokenizer, tag, maxTokens) => (tokens) =>
  tokens.length >= maxTokens || tokenizer.decode(tokens, { skipSpecialTokens: false }).endsWith(tag)

/**
 * Where `file` is the program that Node.js runs: prints what the scheme writes on the model named by its argument, by
 * default the demo model.
 */
export function demonstrate(file, scheme) {
  if (!process.argv[1]?.endsWith(file)) return
  const run = async () => {
    const path = process.argv[2] ?? demoModelPath
    const [model, tokenizer] = await Promise.all([loadModel(path), loadTokenizer(path)])
    const encode = (text) => tokenizer.encodeSync(text, { addSpecialTokens: false })
    const { texts, steps } = await scheme({ model, tokenizer, encode })
    for (const [name, tokens] of Object.entries(texts)) {
      console.log(`${name}: ${JSON.stringify(tokenizer.decode(tokens))}`)
    }
    const total = Object.values(texts).reduce((sum, { length }) => sum + length, 0)
    console.log(`${total} tokens in ${steps} steps`)
    await model.close()
    await tokenizer.close()
  }
  run().catch((error) => {
    console.error(error)
    process.exitCode = 1
  })
}
