#!/usr/bin/env node
// Instructions of one trip round the main loop of the matrix products and of attention, per kernel and architecture,
// against the committed table cuda/loops.json: what cannot be timed without a GPU is at least counted.
//
//   node scripts/cuda-loops.cjs FOLDER [--write]
//
// FOLDER: of cubins as nvcc --keep leaves them, e.g. matmul.compute_80.cubin. A trip copies and multiplies 8 KB of
// weights (matmul: 64 outputs x 64), 128 outputs x 128 quantised ones, or a tile of keys and values (attention: 32 KB in
// rows of 128). Counted is the shortest way round the loop that passes all of its copies (LDGSTS) and matrix products
// (HMMA), for one warp; loops within it, of products alone, go round twice. Fails where a trip takes more instructions
// than the table allows, or is not in it, and where sampling adds to shared memory by compare-and-swap, which is what
// 64-bit additions become. --write: makes the table.
'use strict'
const { execFileSync } = require('node:child_process')
const { readdirSync, readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')

const table = path.join(__dirname, '..', 'cuda', 'loops.json')

// Lowest 12 bits of the 128-bit instructions of compute capability 8.0 to 12.0, as far as they matter here.
const OPCODES = { ATOMS_CAS: 0x38d, BRA: 0x947, EXIT: 0x94d, HMMA: 0x23c, LDGSTS: 0xfae }
const BYTES = 16
const ALWAYS = 7 // the predicate PT

/** The machine code of each kernel in a cubin, by mangled name. */
function kernelsOf(file) {
  const elf = readFileSync(file)
  if (elf.readUInt32BE(0) !== 0x7f454c46) throw new Error(`${file} is no ELF file`)
  const sections = []
  const [at, size, count, names] = [
    Number(elf.readBigUInt64LE(0x28)),
    elf.readUInt16LE(0x3a),
    elf.readUInt16LE(0x3c),
    elf.readUInt16LE(0x3e),
  ]
  for (let i = 0; i < count; i++) {
    const header = at + i * size
    sections.push({
      name: elf.readUInt32LE(header),
      offset: Number(elf.readBigUInt64LE(header + 0x18)),
      size: Number(elf.readBigUInt64LE(header + 0x20)),
    })
  }
  const kernels = new Map()
  for (const section of sections) {
    const start = sections[names].offset + section.name
    const name = elf.toString('latin1', start, elf.indexOf(0, start))
    if (!name.startsWith('.text.')) continue
    kernels.set(
      name.slice('.text.'.length),
      elf.subarray(section.offset, section.offset + section.size),
    )
  }
  return kernels
}

/** Instructions in order: opcode, whether it may be skipped, and where a branch goes (an index). */
function decode(code, architecture) {
  const instructions = []
  for (let at = 0; at + BYTES <= code.length; at += BYTES) {
    const low = code.readBigUInt64LE(at)
    const high = code.readBigUInt64LE(at + 8)
    const opcode = Number(low & 0xfffn)
    const instruction = { opcode, conditional: Number((low >> 12n) & 0xfn) !== ALWAYS }
    if (opcode === OPCODES.BRA) {
      // In units of 4 bytes from the next instruction on: bits 34 to 81, and from 9.0 on bits 16 to 23 below them.
      let offset = BigInt.asIntN(48, (low >> 34n) | (high << 30n))
      if (Number.parseInt(architecture, 10) >= 90) offset = (offset << 8n) | ((low >> 16n) & 0xffn)
      instruction.target = (at + BYTES + Number(offset) * 4) / BYTES
      if (!Number.isInteger(instruction.target) || instruction.target * BYTES >= code.length) {
        throw new Error(`a branch of sm_${architecture} that this script cannot read`)
      }
    }
    instructions.push(instruction)
  }
  return instructions
}

/** Instructions of the shortest way from `from` to `to`, both included; Infinity where none is. */
function shortest(instructions, from, to) {
  // All steps cost the same: breadth first.
  const seen = new Set([from])
  let front = [from]
  for (let length = 1; front.length > 0; length++) {
    const next = []
    for (const at of front) {
      if (at === to) return length
      const { opcode, conditional, target } = instructions[at]
      const after = []
      if (target !== undefined) after.push(target)
      // (Behind a loop that always goes back, whose way out this does not see: where barriers join threads again.)
      const isLeft = (opcode !== OPCODES.BRA || target < at) && opcode !== OPCODES.EXIT
      if (isLeft || conditional) after.push(at + 1)
      for (const following of after) {
        if (following >= instructions.length || seen.has(following)) continue
        seen.add(following)
        next.push(following)
      }
    }
    front = next
  }
  return Number.POSITIVE_INFINITY
}

/** Backward branches, as what lies between. */
function loopsOf(instructions) {
  return instructions.flatMap(({ target }, last) =>
    target === undefined || target >= last
      ? []
      : [{ first: target, last, body: instructions.slice(target, last + 1) }],
  )
}

/** Once round a loop, past all of its copies and products. */
function length(instructions, { first, last }) {
  let at = first
  let length = 1
  for (let i = first; i <= last; i++) {
    const { opcode } = instructions[i]
    if (opcode !== OPCODES.HMMA && opcode !== OPCODES.LDGSTS && i !== last) continue
    length += shortest(instructions, at, i) - 1
    at = i
  }
  return length
}

/** Of the main loop: the one, of those that both copy and multiply, with the fewest instructions in it. */
function trip(instructions) {
  const has = ({ body }, opcode) => body.some((instruction) => instruction.opcode === opcode)
  const multiply = loopsOf(instructions).filter((loop) => has(loop, OPCODES.HMMA))
  const main = multiply
    .filter((loop) => has(loop, OPCODES.LDGSTS))
    .sort((a, b) => a.body.length - b.body.length)[0]
  if (main === undefined) return undefined
  const isWithin = (inner, outer) =>
    inner !== outer && outer.first <= inner.first && inner.last <= outer.last
  const within = multiply.filter((loop) => isWithin(loop, main))
  // Of two loops, one in the other, the inner one goes round twice as often again.
  const more = within.map(
    (loop) =>
      length(instructions, loop) * 2 ** within.filter((outer) => isWithin(loop, outer)).length,
  )
  return more.reduce((sum, instructions) => sum + instructions, length(instructions, main))
}

const readable = (symbols) =>
  execFileSync('c++filt', { input: symbols.join('\n') })
    .toString()
    .split('\n')
    .map((name) =>
      name
        .replace(/^void /, '')
        .replace(/\(anonymous namespace\)::|hogwild::cuda::|hogwild::|simt::/g, '')
        .replace(/\([^()]*\)$/, ''),
    )

const [folder, write] = process.argv.slice(2)
const found = {}
const problems = []
for (const file of readdirSync(folder).sort()) {
  const named = /^(?:(?:quant_)?matmul|attention|sample)\.compute_(\w+?)(?:\.sm_\w+)?\.cubin$/.exec(
    file,
  )
  if (!named) continue
  const kernels = kernelsOf(path.join(folder, file))
  const names = readable([...kernels.keys()])
  ;[...kernels.values()].forEach((code, i) => {
    const instructions = decode(code, named[1])
    if (
      file.startsWith('sample') &&
      instructions.some(({ opcode }) => opcode === OPCODES.ATOMS_CAS)
    ) {
      problems.push(`${names[i]} for sm_${named[1]} compares and swaps in shared memory`)
    }
    const counted = trip(instructions)
    if (counted === undefined) return
    const name = names[i]
    found[name] ??= {}
    found[name][named[1]] = counted
    if (!Number.isFinite(counted)) {
      problems.push(`${name} for sm_${named[1]}: no way round its loop was found`)
    }
  })
}
const kernels = Object.keys(found).sort()
if (
  !kernels.some((name) => name.startsWith('multiply')) ||
  !kernels.some((name) => name.startsWith('attend'))
) {
  problems.push(`${folder} lacks the cubins of matmul.cu or attention.cu`)
}
if (write === '--write') {
  const sorted = Object.fromEntries(kernels.map((name) => [name, found[name]]))
  writeFileSync(table, `${JSON.stringify(sorted, null, 2)}\n`)
} else {
  const allowed = JSON.parse(readFileSync(table, 'utf8'))
  for (const name of kernels) {
    for (const [architecture, instructions] of Object.entries(found[name])) {
      const most = allowed[name]?.[architecture]
      if (most === undefined) problems.push(`${name} for sm_${architecture} is not in the table`)
      else if (instructions > most) {
        problems.push(
          `${name} for sm_${architecture}: ${instructions} instructions, ${most} allowed`,
        )
      }
    }
  }
}
for (const problem of problems) console.error(problem)
console.log(`${kernels.length} loops, ${problems.length} problems`)
process.exit(problems.length === 0 ? 0 : 1)
