// Lists of words and disturbances of the evaluation, drawn with fixed seeds.

import { between, random, sample } from '../../experiment/random'
import { createTask, type DemoTask, LABELS } from '../demo/task'
import type { Disturbances } from '../demo/team'

export function wordTasks(
  words: readonly string[],
  items: number,
  prompts: number,
  seed: number,
  shuffled = false,
): DemoTask[] {
  const next = random(1000 * seed + items)
  return Array.from({ length: prompts }, () => {
    const list = sample(words, items, next)
    return createTask(list, shuffled ? sample(LABELS, items, next) : undefined)
  })
}

export function longWords(words: readonly string[]): string[] {
  return words.filter((word) => word.length >= 8)
}

/** Alice begins at once, everybody else 1 to `latest` steps later; one set per prompt. */
export function randomStarts(
  names: readonly string[],
  prompts: number,
  latest: number,
  seed: number,
): Disturbances[] {
  const next = random(seed)
  return Array.from({ length: prompts }, () => ({
    start: Object.fromEntries(names.slice(1).map((name) => [name, between(1, latest, next)])),
  }))
}

/** One worker is taken away in step 3 to 20. */
export function randomStops(
  names: readonly string[],
  prompts: number,
  mark: boolean,
  seed: number,
): Disturbances[] {
  const next = random(seed)
  return Array.from({ length: prompts }, () => ({
    stop: {
      name: names[between(0, names.length - 1, next)] as string,
      step: between(3, 20, next),
      mark,
    },
  }))
}
