// A chat with three workers: each message of yours is a problem that they discuss among themselves, paragraph by paragraph,
// until one of them gives an answer or their budget is used up; then the finisher asks for one.
//
//   node examples/chat.mjs MODEL [TOKENS]
//
// MODEL: a folder, a GGUF file or a name of the hub, of a model that follows instructions. TOKENS: what each worker may write
// for one message, default 400.
import { createInterface } from 'node:readline'
import { collaborate, finish, loadModel, loadTokenizer, runWorkers, Transcript } from 'hogwild'

const [name, budget = '400'] = process.argv.slice(2)
if (name === undefined) {
  console.error('usage: node chat.mjs MODEL [TOKENS]')
  process.exit(2)
}
const model = await loadModel(name)
const tokenizer = await loadTokenizer(name)

const TEAM = ['Ann', 'Ben', 'Cleo']
/** What was said so far: questions and answers, not what the workers wrote in between. */
const dialogue = []

const isTerminal = process.stdin.isTTY
const lines = createInterface({
  input: process.stdin,
  output: isTerminal ? process.stdout : undefined,
})
lines.setPrompt('> ')
if (isTerminal) lines.prompt()
for await (const line of lines) {
  if (line.trim() !== '') {
    const answer = await discuss(line)
    console.log(`\n= ${answer ?? 'They have come to no answer.'}\n`)
    dialogue.push(`User: ${line}`, `Answer: ${answer ?? 'none'}`)
  }
  if (isTerminal) lines.prompt()
}
await tokenizer.close()
await model.close()

async function discuss(message) {
  const problem = [...dialogue, dialogue.length > 0 ? `User: ${message}` : message].join('\n\n')
  const team = await collaborate({ tokenizer, problem, workers: TEAM, layout: 'interleaved' })
  // Without samplers of their own all three would begin with the same words.
  const workers = team.run.workers.map((worker, seed) => ({
    ...worker,
    sampler: { temperature: 0.6, topP: 0.95, seed },
  }))
  const run = runWorkers({ model, ...team.run, workers, maxTokens: Number(budget) })
  const transcript = new Transcript(team)
  const paragraphs = new Map(TEAM.map((worker) => [worker, '']))
  const show = (worker) => {
    const text = paragraphs.get(worker).trim()
    if (text !== '') console.log(`\n${text}`)
    paragraphs.set(worker, '')
  }
  for await (const event of run) {
    transcript.push(event)
    if (event.type === 'token') {
      paragraphs.set(event.worker, paragraphs.get(event.worker) + event.text)
    } else if (event.type === 'turn' || event.type === 'stop') {
      show(event.worker)
    }
    if (transcript.answer !== undefined) break
  }
  TEAM.forEach(show)
  const snapshot = transcript.snapshot()
  return (await finish({ model, collaboration: team, snapshot })).answer
}
