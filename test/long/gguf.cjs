// Damaged GGUF files through the reader: cut at each byte, and 150,000 with wrong bits, counts, lengths and offsets.
'use strict'
const { execFile } = require('node:child_process')
const path = require('node:path')
const { promisify } = require('node:util')

const SEEDS = 15
const INPUTS = 10_000

async function main() {
  const script = path.join(__dirname, '..', 'gguf', 'fuzz.cjs')
  const total = { inputs: 0, read: 0, refused: {} }
  const faults = []
  for (let seed = 1000; seed <= 1000 + SEEDS; seed++) {
    // The first round are the cuts.
    const args = [script, String(seed), String(seed === 1000 ? 0 : INPUTS)]
    const options = { timeout: 600_000, maxBuffer: 2 ** 26 }
    const { stdout } = await promisify(execFile)(process.execPath, args, options)
    const result = JSON.parse(stdout)
    total.inputs += result.inputs
    total.read += result.read
    for (const [code, n] of Object.entries(result.refused)) {
      total.refused[code] = (total.refused[code] ?? 0) + n
    }
    faults.push(...result.faults)
  }
  if (faults.length > 0) throw new Error(JSON.stringify(faults, undefined, 1))
  console.log(`${total.inputs} files: ${total.read} read, ${JSON.stringify(total.refused)}`)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
