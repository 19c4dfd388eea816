#!/usr/bin/env node
// Looks whether every link of a folder of HTML pages leads to a file in it and, where it has a fragment, to an element with
// that id. Pages are opened from the disk, so a link to a folder leads nowhere.
//
//   node scripts/check-site.cjs FOLDER
'use strict'
const fs = require('node:fs')
const path = require('node:path')

const folder = path.resolve(process.argv[2] ?? '')
const pages = fs
  .readdirSync(folder, { recursive: true })
  .map(String)
  .filter((file) => file.endsWith('.html'))
const plainText = (text) =>
  text.replaceAll('&amp;', '&').replaceAll('&quot;', '"').replaceAll('&#39;', "'")

/** @type {Map<string, Set<string>>} */
const known = new Map()
/** Ids of a page. */
function idsOf(file) {
  const ids =
    known.get(file) ??
    new Set(
      [...fs.readFileSync(file, 'utf8').matchAll(/ id="([^"]+)"/g)].map(([, id]) => plainText(id)),
    )
  known.set(file, ids)
  return ids
}

let links = 0
const dead = new Set()
for (const page of pages) {
  const file = path.join(folder, page)
  const text = fs.readFileSync(file, 'utf8').replace(/<use [^>]*>/g, '') // icons, which a script brings
  for (const [, raw] of text.matchAll(/ (?:href|src)="([^"]*)"/g)) {
    const link = plainText(raw)
    if (/^[a-z]+:/.test(link)) continue
    links++
    const [to, fragment] = link.split('#')
    const target = to === '' ? file : path.join(path.dirname(file), decodeURIComponent(to))
    const isFile = fs.statSync(target, { throwIfNoEntry: false })?.isFile() ?? false
    const isThere =
      isFile &&
      (!fragment || !target.endsWith('.html') || idsOf(target).has(decodeURIComponent(fragment)))
    if (!isThere) dead.add(`${page} → ${link}`)
  }
}
for (const one of dead) console.error(one)
console.log(`${pages.length} pages, ${links} links, ${dead.size} dead`)
process.exitCode = dead.size > 0 || pages.length === 0 ? 1 : 0
