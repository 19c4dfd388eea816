// Mutation run: injects one bug at a time into the CUDA kernels and reports which check sees it.
//
//   node test/cuda/mutants.mjs [part of a name ...]      names are '<table>: <bug>'
//
// test/cuda/mutants/ has a table of bugs per kernel file, and says which test must see them. Each mutant is
// compiled and run through that test and, where that sees nothing and the kernels have barriers, under
// ThreadSanitizer. Prints a table, and writes it to mutants/README.md when all bugs have been run; exits 1 where
// one escapes or the unmodified control is reported. 1 to 15 s of a processor per mutant, not for CI.
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
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import attention from './mutants/attention.mjs'
import kv from './mutants/kv.mjs'
import matmul from './mutants/matmul.mjs'
import pointwise from './mutants/pointwise.mjs'
import quantised from './mutants/quantised.mjs'
import routing from './mutants/routing.mjs'
import sample from './mutants/sample.mjs'

const tables = { attention, kv, matmul, pointwise, quantised, routing, sample }

const root = fileURLToPath(new URL('../..', import.meta.url))
const work = mkdtempSync(join(tmpdir(), 'hogwild-mutants-'))
const runtime = ['fiber', 'runtime', 'warp', 'async_copy', 'cuda_api']
const LIMIT_SECONDS = 120
const flags = ['-std=c++20', '-O1', '-w', '-DHOGWILD_SIMT', '-Inative']

function compile(...args) {
  const { status, stderr } = spawnSync('g++', args, { cwd: root, encoding: 'utf8' })
  if (status !== 0) throw new Error(`g++ ${args.join(' ')}\n${stderr}`)
}

const output = (program, ...args) =>
  execFileSync(program, args, { cwd: root, encoding: 'utf8', maxBuffer: Infinity })

// Compiles a file once per kind of build: plain, or for ThreadSanitizer.
const objects = new Map()
function objectOf(file, kind, kindFlags) {
  const key = `${kind}/${file}`
  if (!objects.has(key)) {
    objects.set(key, join(work, `${objects.size}.o`))
    compile(...flags, ...kindFlags, '-Icuda', '-c', file, '-o', objects.get(key))
  }
  return objects.get(key)
}

// Compiles a file of the folder `cuda`, unless it is, with all that it includes, what it was the first time.
const firstTexts = new Map()
function kernelObject(cuda, file, kind, kernelFlags) {
  const source = [...flags, ...kernelFlags, `-I${cuda}`, '-x', 'c++', join(cuda, file)]
  const text = output('g++', '-E', ...source)
  const name = `${kind}-${file}`
  const object = join(work, `${name}.o`)
  if (firstTexts.get(name) === text) return object
  const changed = firstTexts.has(name) ? join(work, `${name}-changed.o`) : object
  compile('-c', ...source, '-o', changed)
  if (changed === object) firstTexts.set(name, text)
  return changed
}

// Runs the table's test on the kernels in the folder `cuda`. Returns what saw a bug, '' if nothing did.
function runTest(table, cuda, kind, runtimeFlags, kernelFlags, environment, args) {
  const program = join(work, 'test')
  compile(
    ...kernelFlags,
    ...table.sources.map((file) => kernelObject(cuda, file, kind, kernelFlags)),
    objectOf(`test/cuda/${table.test}`, kind, kernelFlags),
    ...(table.host ?? []).map((file) => objectOf(`native/${file}`, kind, kernelFlags)),
    ...runtime.map((name) => objectOf(`cuda/simt/${name}.cc`, kind, runtimeFlags)),
    '-o',
    program,
  )
  // Seconds of a processor: what else the machine does must not look like a bug.
  const limited = ['-c', `ulimit -S -t ${LIMIT_SECONDS}; exec "$0" "$@"`, program, ...args]
  const { error, status, signal, stdout, stderr } = spawnSync('sh', limited, {
    cwd: work,
    encoding: 'utf8',
    maxBuffer: Infinity,
    env: { ...process.env, TSAN_OPTIONS: 'exitcode=66', HOGWILD_TEST_STOP: '1', ...environment },
  })
  if (error) throw error
  if (signal === 'SIGXCPU') return 'hangs'
  if (['SIGINT', 'SIGKILL', 'SIGTERM'].includes(signal)) throw new Error('the test was stopped')
  const text = stdout + stderr
  if (text.includes('ThreadSanitizer: data race')) return 'data race (ThreadSanitizer)'
  if (signal !== null) return `crash (${signal})`
  if (status === 0) return ''
  const report = /unexpected exception: (?:block .*?: )?(.*?)(?: \[|;)/.exec(text)
  if (report) return `report: ${report[1]}`
  const failed = /failed: (.*)/.exec(text)
  return failed ? `\`${failed[1].split(': ')[0]}\`` : `exit ${status}`
}

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

// A fresh copy of cuda/ with the table's edits and, but for the control, the bug.
function inject(cuda, table, name, change) {
  rmSync(cuda, { recursive: true, force: true })
  cpSync(join(root, 'cuda'), cuda, { recursive: true })
  for (const edit of table.edits ?? []) mutate(cuda, name, ...edit)
  if (change.length > 0) mutate(cuda, name, ...change)
}

function readme(rows, bugs, unseen, minutes) {
  const date = new Date().toISOString().slice(0, 10)
  const commit = output('git', 'describe', '--always', '--dirty').trim()
  const compiler = output('g++', '--version').split('\n')[0]
  return `# Mutation run of the CUDA kernels

Written by \`npm run test:mutants\`, which injects one bug at a time into \`cuda/\`, compiles it for the emulated card
(\`cuda/simt\`) and runs the tests of \`test/cuda/\` on it; beside each bug stands the check, report or crash that showed it. The
controls are the unmodified kernels. Races between CTAs are not among the bugs: the emulated card runs one CTA after another.

${date}, commit ${commit}, ${compiler}: ${bugs} bugs, ${unseen} not seen, ${minutes} minutes.

${rows.join('\n')}
`
}

const rows = []
function print(row) {
  rows.push(row)
  console.log(row)
}

try {
  const start = Date.now()
  const wanted = process.argv.slice(2)
  const cuda = join(work, 'cuda')
  const runs = Object.entries(tables)
    .flatMap(([tableName, table]) =>
      [['control'], ...table.mutants].map(([bug, ...change]) => ({
        table,
        name: `${tableName}: ${bug}`,
        change,
      })),
    )
    .filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)))
  // First all of them: a text that is no longer there shows at once.
  for (const { table, name, change } of runs) inject(cuda, table, name, change)

  let unseen = 0
  let badControls = 0
  print('| injected bug | seen by |')
  print('| --- | --- |')
  for (const { table, name, change } of runs) {
    inject(cuda, table, name, change)
    let seen = runTest(table, cuda, 'plain', [], [], table.environment, [])
    if (seen === '' && table.threads !== undefined) {
      const { environment, test } = table.threads
      seen = runTest(
        table,
        cuda,
        'threads',
        ['-DSIMT_TSAN'],
        ['-fsanitize=thread'],
        { ...table.environment, ...environment },
        [test],
      )
    }
    const isControl = change.length === 0
    if (isControl) badControls += seen !== ''
    else unseen += seen === ''
    print(`| ${name} | ${seen || (isControl ? '-' : '**not seen**')} |`)
  }
  if (wanted.length === 0) {
    const bugs = runs.length - Object.keys(tables).length
    const minutes = Math.round((Date.now() - start) / 60_000)
    writeFileSync(join(root, 'test/cuda/mutants/README.md'), readme(rows, bugs, unseen, minutes))
  }
  process.exitCode = unseen + badControls > 0 ? 1 : 0
} finally {
  rmSync(work, { recursive: true })
}
