#!/usr/bin/env node
// Registers of the CUDA kernels, per architecture, against the committed table cuda/budget.json.
//
//   node scripts/cuda-budget.cjs LOG [--write]
//
// LOG: what the build printed with nvcc -Xptxas=-v for all architectures. Fails where a kernel spills, takes
// more registers than the table allows, or is not in it. --write: makes the table from the log.
// Shared memory is all dynamic; the kernels' own static_asserts hold it within 99 KiB per CTA.
'use strict'
const { execFileSync } = require('node:child_process')
const { readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')

const table = path.join(__dirname, '..', 'cuda', 'budget.json')
const [log, write] = process.argv.slice(2)

const found = []
for (const line of readFileSync(log, 'utf8').split('\n')) {
  const entry = /Compiling entry function '(\w+)' for 'sm_(\w+)'/.exec(line)
  if (entry) found.push({ symbol: entry[1], architecture: entry[2] })
  const last = found.at(-1)
  const spill = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
  if (spill && last && last.spills === undefined) last.spills = Number(spill[1]) + Number(spill[2])
  const used = /Used (\d+) registers/.exec(line)
  if (used && last) last.registers = Number(used[1])
}
const names = execFileSync('c++filt', { input: found.map(({ symbol }) => symbol).join('\n') })
  .toString()
  .split('\n')

const budget = {}
const problems = []
found.forEach(({ architecture, registers, spills }, i) => {
  const name = names[i]
    .replace(/^void /, '')
    .replace(/\(anonymous namespace\)::|hogwild::cuda::|hogwild::|simt::/g, '')
    .replace(/\([^()]*\)$/, '')
  budget[name] ??= {}
  budget[name][architecture] = registers
  if (spills !== 0) problems.push(`${name} for sm_${architecture} spills ${spills} bytes`)
  if (registers === undefined) problems.push(`${name} for sm_${architecture}: no register count`)
})
if (found.length === 0) problems.push(`no kernel in ${log}`)

if (write === '--write') {
  const sorted = Object.fromEntries(Object.entries(budget).sort(([a], [b]) => (a < b ? -1 : 1)))
  writeFileSync(table, `${JSON.stringify(sorted, null, 2)}\n`)
} else {
  const allowed = JSON.parse(readFileSync(table, 'utf8'))
  for (const [name, architectures] of Object.entries(budget)) {
    for (const [architecture, registers] of Object.entries(architectures)) {
      const most = allowed[name]?.[architecture]
      if (most === undefined) problems.push(`${name} for sm_${architecture} is not in the table`)
      else if (registers > most) {
        problems.push(`${name} for sm_${architecture}: ${registers} registers, ${most} allowed`)
      }
    }
  }
}
for (const problem of problems) console.error(problem)
console.log(`${found.length} kernels, ${problems.length} problems`)
process.exit(problems.length === 0 ? 0 : 1)
