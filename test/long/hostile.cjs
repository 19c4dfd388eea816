// Hostile calls of the raw binding: every exported function, hostile values in any place.
'use strict'
const { execFile } = require('node:child_process')
const path = require('node:path')
const { promisify } = require('node:util')

const SEEDS = 40
const CALLS = 10_000

async function main() {
  const script = path.join(__dirname, '..', 'binding', 'hostile.cjs')
  const codes = {}
  for (let seed = 1001; seed <= 1000 + SEEDS; seed++) {
    const args = ['--expose-gc', script, String(seed), String(CALLS)]
    const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 300_000 })
    for (const [code, n] of Object.entries(JSON.parse(stdout).codes)) {
      codes[code] = (codes[code] ?? 0) + n
    }
  }
  console.log(`${SEEDS * CALLS} calls: ${JSON.stringify(codes)}`)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
