// `npm run test:long [-- NAME...]`: runs the files of test/long, or those named, each in a process of its own.
// A file has its seeds in it, ends with exit code 0 unless something is wrong, and prints what it did as its
// last line. The rows of what was run are written into the table in test/long/README.md, unless something failed.
'use strict'
const { spawnSync } = require('node:child_process')
const { readdirSync, readFileSync, writeFileSync } = require('node:fs')
const { cpus } = require('node:os')
const path = require('node:path')

const LIMIT_MINUTES = 60

const root = path.join(__dirname, '..')
const folder = path.join(root, 'test', 'long')
const all = readdirSync(folder)
  .filter((file) => file.endsWith('.cjs'))
  .map((file) => path.basename(file, '.cjs'))
  .sort()
const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !all.includes(name))
if (unknown.length > 0) {
  console.error(`test:long: no test ${unknown.join(', ')}; there are ${all.join(', ')}`)
  process.exit(2)
}

const rows = []
let failed = false
for (const name of wanted.length > 0 ? wanted : all) {
  const begin = performance.now()
  const { status, signal, stdout } = spawnSync(
    process.execPath,
    [path.join(folder, `${name}.cjs`)],
    {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: LIMIT_MINUTES * 60_000,
    },
  )
  const seconds = Math.round((performance.now() - begin) / 1000)
  const summary = (stdout ?? '').trim().split('\n').at(-1)
  const good = status === 0
  failed ||= !good
  const result = good ? summary : `FAILED (${signal ?? `exit code ${status}`})`
  rows.push({ name, result, seconds })
  console.log(`${name.padEnd(14)} ${String(seconds).padStart(5)} s  ${result}`)
}

if (!failed) {
  const readme = path.join(folder, 'README.md')
  const [head, table = ''] = readFileSync(readme, 'utf8').split(/^## Last run$/m)
  const known = new Map([...table.matchAll(/^\| (\w+) \| .*$/gm)].map(([row, name]) => [name, row]))
  const date = new Date().toISOString().slice(0, 10)
  const machine = `${cpus()[0]?.model ?? process.arch}, Node ${process.versions.node}`
  for (const { name, result, seconds } of rows) {
    known.set(name, `| ${name} | ${result} | ${seconds} | ${date}, ${machine} |`)
  }
  const runs = all.map((name) => known.get(name) ?? `| ${name} | not run yet | | |`)
  writeFileSync(
    readme,
    `${head}## Last run

| test | what it did | seconds | when and where |
| --- | --- | --- | --- |
${runs.join('\n')}
`,
  )
}
process.exit(failed ? 1 : 0)
