// Scripts of examples/, for tests that call their functions.

import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ModuleKind, ScriptTarget, transpileModule } from 'typescript'
import * as hogwild from '../lib'

const root = join(__dirname, '../examples')

/** What a script exports; `path` in examples/. Jest runs no ES modules. */
export function loadExample<Exports>(path: string): Exports {
  const { outputText } = transpileModule(readFileSync(join(root, path), 'utf8'), {
    compilerOptions: {
      module: ModuleKind.CommonJS,
      target: ScriptTarget.ES2022,
      esModuleInterop: true,
    },
  })
  const exports = {}
  const required = (id: string) => {
    if (id === 'hogwild') return hogwild
    return id.startsWith('.') ? loadExample(join(dirname(path), id)) : require(id)
  }
  new Function('require', 'exports', outputText)(required, exports)
  return exports as Exports
}
