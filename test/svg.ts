// Reads drawings: whether they are well-formed, what is in them, and where.

export interface Element {
  name: string
  attributes: Record<string, string>
  children: Element[]
  text: string
  parent: Element | undefined
}

const MARKUP =
  /<\?[^>]*\?>|<!--[\s\S]*?-->|<\/([\w:]+)\s*>|<([\w:]+)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>|([^<]+)/y

/** The root element. Throws for what is not well-formed XML of elements, attributes and text. */
export function parseSvg(svg: string): Element {
  const top: Element = { name: '', attributes: {}, children: [], text: '', parent: undefined }
  let current = top
  MARKUP.lastIndex = 0
  while (MARKUP.lastIndex < svg.length) {
    const at = MARKUP.lastIndex
    const match = MARKUP.exec(svg)
    if (match === null) throw new Error(`no XML: ${svg.slice(at, at + 60)}`)
    const [, closed, opened, attributes = '', empty, text] = match
    if (closed !== undefined) {
      if (current.name !== closed) throw new Error(`<${current.name}> is closed by </${closed}>`)
      current = current.parent as Element
    } else if (opened !== undefined) {
      const pairs = [...attributes.matchAll(/([\w:-]+)="([^"]*)"/g)].map(
        ([, name = '', value = '']) => [name, unescapeText(value)] as const,
      )
      if (new Set(pairs.map(([name]) => name)).size < pairs.length) throw new Error('twice')
      const element = {
        ...{ name: opened, attributes: Object.fromEntries(pairs), children: [], text: '' },
        parent: current,
      }
      current.children.push(element)
      if (empty === '') current = element
    } else if (text !== undefined) current.text += unescapeText(text)
  }
  const [root] = top.children
  if (current !== top || root === undefined || top.children.length > 1 || top.text.trim() !== '') {
    throw new Error('not one element that is closed')
  }
  return root
}

function unescapeText(text: string): string {
  const known: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" }
  return text.replace(/&(\w*);?/g, (whole, name: string) => {
    if (known[name] === undefined || !whole.endsWith(';')) throw new Error(`no entity: ${whole}`)
    return known[name]
  })
}

/** An element and all in it. */
export function elementsOf(element: Element): Element[] {
  return [element, ...element.children.flatMap(elementsOf)]
}

/** What is painted of a leaf, in pixels of the drawing. */
export interface Box {
  element: Element
  left: number
  right: number
  top: number
  bottom: number
}

/** The boxes of paths, lines, rectangles and texts. Fonts differ: texts are taken as wide as they are in a wide one. */
export function boxesOf(root: Element): Box[] {
  return elementsOf(root).flatMap((element) => {
    const points = pointsOf(element)
    if (points.length === 0) return []
    const moved = points.map(([x, y]) => placed(element, x, y))
    const [xs, ys] = [moved.map(([x]) => x), moved.map(([, y]) => y)]
    const [left, right] = [Math.min(...xs), Math.max(...xs)]
    return [{ element, left, right, top: Math.min(...ys), bottom: Math.max(...ys) }]
  })
}

/** Of Verdana, about the widest of the usual ones; of the height. */
const WIDE = 0.6

function pointsOf(element: Element): [number, number][] {
  const { name, attributes, text, parent } = element
  const number = (key: string) => Number(attributes[key] ?? 0)
  if (name === 'rect') {
    const [x, y] = [number('x'), number('y')]
    return [
      [x, y],
      [x + number('width'), y + number('height')],
    ]
  }
  if (name === 'line') {
    return [
      [number('x1'), number('y1')],
      [number('x2'), number('y2')],
    ]
  }
  if (name === 'path') return pathPoints(attributes.d ?? '')
  if ((name !== 'text' && name !== 'tspan') || text === '') return []
  // A line of several is as its element says, and so far below.
  const style = name === 'text' ? attributes : (parent?.attributes ?? {})
  const size = Number.parseFloat(style['font-size'] ?? '')
  const width = WIDE * size * text.length
  const left = { start: 0, middle: -width / 2, end: -width }[style['text-anchor'] ?? 'start']
  const base = number('dy') * (parent?.children.indexOf(element) ?? 0)
  return [
    [left as number, base - 0.75 * size],
    [(left as number) + width, base + 0.25 * size],
  ]
}

/** The ends of its lines and arcs. */
function pathPoints(d: string): [number, number][] {
  const points: [number, number][] = []
  let [x, y] = [0, 0]
  for (const [, command = '', rest = ''] of d.matchAll(/([a-zA-Z])([^a-zA-Z]*)/g)) {
    const numbers = (rest.match(/-?[\d.]+(e-?\d+)?/g) ?? []).map(Number) as number[]
    const isRelative = command === command.toLowerCase()
    const [dx, dy] = isRelative ? [x, y] : [0, 0]
    const kind = command.toUpperCase()
    if (kind === 'H') x = dx + (numbers.at(-1) as number)
    else if (kind === 'V') y = dy + (numbers.at(-1) as number)
    else if (['M', 'L', 'A', 'C'].includes(kind)) {
      x = dx + (numbers.at(-2) as number)
      y = dy + (numbers.at(-1) as number)
    } else if (kind !== 'Z') throw new Error(`a path with ${command}`)
    points.push([x, y])
  }
  return points
}

function placed(element: Element, x: number, y: number): [number, number] {
  let [atX, atY] = [x, y]
  for (let one: Element | undefined = element; one !== undefined; one = one.parent) {
    const transform = one.attributes.transform
    if (transform === undefined) continue
    const found = /^translate\((-?[\d.]+)(?:,\s*(-?[\d.]+))?\)$/.exec(transform)
    if (found === null) throw new Error(`transform="${transform}"`)
    atX += Number(found[1])
    atY += Number(found[2] ?? 0)
  }
  return [atX, atY]
}
