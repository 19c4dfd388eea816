// What the hub's answers mean for a user.

import { HogwildError } from '../errors'
import { describe } from '../validate'
import type { HubSettings } from './settings'

/** The error of everything that fails between the hub and the disk. */
export function failed(message: string, cause?: unknown): HogwildError {
  return new HogwildError(message, 'HOGWILD_DOWNLOAD', { cause })
}

/** A failure that may pass: of the network, or of a server that is busy. */
export class Transient extends Error {
  constructor(
    message: string,
    readonly delayMs?: number,
    options?: ErrorOptions,
  ) {
    super(message, options)
  }
}

const LOGIN = 'set HF_TOKEN, or log in with `hf auth login`'

/** The error for an answer that is neither a file nor a redirect. */
export function refusal(
  { status, headers }: Response,
  repo: string,
  { endpoint, token }: HubSettings,
): HogwildError | Transient {
  if (status === 408 || status === 429 || status >= 500) {
    const after = headers.get('retry-after')
    return new Transient(
      `it answers ${status}`,
      after === null ? undefined : 1000 * (Number(after) || 0),
    )
  }
  switch (headers.get('x-error-code')) {
    case 'GatedRepo': {
      const then = token ? `with the account of your token (${token.from})` : `then ${LOGIN}`
      return failed(`${repo} is gated: ask for access at ${endpoint}/${repo}, ${then}`)
    }
    case 'RevisionNotFound':
      return failed(`${endpoint} has no such revision of ${repo}`)
    case 'EntryNotFound':
      return failed(`${endpoint} has no such file of ${repo}`)
  }
  // The hub does not tell whether there is a repository that one may not see.
  if (status === 401 || status === 403 || status === 404) {
    const hint = token
      ? `the token of ${token.from} is not accepted or may not read it`
      : `a private one needs a token: ${LOGIN}`
    return failed(`${endpoint} has no ${repo}, or ${hint} (${status})`)
  }
  const said = headers.get('x-error-message')
  return failed(`${endpoint} answers ${status}${said === null ? '' : `: ${describe(said)}`}`)
}
