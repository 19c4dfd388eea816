// `npm run test:long [-- NAME...]`: runs the files of test/long, or those named, each in a process of its own.
// A file has its seeds in it, ends with exit code 0 unless something is wrong, and prints what it did as its
// last line. A run of all writes the table in test/long/README.md.
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

if (!failed && wanted.length === 0) {
  const readme = path.join(folder, 'README.md')
  const [head] = readFileSync(readme, 'utf8').split(/^## Last run$/m)
  const table = rows.map(({ name, result, seconds }) => `| ${name} | ${result} | ${seconds} |`)
  const date = new Date().toISOString().slice(0, 10)
  writeFileSync(
    readme,
    `${head}## Last run

${date}, ${cpus()[0]?.model ?? process.arch}, ${cpus().length} processors, Node ${process.versions.node}:

| test | what it did | seconds |
| --- | --- | --- |
${table.join('\n')}
`,
  )
}
process.exit(failed ? 1 : 0)
