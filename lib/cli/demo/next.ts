// What to try after the demo, for those who look, who use and who build.

import { join } from 'node:path'
import { commandLine, packageRoot, seenFromHere } from '../package'

/** `reader` is of the same length each time. Paths and commands are those of where the package lies. */
export function whatNext(): { reader: string; next: string }[] {
  const file = (name: string) => seenFromHere(join(packageRoot, name))
  return [
    { reader: 'See it:  ', next: `${commandLine()} run --model Qwen/Qwen3-0.6B 'Is 97 prime?'` },
    { reader: 'Use it:  ', next: file('docs/getting-started.md') },
    { reader: 'Build it:', next: file('CONTRIBUTING.md') },
  ]
}
