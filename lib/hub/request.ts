// Requests to the hub: the token, time limits, retries.

import { setTimeout as wait } from 'node:timers/promises'
import { onAbort, throwIfAborted } from '../abort-signal'
import type { HogwildError } from '../errors'
import { failed, refusal, Transient } from './refusals'
import type { HubSettings } from './settings'

const FIRST_DELAY_MS = 500
const LONGEST_DELAY_MS = 60_000

/**
 * What is done with an answer. It calls `alive` when something came, which begins the time limit again, and
 * `progressed` when that is worth further attempts.
 */
type Use<T> = (response: Response, alive: () => void, progressed: () => void) => Promise<T>

/** What one download asks with. */
export class Connection {
  constructor(
    readonly settings: HubSettings,
    readonly repo: string,
    readonly signal: AbortSignal | undefined,
  ) {}

  /**
   * GETs `path` of the endpoint, again where that may help, `retries` times in a row. `headers` are asked for before
   * each attempt. Throws HOGWILD_DOWNLOAD, HOGWILD_ABORTED.
   */
  async get<T>(
    path: string,
    use: Use<T>,
    retries: number,
    headers: () => Record<string, string> = () => ({}),
  ): Promise<T> {
    for (let failures = 0; ; ) {
      const progressed = () => {
        failures = 0
      }
      try {
        return await this.#attempt(path, headers(), (response, alive) =>
          use(response, alive, progressed),
        )
      } catch (error) {
        throwIfAborted(this.signal)
        if (!(error instanceof Transient)) throw error
        if (++failures > retries) throw this.#unreachable(error)
        const delay = error.delayMs ?? FIRST_DELAY_MS * 2 ** (failures - 1)
        await pause(Math.min(delay, LONGEST_DELAY_MS), this.signal)
      }
    }
  }

  /** Ends when the caller's signal says so, or when nothing has come for too long. */
  async #attempt<T>(
    path: string,
    headers: Record<string, string>,
    use: (response: Response, alive: () => void) => Promise<T>,
  ): Promise<T> {
    throwIfAborted(this.signal)
    const { endpoint, token, timeoutMs } = this.settings
    const controller = new AbortController()
    const forget = onAbort(this.signal, () => controller.abort())
    const timer = setTimeout(() => controller.abort(), timeoutMs)
    try {
      // fetch follows redirects, and takes the token along to the endpoint's own origin alone.
      const response = await fetch(`${endpoint}${path}`, {
        signal: controller.signal,
        headers: {
          ...headers,
          // Ranges and sizes are those of the file, not of its compressed form.
          'accept-encoding': 'identity',
          'user-agent': `hogwild; node/${process.versions.node}`,
          ...(token && { authorization: `Bearer ${token.value}` }),
        },
      })
      if (response.ok || response.status === 416) return await use(response, () => timer.refresh())
      await response.body?.cancel()
      throw refusal(response, this.repo, this.settings)
    } catch (error) {
      if ((error as Error).name === 'AbortError') {
        throw new Transient(`nothing came for ${timeoutMs} ms`)
      }
      throw ofNetwork(error, endpoint) ?? error
    } finally {
      clearTimeout(timer)
      forget()
    }
  }

  #unreachable(cause: Transient): HogwildError {
    const { endpoint } = this.settings
    const { HTTPS_PROXY, https_proxy, NODE_USE_ENV_PROXY } = process.env
    const proxy = (HTTPS_PROXY ?? https_proxy) && NODE_USE_ENV_PROXY === undefined
    const hint = proxy ? '; Node.js 24 uses HTTPS_PROXY with NODE_USE_ENV_PROXY=1' : ''
    return failed(`cannot get ${this.repo} from ${endpoint}: ${cause.message}${hint}`, cause)
  }
}

/** What a TypeError of fetch means, whose cause says more; undefined for other errors. */
function ofNetwork(error: unknown, endpoint: string): HogwildError | Transient | undefined {
  const { name, message, cause } = error as Error
  if (name !== 'TypeError' || !/^(fetch failed|terminated)$/.test(message)) return undefined
  const { code, message: said } = (cause ?? {}) as NodeJS.ErrnoException
  // An answer that fetch refuses, e.g. a redirect to nowhere.
  return code === undefined || code === 'ERR_INVALID_URL'
    ? failed(`${endpoint} does not answer as the hub does: ${said}`, error)
    : new Transient(code, undefined, { cause: error })
}

/** Throws HOGWILD_ABORTED. */
export async function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  const controller = new AbortController()
  const forget = onAbort(signal, () => controller.abort())
  try {
    await wait(milliseconds, undefined, { signal: controller.signal }).catch(() => {})
    throwIfAborted(signal)
  } finally {
    forget()
  }
}
