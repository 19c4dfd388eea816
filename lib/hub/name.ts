// Names of models on the hub: org/name[@revision][:quantisation].

import { HogwildError } from '../errors'
import { describe } from '../validate'

export interface HubName {
  /** 'org/name' */
  repo: string
  /** A branch, a tag or a commit; default 'main'. */
  revision: string
  /** Which GGUF file of several: its quantisation, e.g. 'Q4_K_M', or its name. */
  quantisation: string | undefined
}

export const NAME_FORM = 'org/name[@revision][:QUANTISATION]'

/** One half of a repository's name. Two dashes stand between the halves in the cache. */
const PART = '(?!.*(?:--|\\.\\.))\\w(?:[\\w.-]{0,94}\\w)?'
const REPO = new RegExp(`^${PART}/${PART}$`)
/** The revision is also a path below refs/. */
const REVISION = /^(?!.*(?:\/\/|\/\.|\.\.))[\w+-][\w./+-]{0,199}$/
const QUANTISATION = /^[\w+-][\w ./+-]{0,199}$/

/** Undefined where `text` does not have the form. */
export function parseHubName(text: string): HubName | undefined {
  const match = /^([^@:]+)(?:@([^@:]+))?(?::([^:]+))?$/.exec(text)
  const [, repo = '', revision = 'main', quantisation] = match ?? []
  if (!REPO.test(repo) || !REVISION.test(revision)) return undefined
  if (quantisation !== undefined && !QUANTISATION.test(quantisation)) return undefined
  return { repo, revision, quantisation }
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkHubName(text: string): HubName {
  const name = parseHubName(text)
  if (name !== undefined) return name
  throw new HogwildError(
    `expected a name of the hub, ${NAME_FORM}, received ${describe(text)}`,
    'HOGWILD_INVALID_ARGUMENT',
  )
}
