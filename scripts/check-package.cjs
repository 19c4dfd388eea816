#!/usr/bin/env node
// What a consumer meets: a tarball, installed into an empty folder by npm, scripts disabled, with nothing on the PATH
// but Node.js, npm and a shell. The tarball must have an addon for this machine.
//
//   node scripts/check-package.cjs TARBALL
'use strict'
const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')

const LARGEST_TARBALL = 12e6
const MOST_PACKAGES = 8

const root = path.join(__dirname, '..')
const tarball = path.resolve(process.argv[2] ?? '')
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'hogwild-package-'))
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true }))

/** A folder in which alone programs are looked for. */
function minimalPath() {
  const bin = path.join(work, 'bin')
  fs.mkdirSync(bin)
  const npm = spawnSync('sh', ['-c', 'command -v npm'], { encoding: 'utf8' }).stdout.trim()
  fs.symlinkSync(process.execPath, path.join(bin, 'node'))
  fs.symlinkSync(fs.realpathSync(npm), path.join(bin, 'npm'))
  fs.symlinkSync(fs.realpathSync(npm.replace(/npm$/, 'npx')), path.join(bin, 'npx'))
  fs.symlinkSync('/bin/sh', path.join(bin, 'sh'))
  return bin
}

function fail(message) {
  console.error(`check-package: ${message}`)
  process.exit(1)
}

const folder = path.join(work, 'consumer')
fs.mkdirSync(folder)
const env = { ...process.env, PATH: minimalPath() }
delete env.HOGWILD_PREBUILD

/** Runs a program in the consumer's folder; returns what it wrote. */
function run(expected, program, ...args) {
  const options = { cwd: folder, env, encoding: 'utf8', maxBuffer: 2 ** 26 }
  const { status, stdout, stderr } = spawnSync(program, args, options)
  if (status !== expected) {
    fail(
      `${program} ${args.join(' ')}: exit code ${status}, expected ${expected}\n${stdout}${stderr}`,
    )
  }
  return { stdout, stderr }
}

function check(what, holds) {
  if (!holds) fail(`not so: ${what}`)
  console.log(`  ${what}`)
}

const megabytes = (file) => `${(fs.statSync(file).size / 1e6).toFixed(2)} MB`

// ---- the install
fs.writeFileSync(path.join(folder, 'package.json'), '{ "private": true }\n')
const begin = performance.now()
run(0, 'npm', 'install', '--ignore-scripts', '--no-audit', '--no-fund', tarball)
const seconds = (performance.now() - begin) / 1000
const packages = run(0, 'npm', 'ls', '--all', '--omit=dev', '--parseable').stdout.trim().split('\n')
const installed = path.join(folder, 'node_modules', 'hogwild')
for (const file of fs.readdirSync(path.join(installed, 'prebuilds'), { recursive: true }).sort()) {
  if (!file.endsWith('.node')) continue
  console.log(`  prebuilds/${file}: ${megabytes(path.join(installed, 'prebuilds', file))}`)
}
console.log(
  `  ${path.basename(tarball)}: ${megabytes(tarball)}; installed in ${seconds.toFixed(1)} s`,
)
check(
  `the tarball has less than ${LARGEST_TARBALL / 1e6} MB`,
  fs.statSync(tarball).size < LARGEST_TARBALL,
)
// The first is the consumer.
check(
  `${packages.length - 1} packages, at most ${MOST_PACKAGES}`,
  packages.length - 1 <= MOST_PACKAGES,
)
check('no package has an install script', packages.slice(1).every(hasNoInstallScript))

function hasNoInstallScript(directory) {
  const { scripts = {} } = JSON.parse(fs.readFileSync(path.join(directory, 'package.json'), 'utf8'))
  const gyp = fs.existsSync(path.join(directory, 'binding.gyp'))
  return !gyp && ['preinstall', 'install', 'postinstall'].every((name) => !(name in scripts))
}

// ---- what is in it
const files = fs.readdirSync(installed, { recursive: true }).map(String)
const dead = files
  .filter((file) => file.endsWith('.md'))
  .flatMap((file) => {
    const text = fs
      .readFileSync(path.join(installed, file), 'utf8')
      .replace(/```.*?```|`[^`]*`/gs, '')
    return [...text.matchAll(/\]\(([^)#\s]+)[^)]*\)/g)]
      .map(([, link]) => link)
      .filter((link) => !/^https?:/.test(link))
      .filter((link) => !fs.existsSync(path.join(installed, path.dirname(file), link)))
      .map((link) => `${file} → ${link}`)
  })
check(`links of its documents lead to files in it ${dead.join(', ')}`.trim(), dead.length === 0)
const maps = files.filter((file) => /\.[jt]s\.map$/.test(file))
check(
  `${maps.length} source maps with their sources`,
  maps.every((file) =>
    JSON.parse(fs.readFileSync(path.join(installed, file), 'utf8')).sourcesContent?.every(Boolean),
  ),
)

// ---- that it works
const { version } = JSON.parse(fs.readFileSync(path.join(installed, 'package.json'), 'utf8'))
const npx = (expected, ...args) => run(expected, 'npx', '--no-install', 'hogwild', ...args)
check('--version and --help', npx(0, '--version').stdout === `${version}\n` && npx(0, '--help'))
const { checks } = JSON.parse(npx(0, 'doctor', '--json').stdout)
check(`doctor: right are ${checks.map(({ device }) => device).join(', ')}`, checks.length > 0)
const demo = npx(0, 'demo', 'many', 'hands', 'make', 'light', 'work').stdout
check('demo', /^ {2}many hands make light work$/m.test(demo))
check(
  'demo: what it says to try next is there',
  demo.includes('npx hogwild run --model') &&
    [...demo.matchAll(/it: +(\S+\.md)$/gm)].filter(([, file]) =>
      fs.existsSync(path.join(folder, file)),
    ).length === 2,
)
npx(0, 'random-model', 'tiny')
check(
  'random-model, and run on it',
  /^Bob {3}\| /m.test(npx(0, 'run', '--model', 'tiny', '--max-tokens', '16', 'Hello').stdout),
)
const scheme = path.join(installed, 'examples', 'schemes', 'group-think.mjs')
check('an example', /tokens in \d+ steps/.test(run(0, 'node', scheme).stdout))
const experiment = path.join(installed, 'examples', 'experiments', 'demo.mjs')
const finished = npx(0, 'experiment', experiment, '--out', 'out').stdout
check('an experiment', / 60 cells\n/.test(finished))
check(
  'an experiment: data of its plots, and what draws them',
  finished.includes('npm install vega vega-lite') &&
    fs.existsSync(path.join(folder, 'out', 'plots', 'speedup.vl.json')),
)
const use = `await using model = await loadModel(demoModelPath)
  await using cache = model.createCache({ capacity: 64 })
  const block = cache.createBlock()
  console.log((await model.prefill(block, [1, 16, 3, 56])).token)`.replaceAll(
  'await using',
  'const',
)
const commonjs = `const { loadModel, demoModelPath, HogwildError } = require('hogwild'); (async () => { ${use} })()`
const module_ = `import { loadModel, demoModelPath, HogwildError } from 'hogwild'; ${use}`
check(
  'require and import, by name, compute the same',
  run(0, 'node', '-e', commonjs).stdout ===
    run(0, 'node', '--input-type=module', '-e', module_).stdout,
)

// ---- its types, of which nothing is skipped, where neither DOM nor @types/node is there
fs.writeFileSync(path.join(folder, 'package.json'), '{ "private": true, "type": "module" }\n')
fs.writeFileSync(
  path.join(folder, 'use.ts'),
  `declare const console: { log(value: unknown): void }
import { type Experiment, wilson } from 'hogwild/experiment'
export const experiment: Partial<Experiment> = { budgets: [wilson(1, 1).low] }
${module_}`,
)
const tsc = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc')
for (const [module, moduleResolution] of [
  ['node20', 'node16'],
  ['nodenext', 'nodenext'],
  ['esnext', 'bundler'],
]) {
  const compilerOptions = {
    ...{ module, moduleResolution, target: 'es2022', lib: ['es2022'], types: [] },
    ...{ strict: true, skipLibCheck: false, noEmit: true },
  }
  fs.writeFileSync(
    path.join(folder, 'tsconfig.json'),
    JSON.stringify({ compilerOptions, files: ['use.ts'] }),
  )
  run(0, 'node', tsc, '-p', '.')
}
check('types, skipLibCheck: false', true)

// ---- without a binary
fs.rmSync(path.join(installed, 'prebuilds'), { recursive: true })
npx(0, '--version')
npx(0, '--help')
const broken = npx(1, 'doctor')
const said = `${broken.stdout}${broken.stderr}`
check('without a binary: doctor names the command', said.includes('`npx hogwild build`'))
check('without a binary: doctor shows no stack', !/^ {4}at /m.test(said))
