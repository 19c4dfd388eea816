// A row of the evaluation: the same workers on many lists.

import { type DemoTask, type Score, score } from '../demo/task'
import { type DemoModel, type Disturbances, finishTask } from '../demo/team'

export interface RowOptions {
  section: string
  title: string
  tasks: readonly DemoTask[]
  names: readonly string[]
  share?: boolean
  /** One per task. */
  disturbances?: readonly Disturbances[]
  /** One worker on the same lists. */
  alone?: Row | undefined
}

export interface Row {
  section: string
  title: string
  /** Share of the prompts in which every item got an answer. */
  complete: number
  /** Mean steps until every item had an answer, over the complete prompts; null if there is none. */
  steps: number | null
  /** `steps` of one worker over these. */
  speed_up: number | null
  /** Means over all prompts. */
  steps_until_stopped: number
  tokens: number
  yields: number
  /** Shares of the items. */
  done_twice: number
  undone: number
  /** Share of the answered items. */
  right: number
}

export async function measure(demo: DemoModel, options: RowOptions): Promise<Row> {
  const { section, title, tasks, names, share = true, disturbances, alone } = options
  const scores: Score[] = []
  for (const [index, task] of tasks.entries()) {
    const { blocks } = await finishTask(demo, task, names, share, disturbances?.[index])
    scores.push(score(task, blocks))
  }
  const sum = (values: number[]) => values.reduce((total, value) => total + value, 0)
  const total = (key: 'items' | 'steps' | 'tokens' | 'yields' | 'twice' | 'undone' | 'right') =>
    sum(scores.map((one) => one[key]))
  const complete = scores.flatMap(({ answeredIn }) =>
    answeredIn === undefined ? [] : [answeredIn],
  )
  const steps = complete.length > 0 ? sum(complete) / complete.length : null
  return {
    section,
    title,
    complete: complete.length / scores.length,
    steps,
    speed_up: steps !== null && alone?.steps ? alone.steps / steps : null,
    steps_until_stopped: total('steps') / scores.length,
    tokens: total('tokens') / scores.length,
    yields: total('yields') / scores.length,
    done_twice: total('twice') / total('items'),
    undone: total('undone') / total('items'),
    right: total('right') / Math.max(1, total('items') - total('undone')),
  }
}

const LEGEND = `"Steps" until every item has its answer, mean over the lists in which every item got one; "speed-up"
against one worker on the same lists; "stopped" when the last worker halted; "twice" items answered
more than once, "undone" items without an answer, "right" share of the answered items whose first
answer is right.`

export function formatMarkdown(rows: readonly Row[]): string {
  const lines = [LEGEND]
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`
  for (const [index, row] of rows.entries()) {
    if (row.section !== rows[index - 1]?.section) {
      lines.push('')
      lines.push(
        `| ${row.section} | steps | speed-up | stopped | tokens | yields | twice | undone | right |`,
      )
      lines.push('| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |')
    }
    const cells = [
      row.title,
      row.steps?.toFixed(1) ?? '-',
      row.speed_up === null ? '' : `${row.speed_up.toFixed(2)}x`,
      row.steps_until_stopped.toFixed(1),
      row.tokens.toFixed(0),
      row.yields.toFixed(2),
      percent(row.done_twice),
      percent(row.undone),
      percent(row.right),
    ]
    lines.push(`| ${cells.join(' | ')} |`)
  }
  return lines.join('\n')
}
