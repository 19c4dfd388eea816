// Names for workers that are given none. Apart from the rest, so that the command line's help needs no addon.

export const WORKER_NAMES: readonly string[] = [
  ...['Alice', 'Bob', 'Carol', 'Dave', 'Erin', 'Frank', 'Grace', 'Heidi'],
  ...['Ivan', 'Judy', 'Ken', 'Laura', 'Mike', 'Nina', 'Oscar', 'Peggy'],
]
