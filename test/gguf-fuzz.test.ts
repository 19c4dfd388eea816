import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'

// A part of what `npm run test:long -- gguf` does.
test.each([
  ['cut at each byte', 1, 0],
  ['damaged', 7, 2000],
])(
  'GGUF files, %s: read, or refused with an error of ours',
  async (_, seed, count) => {
    const script = join(__dirname, 'gguf', 'fuzz.cjs')
    const { stdout } = await promisify(execFile)(process.execPath, [script, `${seed}`, `${count}`])
    const { inputs, read, refused, faults } = JSON.parse(stdout)
    expect(faults).toEqual([])
    expect(inputs).toBeGreaterThanOrEqual(count)
    expect(read).toBeGreaterThan(0)
    expect(refused.HOGWILD_INVALID_MODEL).toBeGreaterThan(1000)
  },
  120_000,
)
