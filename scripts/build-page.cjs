// Puts the page of a trace together (part of `npm run build:ts`): the modules of lib/timeline/page, in the order in which they
// need one another, become one script without imports; style sheet and script go into the HTML. What is left open are the
// title and the data, which `traceToHtml` fills in. Writes dist/timeline/page.html.
'use strict'
const { createHash } = require('node:crypto')
const { mkdirSync, readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const ts = require('typescript')

const root = path.join(__dirname, '..')
const page = path.join(root, 'lib', 'timeline', 'page')
const target = path.join(root, 'dist', 'timeline', 'page.html')

const IMPORT = /^import [^'"]*['"](\.[^'"]+)['"];?$/gm
const EXPORT = /^export (?=(?:async )?(?:class|const|function|let)\b)/gm

/** Modules by path, each behind those that it imports. */
const modules = new Map()

function add(file) {
  if (modules.has(file)) return
  const { outputText } = ts.transpileModule(readFileSync(file, 'utf8'), {
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ES2022,
      removeComments: true,
      verbatimModuleSyntax: false,
    },
    fileName: file,
  })
  modules.set(file, undefined)
  for (const [, name] of outputText.matchAll(IMPORT))
    add(path.join(path.dirname(file), `${name}.ts`))
  modules.delete(file)
  modules.set(
    file,
    outputText
      .replace(IMPORT, '')
      .replace(EXPORT, '')
      .replace(/^export \{\};$/gm, ''),
  )
}

add(path.join(page, 'main.ts'))
const script = `'use strict';(() => {\n${[...modules.values()].join('\n')}})()\n`
const left = /^\s*(?:import|export)\b.*$/m.exec(script)
if (left !== null) throw new Error(`build-page: cannot join modules with "${left[0]}"`)
if (/<\/script|<!--/i.test(script)) throw new Error('build-page: the script would end its element')
// Names of different modules are in one scope: two of the same name are a syntax error here.
new Function(script)

const hash = `sha256-${createHash('sha256').update(script).digest('base64')}`
const style = readFileSync(path.join(page, 'style.css'), 'utf8')
const parts = {
  '%HASH%': hash,
  '<style></style>': `<style>${style}</style>`,
  '<script></script>': `<script>${script}</script>`,
}
const html = readFileSync(path.join(page, 'page.html'), 'utf8').replace(
  /%HASH%|<(style|script)><\/\1>/g,
  (place) => parts[place],
)
mkdirSync(path.dirname(target), { recursive: true })
writeFileSync(target, html)
