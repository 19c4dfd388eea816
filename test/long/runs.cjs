// Runs that are saved at 200 random moments by processes that are killed then, and go on in others: the events that are left
// and the bits of the logits are the same, in all layouts.
'use strict'
const { execFile } = require('node:child_process')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { promisify } = require('node:util')

const MOMENTS = 200
/** Of one process. */
const BATCH = 10

const script = path.join(__dirname, '..', 'sessions', 'runs.cjs')

async function main() {
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-runs-'))
  const total = { moments: 0, beside: 0, layouts: {}, places: {}, traits: {} }
  const add = (sums, more) => {
    for (const [key, n] of Object.entries(more)) sums[key] = (sums[key] ?? 0) + n
  }
  try {
    for (let first = 1000; total.moments < MOMENTS; first += BATCH) {
      const seeds = Array.from({ length: BATCH }, (_, i) => `${first + i}`)
      const node = (mode) =>
        promisify(execFile)(process.execPath, [script, mode, folder, ...seeds], {
          maxBuffer: 2 ** 26,
        })
      const signal = await node('save').then(
        () => 'none',
        (error) => error.signal ?? error,
      )
      if (signal !== 'SIGKILL') throw signal
      const { moments, beside, layouts, places, traits, faults } = JSON.parse(
        (await node('restore')).stdout,
      )
      if (faults.length > 0) throw new Error(faults.join('\n'))
      total.moments += moments
      total.beside += beside
      add(total.layouts, layouts)
      add(total.places, places)
      add(total.traits, traits)
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
  const missing = Object.entries(total.traits).filter(([, n]) => n === 0)
  if (missing.length > 0) throw new Error(`no moment with ${missing}`)
  console.log(JSON.stringify(total))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
