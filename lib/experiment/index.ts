// 'hogwild/experiment': what a module with an experiment of one's own may need (docs/experiments.md).

export type { DataFile, DataItems, DataSource } from './data'
export type { Experiment, ExperimentModel, PlainOptions, SchemeName } from './definition'
export type { GeneratorOptions } from './generators/generators'
export { choiceOf, exact, lastNumber, type NumericOptions, numeric } from './graders/answers'
export type { GraderOptions } from './graders/graders'
export { memory } from './graders/memory'
export { idsIn, retrieval, subspan } from './graders/retrieval'
export { divergence, superposition } from './graders/superposition'
export {
  chainScore,
  graphScore,
  parseWorkflow,
  type Similarity,
  type Workflow,
  type WorkflowOptions,
  wordOverlap,
} from './graders/workflows'
export type { Grade, Grader, Item, LateMessage, Outcome } from './item'
export { type Interval, wilson } from './statistics'
