// Which things of two lists belong together: an assignment of the largest total weight.

/**
 * For each row of `weights`, all of which are at least 0, its column in an assignment of the largest sum, or undefined where
 * its weight would be 0. The Hungarian method with potentials, O(n³).
 */
export function matchPairs(weights: readonly (readonly number[])[]): (number | undefined)[] {
  const rows = weights.length
  const size = Math.max(rows, ...weights.map((row) => row.length))
  const cost = (row: number, column: number) => -(weights[row]?.[column] ?? 0)
  // Rows and columns from 1; column 0 stands for "not yet".
  const rowPotential = new Array<number>(size + 1).fill(0)
  const columnPotential = new Array<number>(size + 1).fill(0)
  const rowOf = new Array<number>(size + 1).fill(0)
  for (let row = 1; row <= size; row++) {
    const reached = new Array<boolean>(size + 1).fill(false)
    const slack = new Array<number>(size + 1).fill(Number.POSITIVE_INFINITY)
    const before = new Array<number>(size + 1).fill(0)
    rowOf[0] = row
    let column = 0
    do {
      reached[column] = true
      const current = rowOf[column] as number
      let [least, next] = [Number.POSITIVE_INFINITY, 0]
      for (let other = 1; other <= size; other++) {
        if (reached[other]) continue
        const reduced =
          cost(current - 1, other - 1) - at(rowPotential, current) - at(columnPotential, other)
        if (reduced < at(slack, other)) {
          slack[other] = reduced
          before[other] = column
        }
        if (at(slack, other) < least) [least, next] = [at(slack, other), other]
      }
      for (let other = 0; other <= size; other++) {
        if (reached[other]) {
          rowPotential[at(rowOf, other)] = at(rowPotential, at(rowOf, other)) + least
          columnPotential[other] = at(columnPotential, other) - least
        } else slack[other] = at(slack, other) - least
      }
      column = next
    } while (rowOf[column] !== 0)
    for (; column !== 0; column = at(before, column)) rowOf[column] = at(rowOf, at(before, column))
  }
  const columnOf = new Array<number | undefined>(rows).fill(undefined)
  for (let column = 1; column <= size; column++) {
    const row = at(rowOf, column) - 1
    if ((weights[row]?.[column - 1] ?? 0) > 0) columnOf[row] = column - 1
  }
  return columnOf
}

function at(list: readonly number[], index: number): number {
  return list[index] as number
}
