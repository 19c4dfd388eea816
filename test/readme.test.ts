// The README's examples run as they stand.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type CompilerOptions, ModuleKind, ScriptTarget, transpileModule } from 'typescript'
import * as hogwild from '../lib/index'

const readme = readFileSync(join(__dirname, '../README.md'), 'utf8')
const examples = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code as string)

test('there is an example for one worker alone, for a collaboration and for each of the three levels', () => {
  expect(examples).toHaveLength(5)
})

test.each(
  examples.map((code) => [/\b(collaborate|runWorkers|generate|prefill|beginPass)\b/.exec(code)?.[1], code]),
)('the example of %s runs', async (_, code) => {
  const compilerOptions: CompilerOptions = {
    module: ModuleKind.CommonJS,
    target: ScriptTarget.ES2022,
    esModuleInterop: true,
  }
  // `await` at the top of an ES module has no CommonJS counterpart: the body becomes a function.
  const lines = (code as string).split('\n')
  const imports = lines.filter((line) => line.startsWith('import ')).join('\n')
  const body = lines.filter((line) => !line.startsWith('import ')).join('\n')
  const source = `${imports}\nexport async function example() {\n${body}\n}`
  const { outputText } = transpileModule(source, { compilerOptions })
  const exports: { example?: () => Promise<void> } = {}
  const printed: unknown[][] = []
  const run = new Function('require', 'exports', 'console', outputText)
  run((id: string) => (id === 'hogwild' ? hogwild : require(id)), exports, {
    log: (...values: unknown[]) => printed.push(values),
  })
  await exports.example?.()
  if ((code as string).includes('console.log')) expect(printed.length).toBeGreaterThan(0)
})
