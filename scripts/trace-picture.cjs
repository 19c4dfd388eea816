#!/usr/bin/env node
// Takes docs/trace-view.png, the picture in docs/trace-view.md: the page of a run of the demo's model, in which workers share
// the words of a sentence, one of them waits, one branches off. Needs the built package and Chromium (scripts/chromium.cjs).
//
//   node scripts/trace-picture.cjs [--trace FILE.jsonl]
//
// --trace: also writes the run's trace there.
'use strict'
const { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { withPage } = require('./chromium.cjs')

const root = path.join(__dirname, '..')
const { demoModelPath, loadModel, loadTokenizer, runWorkers, traceToHtml } = require(
  path.join(root, 'dist', 'index.js'),
)
const { createTask, HALT, parseSentence, WORKER_NAMES } = require(
  path.join(root, 'dist', 'cli', 'demo', 'task.js'),
)

const SENTENCE = 'many hands make light work when they see at once what is done already'

/** Writes a trace. */
async function traceTo(trace) {
  const model = await loadModel(demoModelPath, { device: 'cpu', threads: 1 })
  const tokenizer = await loadTokenizer(demoModelPath)
  const encode = (text) => tokenizer.encodeSync(text, { addSpecialTokens: false })
  const worker = (name) => ({ name, prompt: encode(name), attentionMass: true })
  const run = runWorkers({
    ...{ model, tokenizer, trace, layout: 'contiguous', maxTokens: 400, capacity: 4096 },
    prompt: encode(createTask(parseSentence(SENTENCE)).prompt),
    workers: WORKER_NAMES.slice(0, 3).map(worker),
    stopTokens: encode(HALT),
  })
  for await (const event of run) {
    if (event.type !== 'step') continue
    if (event.step === 5)
      run.park('Bob', () => new Promise((done) => setTimeout(done, 15, [])), { data: 'look-up' })
    if (event.step === 3) run.join(worker('Dave'))
  }
  await model.close()
  tokenizer.close()
}

async function main() {
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-picture-'))
  try {
    const trace = path.join(folder, 'demo.jsonl')
    await traceTo(trace)
    const at = process.argv.indexOf('--trace')
    if (at > 0) copyFileSync(trace, process.argv[at + 1])
    const html = path.join(folder, 'demo.html')
    writeFileSync(
      html,
      traceToHtml(readFileSync(trace, 'utf8'), { title: 'many hands make light work' }),
    )
    await withPage(async (page) => {
      await page.resize({ width: 1280, height: 640 })
      await page.open(html)
      await page.press('Home', 'PageDown', '+')
      await page.screenshot(path.join(root, 'docs', 'trace-view.png'))
      if (page.faults.length > 0) throw new Error(page.faults.join('\n'))
    })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

main().catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})
