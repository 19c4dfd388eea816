// Random interleavings of steps, passes, aborts, closing, garbage collection and threads that end.
'use strict'
const { execFile } = require('node:child_process')
const path = require('node:path')
const { promisify } = require('node:util')

const SEEDS = 40
const INTERLEAVINGS = 100

async function main() {
  const script = path.join(__dirname, '..', 'lifetime', 'interleavings.cjs')
  let interleavings = 0
  for (let seed = 1001; seed <= 1000 + SEEDS; seed++) {
    const args = ['--expose-gc', script, String(seed), String(INTERLEAVINGS)]
    const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 300_000 })
    interleavings += JSON.parse(stdout).interleavings
  }
  console.log(`${interleavings} interleavings`)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
