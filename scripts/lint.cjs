// `npm run lint` checks, `npm run format` (--fix) rewrites: TypeScript and JSON with Biome, C++ and
// CUDA with clang-format, types with tsc, the two layering rules that a compiler cannot see, and conflicts of a merge.
'use strict'
const { execFileSync, spawnSync } = require('node:child_process')
const { existsSync, readFileSync } = require('node:fs')
const path = require('node:path')

const root = path.join(__dirname, '..')
const fix = process.argv.includes('--fix')
let failed = false

function run(name, bin, args) {
  const entry = path.join(root, 'node_modules', '.bin', bin)
  const { status } = spawnSync(entry, args, { cwd: root, stdio: 'inherit' })
  if (status !== 0) {
    console.error(`lint: ${name} failed`)
    failed = true
  }
}

// What git tracks or would track: build output and node_modules are ignored there already.
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  cwd: root,
  encoding: 'utf8',
})
  .split('\n')
  .filter((file) => file && existsSync(path.join(root, file)))
const native = files.filter((file) => /\.(cc|h|cu|cuh)$/.test(file))

run('biome', 'biome', ['check', ...(fix ? ['--write'] : []), '.'])
run('clang-format', 'clang-format', [...(fix ? ['-i'] : ['--dry-run', '-Werror']), ...native])
if (!fix) run('tsc', 'tsc', ['--noEmit'])
if (!fix) run('tsc of the page of a trace', 'tsc', ['-p', 'lib/timeline/page'])
if (!fix) run('tsc of the benchmarks', 'tsc', ['-p', 'bench', '--noEmit'])

// The README's tables are written from bench/results.
const figures = [path.join(__dirname, 'readme-figures.cjs'), ...(fix ? [] : ['--check'])]
if (spawnSync(process.execPath, figures, { stdio: 'inherit' }).status !== 0) failed = true

// So are those of docs/performance.md, from what cards measured and what is counted without one.
const performance = [
  path.join(__dirname, 'gpu-figures.cjs'),
  fix ? '--write' : '--check',
  path.join(root, 'docs', 'performance.md'),
]
if (spawnSync(process.execPath, performance, { stdio: 'inherit' }).status !== 0) failed = true

// An include points downwards only (docs/architecture.md, "Layers").
const rules = [
  { forbidden: /#include\s*<(napi|node_api)[^>]*>/, allowed: /^native\/addon\// },
  {
    forbidden: /#include\s*[<"]cuda[^>"]*[>"]/,
    allowed: /^(cuda|test\/cuda|bench\/gpu)\/|^native\/device\/cuda\//,
  },
  {
    forbidden: /#include\s*"device\/(cpu|cuda)\//,
    allowed: /^(native\/device|test\/(native|cuda))\//,
  },
  { forbidden: /#include\s*"addon\//, allowed: /^native\/addon\// },
  { forbidden: /#include\s*"model\//, allowed: /^(native\/(addon|model)|test\/(native|cuda))\// },
  { forbidden: /#include\s*"cache\//, allowed: /^(native\/(addon|model|cache)|test\/native)\// },
]
for (const file of native) {
  readFileSync(path.join(root, file), 'utf8')
    .split('\n')
    .forEach((line, index) => {
      for (const { forbidden, allowed } of rules) {
        if (forbidden.test(line) && !allowed.test(file)) {
          console.error(`${file}:${index + 1}: ${line.trim()} breaks the layering`)
          failed = true
        }
      }
    })
}

// What a merge leaves where it could not decide.
const { stdout: unmerged } = spawnSync('git', ['grep', '-nE', '^(<{7}|>{7})( |$)'], {
  cwd: root,
  encoding: 'utf8',
})
if (unmerged !== '') {
  console.error(`${unmerged}lint: conflicts that are not resolved`)
  failed = true
}

process.exit(failed ? 1 : 0)
