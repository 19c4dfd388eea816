// The words that tell workers how to share one cache. Plain text: a model gets it through its chat
// template where it has one.

export const WORKER_NAMES = [
  ...['Alice', 'Bob', 'Carol', 'Dave', 'Erin', 'Frank', 'Grace', 'Heidi'],
  ...['Ivan', 'Judy', 'Ken', 'Laura', 'Mike', 'Nina', 'Oscar', 'Peggy'],
]

/** Opens the record of finished paragraphs, the last part of what all workers have in common. */
export const RECORD_HEADING = '# Finished paragraphs\n\n'
/** Stands before the others' unfinished paragraphs. */
export const OTHERS_HEADING = '\n\n# What the others are writing now\n\n'
/** Stands before a worker's own. */
export const OWN_HEADING = '\n\n# What I am writing now\n\n'

/** Forced at the start of a worker's paragraph, so that everybody knows who speaks. */
export function turnOpening(name: string, turn: number): string {
  return `**${name} [${turn}]:** `
}

export function collaborationPrompt(
  problem: string,
  names: readonly string[],
  share: boolean,
): string {
  if (!share || names.length === 1) return `Solve this problem, in short paragraphs.\n\n${problem}`
  return `You are a team of ${names.length}: ${names.join(', ')}. You solve one problem together, all at the same time. \
Each of you writes paragraphs, and each sees what the others write while they write it, word by word.

How you work:
- Begin by saying in a few words which part you take. Take a part that nobody else has taken.
- Before each paragraph, read what the others have written. Build on it, correct it, never repeat it.
- If somebody is doing what you are about to do, say so and do something else.
- Keep paragraphs short. A blank line ends a paragraph.
- When the team has found the answer, write it once as "Answer: ..." and stop.

The problem:

${problem}`
}
