// Compiles shim.c and runs failures.cjs with it: for the test and for test/long.
'use strict'
const { execFile, execFileSync } = require('node:child_process')
const { closeSync, mkdtempSync, openSync, rmSync, truncateSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { promisify } = require('node:util')

/** Why allocations cannot be made to fail here; undefined where they can. */
function missing() {
  if (process.platform !== 'linux') return 'LD_PRELOAD'
  try {
    execFileSync('gcc', ['--version'], { stdio: 'ignore' })
  } catch {
    return 'gcc'
  }
}

/** What failures.cjs printed, a line for each call; rejects with its faults. */
async function runFailures({ mode, cache, first = 1, stride = 1, timeout }) {
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-allocation-'))
  try {
    const shim = path.join(folder, 'shim.so')
    const source = path.join(__dirname, 'shim.c')
    execFileSync('gcc', ['-O2', '-shared', '-fPIC', '-o', shim, source, '-ldl'])
    const control = path.join(folder, 'control')
    closeSync(openSync(control, 'w'))
    truncateSync(control, 4096)
    const script = path.join(__dirname, 'failures.cjs')
    const args = ['--expose-gc', script, mode, cache, String(first), String(stride)]
    const env = { ...process.env, LD_PRELOAD: shim, HOGWILD_FAIL: control }
    const { stdout } = await promisify(execFile)(process.execPath, args, { env, timeout })
    return stdout.trim().split('\n')
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** How many failures the lines tell of. */
function countFailures(lines) {
  return lines.reduce((sum, line) => sum + Number(/(\d+) failures/.exec(line)[1]), 0)
}

module.exports = { countFailures, missing, runFailures }
