// `hogwild inspect`: what a model is and what it takes.

import { type Dtype, type InspectedModel, inspectModel, type ModelReport } from '../index'
import { escapeUnsafe, inBytes } from '../printable'
import { findWithProgress } from './model'
import { formatTable } from './table'
import { print, printJson } from './terminal'

export interface InspectCommandOptions {
  context?: number
  workers: number
  dtype: 'auto' | Dtype
  ignoreField?: string[]
  quiet?: boolean
  json?: boolean
}

export async function inspect(name: string, options: InspectCommandOptions): Promise<void> {
  const { context, workers, dtype, ignoreField: ignoreFields } = options
  const path = await findWithProgress(name, options)
  const report = await inspectModel(path, { context, workers, dtype, ignoreFields })
  if (options.json) printJson(report)
  else printReport(report)
  if (report.refusals.length > 0) process.exitCode = 1
}

function printReport({ path, model, tokenizer, refusals, warnings }: ModelReport): void {
  const facts: [string, string][] = [['model', path]]
  if (model !== undefined) facts.push(...modelFacts(model))
  if (tokenizer !== undefined) {
    const { kind, tokens, chatTemplates } = tokenizer
    facts.push(
      ['tokenizer', `${kind}, ${tokens} tokens`],
      ['chat template', chatTemplates.length === 0 ? 'none' : chatTemplates.join(', ')],
    )
  }
  if (model !== undefined) facts.push(...memoryFacts(model))
  for (const { message, code } of warnings) facts.push(['warning', `${message} [${code}]`])
  for (const { part, message, code } of refusals) {
    facts.push(['refused', `${part}: ${message} [${code}]`])
  }
  const width = Math.max(...facts.map(([name]) => name.length))
  for (const [name, fact] of facts) print(`${name.padEnd(width)}  ${escapeUnsafe(fact)}`)
  if (model === undefined) return
  print()
  const rows = model.roles.map(({ role, format, tensors, bytes }) => [
    role,
    format,
    String(tensors),
    inBytes(bytes),
  ])
  for (const line of formatTable(['weights', 'format', 'tensors', 'size'], rows)) print(line)
}

function modelFacts({ config, parameters, storedBytes }: InspectedModel): [string, string][] {
  const { architecture, layers, hiddenSize, queryHeads, kvHeads, headDim } = config
  return [
    ['family', architecture],
    ['parameters', `${(parameters / 1e6).toFixed(parameters < 1e8 ? 1 : 0)} M`],
    ['weights', inBytes(storedBytes)],
    [
      'shape',
      `${layers.length} layers of ${hiddenSize}, ${queryHeads}/${kvHeads} heads of ${headDim}, vocabulary ${config.vocabSize}`,
    ],
    ['context', config.maxPositions === undefined ? 'not said' : `${config.maxPositions} tokens`],
  ]
}

function memoryFacts({ cacheBytesPerToken, memory }: InspectedModel): [string, string][] {
  const { context, workers, weights, cache, available } = memory
  const byDtype = (bytes: Record<Dtype, number>) =>
    Object.entries(bytes)
      .map(([dtype, value]) => `${inBytes(value)} ${dtype}`)
      .join(', ')
  const kept = `${inBytes(weights.mapped)} in pages of the files, ${inBytes(weights.own)} besides`
  return [
    ['cache, a token', byDtype(cacheBytesPerToken)],
    [`cache, ${context} tokens, ${workers} workers`, byDtype(cache)],
    ['memory of the weights', kept],
    ['memory that is free', inBytes(available)],
  ]
}
