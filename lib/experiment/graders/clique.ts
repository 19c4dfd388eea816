// The largest set of things that all go together: the hard part of comparing workflows. Exact, for tens of them.

/**
 * The size of the largest clique among `size` nodes; `adjacent` is symmetric. Branch and bound: as many colours as it takes
 * to give neighbours different ones bound what a set of candidates can still add.
 */
export function largestClique(size: number, adjacent: (a: number, b: number) => boolean): number {
  let best = 0
  const expand = (candidates: readonly number[], chosen: number) => {
    best = Math.max(best, chosen)
    const classes = colour(candidates, adjacent)
    // Nodes of later colours first: once too few colours are left, nothing larger can be found.
    const order = classes.flatMap((nodes, colours) => nodes.map((node) => ({ node, colours })))
    for (let i = order.length - 1; i >= 0; i--) {
      const { node, colours } = order[i] as (typeof order)[number]
      if (chosen + colours + 1 <= best) return
      const left = order.slice(0, i).map((other) => other.node)
      expand(
        left.filter((other) => adjacent(node, other)),
        chosen + 1,
      )
    }
  }
  expand(
    Array.from({ length: size }, (_, node) => node),
    0,
  )
  return best
}

/** Sets of nodes none of which are adjacent, greedily. */
function colour(nodes: readonly number[], adjacent: (a: number, b: number) => boolean): number[][] {
  const classes: number[][] = []
  for (const node of nodes) {
    const free = classes.find((others) => others.every((other) => !adjacent(node, other)))
    if (free === undefined) classes.push([node])
    else free.push(node)
  }
  return classes
}
