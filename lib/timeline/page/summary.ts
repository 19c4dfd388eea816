// The top of the page: what run it is, in a few numbers.

import { byId } from './chart'
import type { Lives } from './lives'
import { element } from './panel'
import { counted, inDigits, inTime } from './text'
import type { Timeline } from './timeline'

export function showSummary(timeline: Timeline, { end }: Lives): void {
  const { head, steps } = timeline.data
  const tokens = steps.counts.reduce((sum, count) => sum + count, 0)
  const computing = steps.milliseconds.reduce((sum, one) => sum + one, 0)
  const facts: [string, string][] = []
  if (head === null) facts.push(['kind', 'script'])
  else {
    facts.push(['model', head.architecture.replace(/ForCausalLM$/, '')])
    facts.push(['layout', head.share ? head.layout : `${head.layout}, not shared`])
  }
  facts.push(['workers', inDigits(timeline.workers)])
  facts.push(['steps', inDigits(timeline.steps)])
  facts.push(['tokens', inDigits(tokens)])
  if (timeline.hasTimes) {
    facts.push(['duration', inTime(timeline.duration)])
    if (computing > 0) {
      facts.push(['step', inTime(computing / timeline.steps)])
      facts.push(['tokens/s', inDigits(tokens / (computing / 1e3))])
    }
  }
  const list = byId('summary')
  for (const [name, value] of facts) {
    list.append(
      element('div', { children: [element('dt', { text: name }), element('dd', { text: value })] }),
    )
  }
  if (head === null) return
  const began = new Date(head.began)
  const when = Number.isNaN(began.getTime()) ? head.began : began.toLocaleString()
  const ended =
    end === undefined
      ? 'The trace ends before the run does.'
      : `${counted(end.completionTokens, 'token')} written, ${inDigits(end.promptTokens)} given, ${inDigits(end.reusedTokens)} of them in store.`
  byId('about').textContent = `Began ${when}. Model ${head.model.slice(0, 12)}. ${ended}`
}
