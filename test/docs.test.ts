// Links and paths in the documents lead somewhere.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

const root = join(__dirname, '..')
const documents = [
  'README.md',
  'CONTRIBUTING.md',
  'cuda/simt/README.md',
  'examples/README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
]
const read = (path: string) => readFileSync(join(root, path), 'utf8')

/** Of a heading, as GitHub makes it. */
function anchor(heading: string): string {
  const text = heading.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, '')
  return text.trim().replaceAll(' ', '-')
}

function anchors(markdown: string): string[] {
  return [...markdown.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) => anchor(heading))
}

test.each(documents)('links of %s', (document) => {
  const links = [...read(document).matchAll(/\]\(([^)\s]+)\)/g)].map(([, link = '']) => link)
  const dead = links
    .filter((link) => !/^https?:/.test(link))
    .filter((link) => {
      const [path = '', fragment] = link.split('#')
      const target = path === '' ? document : join(dirname(document), path)
      if (!existsSync(join(root, target))) return true
      return fragment !== undefined && !anchors(read(target)).includes(fragment)
    })
  expect(dead).toEqual([])
})

test('docs/README.md links every page', () => {
  const links = [...read('docs/README.md').matchAll(/\]\(([\w-]+\.md)\)/g)].map(([, page]) => page)
  const pages = readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md'))
  expect([...links, 'README.md'].sort()).toEqual(pages.sort())
})

test.each(documents)('paths in %s', (document) => {
  const paths = [
    ...read(document).matchAll(
      /`((?:\.ci|bench|cuda|docs|examples|lib|native|scripts|test|train)\/[\w./-]+)`/g,
    ),
  ]
  const missing = paths.map(([, path = '']) => path).filter((path) => !existsSync(join(root, path)))
  expect(missing).toEqual([])
})

test.each([...documents, 'CHANGELOG.md'])('%s is merged', (document) => {
  expect(read(document)).not.toMatch(/^(<<<<<<<|=======|>>>>>>>)/m)
})

test('scripts that CONTRIBUTING.md names are in package.json', () => {
  const { scripts } = JSON.parse(read('package.json'))
  const named = [...read('CONTRIBUTING.md').matchAll(/npm (?:run )?([a-z][\w:]*)/g)].map(
    ([, name = '']) => name,
  )
  expect(named.length).toBeGreaterThan(5)
  expect(named.filter((name) => name !== 'ci' && !(name in scripts))).toEqual([])
})

test('sections of docs/semantics.md that comments cite', () => {
  const sections = [...read('docs/semantics.md').matchAll(/^## (.*)$/gm)].map(([, name]) => name)
  const files = ['native/cache/kv_cache.h', 'native/device/ops.h']
  const cited = files.flatMap((file) =>
    [...read(file).matchAll(/semantics\.md, "([^"]+)"/g)].map(([, name]) => name),
  )
  expect(cited.length).toBeGreaterThan(0)
  expect(cited.filter((name) => !sections.includes(name))).toEqual([])
})
