// Damaged files of blocks, 40,000 of them: refused with an error of ours, or usable; nothing of them stays.
'use strict'
const { execFile } = require('node:child_process')
const path = require('node:path')
const { promisify } = require('node:util')

const SEEDS = 10
const INPUTS = 4000

async function main() {
  const script = path.join(__dirname, '..', 'sessions', 'fuzz.cjs')
  const total = { inputs: 0, read: 0, refused: {} }
  for (let seed = 1000; seed < 1000 + SEEDS; seed++) {
    const { stdout } = await promisify(execFile)(process.execPath, [script, `${seed}`, `${INPUTS}`])
    const { inputs, read, refused, faults } = JSON.parse(stdout)
    if (faults.length > 0) throw new Error(`seed ${seed}: ${JSON.stringify(faults)}`)
    total.inputs += inputs
    total.read += read
    for (const [code, n] of Object.entries(refused)) {
      total.refused[code] = (total.refused[code] ?? 0) + n
    }
  }
  console.log(`${total.inputs} files: ${total.read} read, ${JSON.stringify(total.refused)}`)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
