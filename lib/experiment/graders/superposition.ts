// Which of several tasks an answer solves, where the examples in a prompt mix them (task superposition, arXiv 2410.05603). Over
// many seeds, the means of the metrics are the shares of the tasks.

import { HogwildError } from '../../errors'
import { checkObject } from '../../validate'
import type { Grade } from '../item'
import { exact } from './answers'

/**
 * `expected`: the right answer of each task, by its name. The score is 1 where the answer is that of any task, and the metric
 * of that task is 1; tasks with the same answer share it.
 */
export function superposition(answer: string | undefined, expected: unknown): Grade {
  const tasks = Object.entries(checkObject(expected, 'the answers of the tasks'))
  const solved = tasks.filter(([, right]) => exact(answer, right)).map(([task]) => task)
  const share = solved.length === 0 ? 0 : 1 / solved.length
  return {
    score: solved.length > 0,
    metrics: Object.fromEntries(tasks.map(([task]) => [task, solved.includes(task) ? share : 0])),
  }
}

/**
 * The Kullback-Leibler divergence of two distributions over the same tasks, in nats: how far `shares` is from `mixture`.
 * Both are scaled to a sum of 1. Infinite where a task of the mixture has no share. Throws HOGWILD_INVALID_ARGUMENT.
 */
export function divergence(
  mixture: Readonly<Record<string, number>>,
  shares: Readonly<Record<string, number>>,
): number {
  const [wanted, given] = [scaled(mixture, 'mixture'), scaled(shares, 'shares')]
  let sum = 0
  for (const [task, share] of Object.entries(wanted)) {
    if (share > 0) sum += share * Math.log(share / (given[task] ?? 0))
  }
  return sum
}

function scaled(weights: Readonly<Record<string, number>>, name: string): Record<string, number> {
  const entries = Object.entries(weights)
  const sum = entries.reduce((total, [, weight]) => total + weight, 0)
  if (sum > 0 && entries.every(([, weight]) => weight >= 0 && Number.isFinite(weight))) {
    return Object.fromEntries(entries.map(([task, weight]) => [task, weight / sum]))
  }
  const message = `expected ${name} to be numbers of at least 0, not all of them 0`
  throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}
