// Memory and threads that the system refuses, at any point of any call: an error with a code, and all as before.

interface Failures {
  countFailures(lines: string[]): number
  missing(): string | undefined
  runFailures(options: {
    mode: 'once' | 'on'
    cache: 'f32' | 'int8'
    first: number
    stride: number
    timeout: number
  }): Promise<string[]>
}
const { countFailures, missing, runFailures } = require('./allocation/run.cjs') as Failures

const lacks = missing()
const possible = lacks === undefined ? test : test.skip
const name = lacks === undefined ? '' : ` (needs ${lacks})`

// Every seventh point; npm run test:long has them all, with both caches.
possible.each([
  ['one allocation or thread start', 'int8', 'once', 3],
  ['all of them from one on', 'f32', 'on', 5],
] as const)(
  `%s fails, cache in %s: HOGWILD_OUT_OF_MEMORY, nothing changed, nothing leaked${name}`,
  async (_, cache, mode, first) => {
    const lines = await runFailures({ mode, cache, first, stride: 7, timeout: 120_000 })
    expect(countFailures(lines)).toBeGreaterThan(200)
  },
)
