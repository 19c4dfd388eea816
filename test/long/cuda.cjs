// The CUDA kernels for all architectures: no spills, registers and instructions as the tables allow, the size of the
// addon. The gate compiles two of the architectures.
'use strict'
const { spawnSync } = require('node:child_process')
const { mkdtempSync, rmSync } = require('node:fs')
const os = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..', '..')
const work = mkdtempSync(path.join(os.tmpdir(), 'hogwild-cuda-'))
process.on('exit', () => rmSync(work, { recursive: true, force: true }))
const { status } = spawnSync('bash', ['scripts/cuda-check.sh', work, 'all'], {
  cwd: root,
  stdio: ['ignore', 'inherit', 'inherit'],
})
process.exitCode = status ?? 1
