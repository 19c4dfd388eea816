// The real model that some tests need: SmolLM2-135M-Instruct in Q4_1, 98 MB, which is not in the repository. It is looked for in
// `$HOGWILD_SHARED/models`, or in `shared/models` beside the repository; tests are skipped where it is not.

import { existsSync } from 'node:fs'
import { join } from 'node:path'

const NAME = 'SmolLM2-135M-Instruct.Q4_1.gguf'
const shared = process.env.HOGWILD_SHARED ?? join(__dirname, '..', '..', 'shared')

export const realModel = join(shared, 'models', NAME)

const isThere = existsSync(realModel)

/** `describe`, or a skipped one whose name says what is missing. */
export function describeReal(name: string, tests: () => void): void {
  if (isThere) describe(name, tests)
  else describe.skip(`${name} (needs ${NAME}, see real-model.ts)`, tests)
}
