// A plugin of typedoc. Pages are called as their first heading says and stand in the order in which docs/README.md links
// them; what it does not link comes last. Links within the site work where it is opened from the disk.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Converter, PageEvent, ReflectionKind } from 'typedoc'

const contents = readFileSync(fileURLToPath(new URL('../docs/README.md', import.meta.url)), 'utf8')
const links = [...contents.matchAll(/\]\(([^)]+)\.md\)/g)].map(([, link]) => link)

/** `app`: the typedoc.Application. */
export function load(app) {
  app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
    const rank = new Map()
    for (const page of project.getReflectionsByKind(ReflectionKind.Document)) {
      const at = links.findIndex((link) => link.split('/').at(-1) === page.name)
      rank.set(page, page.name === 'README' ? -1 : at < 0 ? links.length : at)
      plainHeadings(page.content)
      const [first] = page.content
      const [, heading] = /^# ([^:\n]*)/m.exec(first.text) ?? []
      page.name = heading ?? page.name
      first.text = first.text.replace(/^# .*\n/, '')
    }
    project.documents?.sort((a, b) => rank.get(a) - rank.get(b))
  })
  // The address of the first page is given as that of its folder, which only a server makes a page of.
  app.renderer.on(PageEvent.END, (page) => {
    page.contents = page.contents?.replace(/href="((?:\.\.?\/)+)(#[^"]*)?"/g, 'href="$1index.html$2"')
  })
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
