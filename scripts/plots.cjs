#!/usr/bin/env node
// Draws the committed results again: of examples/experiments/*.results, in plots beside them, and of benchmarks, in
// bench/results/plots.
//
//   npm run plots               (node scripts/plots.cjs [--check], from what `npm run build:ts` compiled)
//
// --check: changes nothing and fails where a plot is not what the results give.
'use strict'
const { execFileSync } = require('node:child_process')
const { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..')
const main = path.join(root, 'dist', 'cli', 'main.js')
const [experiments, benchmarks] = ['examples/experiments', 'bench/results']

/** Folders of plots, and the commands that draw them. */
const all = [
  ...readdirSync(path.join(root, experiments))
    .filter((name) => name.endsWith('.results'))
    .map((name) => path.join(experiments, name))
    .map((results) => ({ plots: `${results}/plots`, args: ['experiment', 'plot', results] })),
  {
    plots: `${benchmarks}/plots`,
    args: [
      ...['bench', 'plot'],
      ...readdirSync(path.join(root, benchmarks))
        .filter((name) => /^(bench|attention|peers)-.*\.json$/.test(name))
        .map((name) => path.join(benchmarks, name)),
    ],
  },
]

function draw(args, out) {
  execFileSync(process.execPath, [main, ...args, '--out', out], { cwd: root })
}

/** What is in a folder, by name; nothing where there is none. */
function contents(folder) {
  const names = existsSync(folder) ? readdirSync(folder) : []
  return new Map(names.map((name) => [name, readFileSync(path.join(folder, name), 'utf8')]))
}

/** The names of files that are not the same in both. */
function differing(folder, other) {
  const [one, two] = [contents(folder), contents(other)]
  return [...new Set([...one.keys(), ...two.keys()])].filter(
    (name) => one.get(name) !== two.get(name),
  )
}

for (const { plots, args } of all) {
  const folder = path.join(root, plots)
  if (!process.argv.includes('--check')) {
    rmSync(folder, { recursive: true, force: true })
    draw(args, plots)
    continue
  }
  const drawn = mkdtempSync(path.join(tmpdir(), 'hogwild-plots-'))
  try {
    draw(args, drawn)
    const different = differing(folder, drawn)
    if (different.length > 0) {
      console.error(
        `${plots}: ${different.join(', ')} are not what the results give: npm run plots`,
      )
      process.exitCode = 1
    }
  } finally {
    rmSync(drawn, { recursive: true, force: true })
  }
}
