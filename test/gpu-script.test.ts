// scripts/gpu.sh without a card: its programs are stand-ins that pass, fail, hang, print nonsense or are cut off. What
// it leaves behind is JSON in every case.

import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { temporaryFolder } from './fixtures'

const script = join(__dirname, '..', 'scripts', 'gpu.sh')
const figures = join(__dirname, '..', 'scripts', 'gpu-figures.cjs')
const programs = [
  'simt',
  'attention',
  'kv',
  'matmul',
  'pointwise',
  'quantised',
  'routing',
  'sample',
  'stress',
]

interface Line {
  stage?: string
  part?: string
  rc?: number
  left_out?: string | number
  end?: string
  card?: string
}

/** A card, and programs that all pass. */
function rehearsal() {
  const folder = temporaryFolder()
  const [bin, build, results] = ['bin', 'build', 'results'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ]
  for (const made of [bin, build]) mkdirSync(made)
  const put = (path: string, body: string) => {
    writeFileSync(path, `#!/usr/bin/env bash\n${body}\n`)
    chmodSync(path, 0o755)
  }
  put(
    join(bin, 'nvidia-smi'),
    'case "$*" in *compute_cap*) echo 9.0 ;; *=name*) echo "A \\"Card\\"" ;; *) echo "1, 2" ;; esac',
  )
  put(
    join(bin, 'compute-sanitizer'),
    'while [[ $1 == -* ]]; do shift; [[ $1 == -* || $1 == /* ]] || shift; done; exec "$@"',
  )
  put(join(bin, 'ncu'), 'echo "a report"')
  put(join(bin, 'npx'), 'exit 0')
  put(
    join(bin, 'python3'),
    '[[ $1 == -c ]] || echo \'{"part": "torch", "op": "attention", "us": 5}\'',
  )
  for (const name of programs)
    put(join(build, `${name}_test`), 'echo "1 tests, 1 checks, 0 failures"')
  put(join(build, 'bench'), 'echo \'{"part": "card", "name": "A card", "copy_gb_s": 3000}\'')
  const env = {
    ...process.env,
    PATH: `${bin}:${process.env.PATH}`,
    HOGWILD_GPU_BUILD: build,
    HOGWILD_GPU_RESULTS: results,
    STAGE_SECONDS: '2',
  }
  return {
    program: (name: string, body: string) => put(join(build, name), body),
    remove: (name: string) => writeFileSync(join(bin, name), '#!/bin/false\n'),
    env,
    run: (...args: string[]) => spawnSync('bash', [script, ...args], { env, encoding: 'utf8' }),
    start: (...args: string[]) =>
      spawn('bash', [script, ...args], { env, detached: true, stdio: 'ignore' }),
    /** All lines that were written; throws where one is not JSON. */
    lines: () =>
      !existsSync(results)
        ? []
        : readdirSync(results).flatMap((name) =>
            readFileSync(join(results, name), 'utf8')
              .trimEnd()
              .split('\n')
              .map((line) => JSON.parse(line) as Line),
          ),
    results,
  }
}

const stage = (lines: Line[], name: string) => lines.filter((line) => line.stage === name).at(-1)

test('all stages pass, and are not run again', () => {
  const { run, lines } = rehearsal()
  const first = run('first')
  expect(first.stdout).toContain('all passed')
  expect(first.status).toBe(0)
  for (const name of [
    'conformance',
    'kernels',
    'stress',
    'bench',
    'memcheck',
    'torch',
    'racecheck',
    'ncu',
  ]) {
    expect(stage(lines(), name)).toMatchObject({ rc: 0 })
  }
  expect(stage(lines(), 'kernels:matmul')).toMatchObject({ rc: 0 })
  expect(lines()[0]).toMatchObject({ stage: 'card', card: 'A "Card"' })
  const before = lines().length
  expect(run('first').stdout).toContain('stress: has passed')
  expect(lines().length).toBeLessThan(before + 4) // the card, and what could not be run
  // Unless they are named.
  expect(run('first', 'stress').status).toBe(0)
  expect(lines().filter((line) => line.stage === 'stress')).toHaveLength(2)
})

test.each([
  ['fails', 'echo "failed: \\"this\\" \\\\ that"; exit 1', 1],
  ['ends with a signal', 'kill -SEGV $$', 139],
  ['hangs', 'echo begun; sleep 100', 124],
  ['hangs and ignores signals', 'trap "" TERM; echo begun; while :; do sleep 1; done', 137],
  ['prints nonsense', 'head -c 5000 /dev/urandom; exit 9', 9],
])('a test that %s', (_, body, rc) => {
  const { run, lines, program } = rehearsal()
  program('matmul_test', body)
  program('stress_test', body)
  const { status } = run('first', 'conformance', 'kernels', 'stress')
  expect(status).toBe(1)
  expect(stage(lines(), 'conformance')).toMatchObject({ rc: 0 })
  expect(stage(lines(), 'kernels:kv')).toMatchObject({ rc: 0 })
  expect(stage(lines(), 'kernels:matmul')).toMatchObject({ rc })
  expect(stage(lines(), 'kernels')).toMatchObject({ rc })
  expect(stage(lines(), 'stress')).toMatchObject({ rc })
})

test.each([
  ['fails', 'echo \'{"part": "a", "us": 1}\'; echo "no card" >&2; exit 1', 1, 1],
  [
    'hangs in a line',
    'echo \'{"part": "a", "us": 1}\'; printf \'{"part": "b", "us\'; sleep 100',
    124,
    1,
  ],
  ['prints no line', 'echo hello', 1, 0],
])('a benchmark that %s', (_, body, rc, kept) => {
  const { run, lines, program } = rehearsal()
  program('bench', body)
  expect(run('first', 'bench').status).toBe(1)
  expect(stage(lines(), 'bench')).toMatchObject({ rc })
  expect(lines().filter((line) => line.part !== undefined)).toHaveLength(kept)
})

test('a run that is cut off is gone on with', async () => {
  const { run, start, lines, program } = rehearsal()
  program(
    'bench',
    'for i in $(seq 1000); do printf \'{"part": "a", "us": %d}\\n\' "$i"; sleep 0.01; done',
  )
  const child = start('first', 'conformance', 'bench', 'torch')
  while (lines().filter((line) => line.part !== undefined).length < 20) {
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  process.kill(-(child.pid as number), 'SIGKILL')
  const before = lines()
  expect(stage(before, 'conformance')).toMatchObject({ rc: 0 })
  expect(stage(before, 'bench')).toBeUndefined()
  program('bench', 'echo \'{"part": "a", "us": 1}\'')
  const again = run('first')
  expect(again.stdout).toContain('conformance: has passed')
  expect(stage(lines(), 'bench')).toMatchObject({ rc: 0 })
  expect(stage(lines(), 'torch')).toMatchObject({ rc: 0 })
})

test('what there is no time for is left out', () => {
  const { env, lines } = rehearsal()
  const { status } = spawnSync('bash', [script, 'first'], { env: { ...env, BUDGET: '6' } })
  expect(status).toBe(0)
  expect(stage(lines(), 'conformance')).toMatchObject({ rc: 0 })
  expect(stage(lines(), 'bench')?.left_out).toMatch(/needs 25 s/)
})

test('without a card nothing is run', () => {
  const { run, remove, lines } = rehearsal()
  remove('nvidia-smi')
  const { status, stderr } = run('first')
  expect(status).toBe(3)
  expect(stderr).toContain('no NVIDIA GPU was found')
  expect(lines()).toEqual([])
  expect(run('first', 'compile').status).toBe(1)
})

test('figures are written from the results, or say that there are none', () => {
  const { run, results } = rehearsal()
  const table = () => spawnSync('node', [figures, results], { encoding: 'utf8' })
  expect(table().stdout).toContain('Not measured yet')
  run('first', 'bench')
  expect(table().stdout).toContain('A "Card"')
})
