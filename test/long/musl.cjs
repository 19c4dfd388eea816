// The musl addon of `npm run build:prebuilt -- linux-x64-musl` under a musl runtime, on a system with glibc: Bun's
// build for musl, from npm, with the loader of Debian's package musl. Bun wants a libstdc++ for musl: it is linked from
// the static one of g++ by zig.
'use strict'
const { execFileSync, spawnSync } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { zig } = require('../../scripts/prebuild.cjs')

const LOADER = '/lib/ld-musl-x86_64.so.1'
if (!fs.existsSync(LOADER)) throw new Error(`no ${LOADER}: apt install musl`)

const root = path.join(__dirname, '..', '..')
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'hogwild-musl-'))
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true }))
const output = (program, ...args) =>
  execFileSync(program, args, { cwd: work, encoding: 'utf8', maxBuffer: 2 ** 28 })

fs.writeFileSync(path.join(work, 'package.json'), '{ "private": true }\n')
output(
  'npm',
  'install',
  '--ignore-scripts',
  '--force',
  '--no-audit',
  '--no-fund',
  '@oven/bun-linux-x64-musl',
)
const bun = path.join(work, 'node_modules', '@oven', 'bun-linux-x64-musl', 'bin', 'bun')
fs.chmodSync(bun, 0o755)

// Everything of C++ that Bun takes from a library, and what glibc's libstdc++ takes from glibc.
const symbols = [
  ...output('readelf', '--dyn-syms', '--wide', bun).matchAll(
    / UND (_Z\S+|__cxa_\S+|__dynamic_cast)/g,
  ),
  ...output('readelf', '--relocs', '--wide', bun).matchAll(/ R_X86_64_COPY .* (_ZT\S+)/g),
]
  .map(([, name]) => name)
  .filter((name) => !/^__cxa_(finalize|thread_atexit_impl)$/.test(name))
fs.writeFileSync(
  path.join(work, 'glibc.c'),
  `#include <sys/random.h>
char __libc_single_threaded = 0;
unsigned arc4random(void) { unsigned x; getrandom(&x, sizeof x, 0); return x; }
`,
)
output(
  zig(),
  ...[
    'cc',
    '-target',
    'x86_64-linux-musl',
    '-shared',
    '-nostdlib++',
    '-o',
    'libstdc++.so.6',
    'glibc.c',
  ],
  ...symbols.map((name) => `-Wl,-u,${name}`),
  ...[output('g++', '-print-file-name=libstdc++.a').trim(), '-lunwind'],
)

// The package with this one binary.
const installed = path.join(work, 'hogwild')
for (const name of ['dist', 'models', 'package.json']) {
  fs.cpSync(path.join(root, name), path.join(installed, name), { recursive: true })
}
fs.symlinkSync(path.join(root, 'node_modules'), path.join(installed, 'node_modules'))
const binary = path.join('prebuilds', 'linux-x64', 'hogwild.musl.node')
fs.cpSync(path.join(root, binary), path.join(installed, binary))

function hogwild(...args) {
  const { HOGWILD_PREBUILD, ...env } = process.env
  const { status, stdout, stderr } = spawnSync(
    bun,
    [path.join(installed, 'dist/cli/main.js'), ...args],
    {
      encoding: 'utf8',
      env: { ...env, LD_LIBRARY_PATH: work },
    },
  )
  if (status !== 0)
    throw new Error(`hogwild ${args.join(' ')}: exit code ${status}\n${stdout}${stderr}`)
  return stdout
}
const { addon, checks } = JSON.parse(hogwild('doctor', '--json'))
if (addon !== path.join(installed, binary)) throw new Error(`${addon} was loaded`)
const demo = hogwild('demo', 'many hands')
if (!/^ {2}many hands$/m.test(demo)) throw new Error(demo)
console.log(`Bun on musl: doctor (${checks.map(({ device }) => device).join(', ')}), demo`)
