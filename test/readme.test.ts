// The examples of the README and of docs/ run as they stand.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type CompilerOptions, ModuleKind, ScriptTarget, transpileModule } from 'typescript'
import * as hogwild from '../lib/index'

const root = join(__dirname, '..')
const pages = readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md'))
/** Blocks without imports are parts of programs. */
const examples = ['README.md', ...pages.map((name) => `docs/${name}`)].flatMap((document) =>
  [...readFileSync(join(root, document), 'utf8').matchAll(/```ts\n(import [\s\S]*?)```/g)].map(
    ([, code = '']) => ({ document, code }),
  ),
)
const OF_HUB = /loadModel\('[\w-]+\/[\w.-]+'/
const named = examples.map(({ document, code }): [string, string, string] => {
  const [, what = 'loadModel'] =
    /\b(collaborate|runWorkers|generate|prefill|beginPass|step)\(/.exec(code) ?? []
  return [what, document, code]
})

test.each([
  ['runWorkers', 'README.md'],
  ['collaborate', 'docs/getting-started.md'],
  ['generate', 'docs/getting-started.md'],
  ['prefill', 'docs/getting-started.md'],
  ['beginPass', 'docs/engines.md'],
  ['step', 'docs/hooks.md'],
  ['runWorkers', 'docs/sessions.md'],
])('there is an example of %s in %s', (...example) => {
  expect(named.map(([what, document]) => [what, document])).toContainEqual(example)
})

test.skip.each(named.filter(([, , code]) => OF_HUB.test(code)))(
  'the example of %s in %s needs a model of the hub',
  () => {},
)

test.each(named.filter(([, , code]) => !OF_HUB.test(code)))(
  'the example of %s in %s runs',
  async (_what, _document, code) => {
    const compilerOptions: CompilerOptions = {
      module: ModuleKind.CommonJS,
      target: ScriptTarget.ES2022,
      esModuleInterop: true,
    }
    // `await` at the top of an ES module has no CommonJS counterpart: the body becomes a function.
    const lines = code.split('\n')
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
    if (code.includes('console.log')) expect(printed.length).toBeGreaterThan(0)
  },
)
