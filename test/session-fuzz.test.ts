import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'

// A part of what `npm run test:long -- sessions` does.
test('damaged files of blocks: refused with an error of ours, or usable; nothing stays', async () => {
  const script = join(__dirname, 'sessions', 'fuzz.cjs')
  const { stdout } = await promisify(execFile)(process.execPath, [script, '7', '600'])
  const { inputs, read, refused, faults } = JSON.parse(stdout)
  expect(faults).toEqual([])
  expect(inputs).toBe(600)
  expect(read).toBeGreaterThan(0)
  expect(refused.HOGWILD_INVALID_SESSION).toBeGreaterThan(300)
}, 60_000)
