// The banker's algorithm (Dijkstra, EWD 108, 1965): pages are lent such that all groups can still finish, one after
// another if need be.

/** Pages that a group has and the most it may come to have. */
export interface Claim {
  used: number
  limit: number
}

/** Whether there is an order in which each group can take all that it may, end and give everything back. */
export function isSafe(claims: readonly Claim[], pages: number): boolean {
  let free = claims.reduce((rest, { used }) => rest - used, pages)
  if (free < 0) return false
  const byNeed = [...claims].sort((a, b) => a.limit - a.used - (b.limit - b.used))
  for (const { used, limit } of byNeed) {
    if (limit - used > free) return false
    free += used
  }
  return true
}
