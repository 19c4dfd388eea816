// Mutation run: injects one bug at a time into the CUDA kernels and reports which check sees it.
//
//   node test/cuda/mutants.mjs [part of a name ...]      names are '<table>: <bug>'
//
// test/cuda/mutants/ has a table of bugs per kernel file, and says which test must see them. Each mutant is
// compiled and run through that test and, where that sees nothing and the kernels have barriers, under
// ThreadSanitizer. Prints a table, and writes it to mutants/README.md when all bugs have been run; exits 1 where
// one escapes or the unmodified control is reported. All processors work on it, each on a bug of its own, which takes
// seconds to a minute, and two minutes where the test hangs: not for CI.
//
// A table:
//   sources      files of cuda/ that are compiled with the bug
//   test         file of test/cuda/
//   host         files of native/ that the test needs
//   edits        [file, text, replacement]: what every mutant shares, the control too (to compile less)
//   environment  of the test
//   threads      {environment, test}: what to run under ThreadSanitizer, where there are barriers
//   mutants      [name, file of cuda/, text, replacement, every?]: the text must occur once, or, with every,
//                be replaced everywhere
import { execFile, execFileSync, spawn } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import attention from './mutants/attention.mjs'
import kv from './mutants/kv.mjs'
import matmul from './mutants/matmul.mjs'
import pointwise from './mutants/pointwise.mjs'
import quantised from './mutants/quantised.mjs'
import routing from './mutants/routing.mjs'
import sample from './mutants/sample.mjs'

const tables = { attention, kv, matmul, pointwise, quantised, routing, sample }

const root = fileURLToPath(new URL('../..', import.meta.url))
const runtime = ['fiber', 'runtime', 'warp', 'async_copy', 'cuda_api']
const LIMIT_SECONDS = 120
const flags = ['-std=c++20', '-O1', '-w', '-DHOGWILD_SIMT', '-Inative']

const execute = promisify(execFile)
const output = async (program, ...args) =>
  (await execute(program, args, { cwd: root, encoding: 'utf8', maxBuffer: Infinity })).stdout
const compile = (...args) => output('g++', ...args)

function mutate(cuda, name, file, from, to, every) {
  const path = join(cuda, file)
  const text = readFileSync(path, 'utf8')
  const count = text.split(from).length - 1
  if (every ? count < 1 : count !== 1)
    throw new Error(`${name}: '${from}' occurs ${count} times in ${file}`)
  writeFileSync(
    path,
    text.replaceAll(from, () => to),
  )
}

// A folder of its own, in which one mutant at a time is compiled and tested.
class Laboratory {
  constructor(work) {
    this.work = work
    this.cuda = join(work, 'cuda')
    this.objects = new Map()
    this.firstTexts = new Map()
    mkdirSync(work)
  }

  // A fresh copy of cuda/ with the table's edits and, but for the control, the bug.
  inject({ table, name, change }) {
    rmSync(this.cuda, { recursive: true, force: true })
    cpSync(join(root, 'cuda'), this.cuda, { recursive: true })
    for (const edit of table.edits ?? []) mutate(this.cuda, name, ...edit)
    if (change.length > 0) mutate(this.cuda, name, ...change)
  }

  // Compiles a file once per kind of build: plain, or for ThreadSanitizer.
  async objectOf(file, kind, kindFlags) {
    const key = `${kind}/${file}`
    if (!this.objects.has(key)) {
      const object = join(this.work, `${this.objects.size}.o`)
      await compile(...flags, ...kindFlags, '-Icuda', '-c', file, '-o', object)
      this.objects.set(key, object)
    }
    return this.objects.get(key)
  }

  // Compiles a kernel file, unless it is, with all that it includes, what it was the first time.
  async kernelObject(file, kind, kernelFlags) {
    const source = [...flags, ...kernelFlags, `-I${this.cuda}`, '-x', 'c++', join(this.cuda, file)]
    const preprocessed = await output('g++', '-E', ...source)
    const name = `${kind}-${file}`
    const object = join(this.work, `${name}.o`)
    if (this.firstTexts.get(name) === preprocessed) return object
    const changed = this.firstTexts.has(name) ? join(this.work, `${name}-changed.o`) : object
    await compile('-c', ...source, '-o', changed)
    if (changed === object) this.firstTexts.set(name, preprocessed)
    return changed
  }

  // Runs the table's test on the injected kernels. Returns what saw a bug, '' if nothing did.
  async test(table, kind, runtimeFlags, kernelFlags, environment, args) {
    const program = join(this.work, 'test')
    const objects = []
    for (const file of table.sources) objects.push(await this.kernelObject(file, kind, kernelFlags))
    objects.push(await this.objectOf(`test/cuda/${table.test}`, kind, kernelFlags))
    for (const file of table.host ?? [])
      objects.push(await this.objectOf(`native/${file}`, kind, kernelFlags))
    for (const name of runtime)
      objects.push(await this.objectOf(`cuda/simt/${name}.cc`, kind, runtimeFlags))
    await compile(...kernelFlags, ...objects, '-o', program)
    return seenBy(program, args, environment)
  }

  async run({ table, change, ...run }) {
    this.inject({ table, change, ...run })
    const seen = await this.test(table, 'plain', [], [], table.environment, [])
    if (seen !== '' || table.threads === undefined) return seen
    const environment = { ...table.environment, ...table.threads.environment }
    const args = [table.threads.test]
    return this.test(table, 'threads', ['-DSIMT_TSAN'], ['-fsanitize=thread'], environment, args)
  }
}

async function seenBy(program, args, environment) {
  // Seconds of a processor: what else the machine does must not look like a bug.
  const limited = ['-c', `ulimit -S -t ${LIMIT_SECONDS}; exec "$0" "$@"`, program, ...args]
  const test = spawn('sh', limited, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, TSAN_OPTIONS: 'exitcode=66', HOGWILD_TEST_STOP: '1', ...environment },
  })
  const closed = new Promise((resolve, reject) => {
    test.on('error', reject)
    test.on('close', (status, signal) => resolve({ status, signal }))
  })
  const said = (await Promise.all([text(test.stdout), text(test.stderr)])).join('')
  const { status, signal } = await closed
  if (signal === 'SIGXCPU') return 'hangs'
  if (['SIGINT', 'SIGKILL', 'SIGTERM'].includes(signal)) throw new Error('the test was stopped')
  if (said.includes('ThreadSanitizer: data race')) return 'data race (ThreadSanitizer)'
  if (signal !== null) return `crash (${signal})`
  if (status === 0) return ''
  const report = /unexpected exception: (?:block .*?: )?(.*?)(?: \[|;)/.exec(said)
  if (report) return `report: ${report[1]}`
  const failed = /failed: (.*)/.exec(said)
  return failed ? `\`${failed[1].split(': ')[0]}\`` : `exit ${status}`
}

const rowOf = ({ name, change, seen }) =>
  `| ${name} | ${seen || (change.length === 0 ? '-' : '**not seen**')} |`
const HEADER = ['| injected bug | seen by |', '| --- | --- |']

function readme(runs, bugs, unseen, minutes) {
  const date = new Date().toISOString().slice(0, 10)
  const shell = (program, ...args) => execFileSync(program, args, { cwd: root, encoding: 'utf8' })
  const commit = shell('git', 'describe', '--always', '--dirty').trim()
  const compiler = shell('g++', '--version').split('\n')[0]
  return `# Mutation run of the CUDA kernels

Written by \`npm run test:mutants\`, which injects one bug at a time into \`cuda/\`, compiles it for the emulated card
(\`cuda/simt\`) and runs the tests of \`test/cuda/\` on it; beside each bug stands the check, report or crash that showed it. The
controls are the unmodified kernels. Races between CTAs are not among the bugs: the emulated card runs one CTA after another.

${date}, commit ${commit}, ${compiler}: ${bugs} bugs, ${unseen} not seen, ${minutes} minutes.

${[...HEADER, ...runs.map(rowOf)].join('\n')}
`
}

const base = mkdtempSync(join(tmpdir(), 'hogwild-mutants-'))
try {
  const start = Date.now()
  const wanted = process.argv.slice(2)
  const runs = Object.entries(tables)
    .flatMap(([tableName, table]) =>
      [['control'], ...table.mutants].map(([bug, ...change]) => ({
        table,
        name: `${tableName}: ${bug}`,
        change,
      })),
    )
    .filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)))
  const laboratories = Array.from(
    { length: availableParallelism() },
    (_, i) => new Laboratory(join(base, `${i}`)),
  )
  // First all of them: a text that is no longer there shows at once.
  for (const run of runs) laboratories[0].inject(run)

  console.log(HEADER.join('\n'))
  const waiting = runs.values()
  await Promise.all(
    laboratories.map(async (laboratory) => {
      for (const run of waiting) {
        run.seen = await laboratory.run(run)
        console.log(rowOf(run))
      }
    }),
  )

  const isControl = ({ change }) => change.length === 0
  const unseen = runs.filter((run) => !isControl(run) && run.seen === '').length
  const badControls = runs.filter((run) => isControl(run) && run.seen !== '').length
  if (wanted.length === 0) {
    const bugs = runs.length - Object.keys(tables).length
    const minutes = Math.round((Date.now() - start) / 60_000)
    writeFileSync(join(root, 'test/cuda/mutants/README.md'), readme(runs, bugs, unseen, minutes))
  }
  process.exitCode = unseen + badControls > 0 ? 1 : 0
} finally {
  rmSync(base, { recursive: true })
}
