// The random model of `hogwild bench`. Its writer needs the addon, which only the built package (dist) finds.

import { join } from 'node:path'
import { root } from './machine'

export const { withRandomLlama } = require(
  join(root, 'dist', 'cli', 'bench', 'random-llama'),
) as typeof import('../lib/cli/bench/random-llama')
