// A plugin of typedoc. Pages are called as their first heading says and stand in the order in which docs/README.md links
// them; what it does not link comes last. Links within the site work where it is opened from the disk.
import { readFileSync } from 'node:fs'
import { posix } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Converter, PageEvent, ReflectionKind } from 'typedoc'

const contents = readFileSync(fileURLToPath(new URL('../docs/README.md', import.meta.url)), 'utf8')
/** As typedoc calls documents before they get a name: their paths in the repository, without an extension. */
const order = [
  'docs/README',
  ...[...contents.matchAll(/\]\(([^)]+)\.md\)/g)].map(([, link]) => posix.join('docs', link)),
]

/** `app`: the typedoc.Application. */
export function load(app) {
  app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
    const rank = new Map()
    for (const page of project.getReflectionsByKind(ReflectionKind.Document)) {
      const at = order.indexOf(page.name)
      rank.set(page, at < 0 ? order.length : at)
      plainHeadings(page.content)
      plainDrawings(page.content)
      const [first] = page.content
      const [, heading] = /^# ([^:\n]*)/m.exec(first.text) ?? []
      page.name = heading ?? page.name
    }
    // Beside the documents stands the reference, the last.
    const of = (one) => rank.get(one) ?? Number.POSITIVE_INFINITY
    for (const list of [project.documents, project.childrenIncludingDocuments]) {
      list?.sort((a, b) => of(a) - of(b) || 0)
    }
  })
  // The first page has a title of its own.
  app.converter.on(Converter.EVENT_RESOLVE_END, ({ project }) => {
    const [first] = project.readme ?? []
    if (first !== undefined) first.text = first.text.replace(/^# .*\n/, '')
    plainDrawings(project.readme ?? [])
  })
  // The address of the first page is given as that of its folder, which only a server makes a page of. Icons are looked up in
  // a file of their own, which browsers refuse to pages from the disk; assets/icons.js puts them into each page anyway.
  app.renderer.on(PageEvent.END, (page) => {
    page.contents = page.contents
      ?.replace(/href="((?:\.\.?\/)+)(#[^"]*)?"/g, 'href="$1index.html$2"')
      .replace(/<use href="[^"#]*icons\.svg#/g, '<use href="#')
  })
}

/** Blocks that name no language are drawings and output: typedoc would colour them as TypeScript. */
function plainDrawings(parts) {
  for (const part of parts) {
    if (part.kind === 'code') part.text = part.text.replace(/^```\n/, '```text\n')
  }
}

/** Code in a heading becomes text, since typedoc leaves it out of the heading's anchor. */
function plainHeadings(parts) {
  let line = ''
  for (const part of parts) {
    if (part.kind === 'code' && /^#+ /.test(line)) {
      part.kind = 'text'
      part.text = part.text.replaceAll('`', '')
    }
    line = `${line}${part.text}`.split('\n').at(-1)
  }
}
