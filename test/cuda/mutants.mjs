// Mutation run: injects one bug at a time into the CUDA kernels and reports which check sees it.
//
//   node test/cuda/mutants.mjs [part of a name ...]      names are '<table>: <bug>'
//
// test/cuda/mutants/ has a table of bugs per kernel file, and says which test must see them. Each mutant is
// compiled and run through that test and, where that sees nothing and the kernels have barriers, under
// ThreadSanitizer. Prints a table; exits 1 where a bug escapes or the unmodified control is reported. Some
// 5 to 15 s of a processor per mutant, not for CI.
//
// A table:
//   sources      files of cuda/ that are compiled with the bug
//   test         file of test/cuda/
//   edits        [file, text, replacement]: what every mutant shares, the control too (to compile less)
//   environment  of the test
//   threads      {environment, test}: what to run under ThreadSanitizer, where there are barriers
//   mutants      [name, file of cuda/, text, replacement, every?]: the text must occur once, or, with every,
//                be replaced everywhere
import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import attention from './mutants/attention.mjs'
import kv from './mutants/kv.mjs'
import matmul from './mutants/matmul.mjs'
import pointwise from './mutants/pointwise.mjs'
import sample from './mutants/sample.mjs'

const tables = { attention, kv, matmul, pointwise, sample }

const root = fileURLToPath(new URL('../..', import.meta.url))
const work = mkdtempSync(join(tmpdir(), 'hogwild-mutants-'))
const runtime = ['fiber', 'runtime', 'warp', 'async_copy', 'cuda_api']
const flags = ['-std=c++20', '-O1', '-w', '-DHOGWILD_SIMT', '-Inative']

function compile(...args) {
  const { status, stderr } = spawnSync('g++', args, { cwd: root, encoding: 'utf8' })
  if (status !== 0) throw new Error(`g++ ${args.join(' ')}\n${stderr}`)
}

// Compiles an unmodified file once per kind of build: plain, or for ThreadSanitizer.
const objects = new Map()
function objectOf(file, kind, kindFlags) {
  const key = `${kind}/${file}`
  if (!objects.has(key)) {
    objects.set(key, join(work, `${objects.size}.o`))
    compile(...flags, ...kindFlags, '-Icuda', '-c', file, '-o', objects.get(key))
  }
  return objects.get(key)
}

// Runs the table's test on the kernels in the folder `cuda`. Returns what saw a bug, '' if nothing did.
function runTest(table, cuda, kind, runtimeFlags, kernelFlags, environment, args) {
  const program = join(work, 'test')
  compile(
    ...flags,
    ...kernelFlags,
    `-I${cuda}`,
    '-x',
    'c++',
    ...table.sources.map((file) => join(cuda, file)),
    '-x',
    'none',
    objectOf(`test/cuda/${table.test}`, kind, kernelFlags),
    ...runtime.map((name) => objectOf(`cuda/simt/${name}.cc`, kind, runtimeFlags)),
    '-o',
    program,
  )
  const { status, signal, stdout, stderr } = spawnSync(program, args, {
    cwd: work,
    encoding: 'utf8',
    timeout: 300_000,
    env: { ...process.env, TSAN_OPTIONS: 'exitcode=66', ...environment },
  })
  const text = stdout + stderr
  if (signal === 'SIGTERM') return 'hangs'
  if (text.includes('ThreadSanitizer: data race')) return 'data race (ThreadSanitizer)'
  if (signal !== null) return `crash (${signal})`
  if (status === 0) return ''
  if (/unexpected exception: (block|deadlock)/.test(text)) return 'report of the layer'
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

let failed = false
try {
  const wanted = process.argv.slice(2)
  console.log('| injected bug | seen by |\n| --- | --- |')
  for (const [tableName, table] of Object.entries(tables)) {
    for (const [bug, ...change] of [['control'], ...table.mutants]) {
      const name = `${tableName}: ${bug}`
      const isControl = change.length === 0
      if (wanted.length > 0 && !wanted.some((part) => name.includes(part))) continue
      const cuda = join(work, 'cuda')
      rmSync(cuda, { recursive: true, force: true })
      cpSync(join(root, 'cuda'), cuda, { recursive: true })
      for (const edit of table.edits ?? []) mutate(cuda, name, ...edit)
      if (!isControl) mutate(cuda, name, ...change)
      let seen = runTest(table, cuda, 'plain', [], [], table.environment, [])
      if (seen === '' && table.threads !== undefined) {
        const { environment, test } = table.threads
        const threadFlags = ['-fsanitize=thread']
        seen = runTest(
          table,
          cuda,
          'threads',
          ['-DSIMT_TSAN'],
          threadFlags,
          { ...table.environment, ...environment },
          [test],
        )
      }
      failed ||= isControl === (seen !== '')
      console.log(`| ${name} | ${seen || (isControl ? '-' : '**not seen**')} |`)
    }
  }
} finally {
  rmSync(work, { recursive: true })
}
process.exitCode = failed ? 1 : 0
