// Requests to the hub: redirects, the token, time limits, retries.

import { setTimeout as wait } from 'node:timers/promises'
import { HogwildError } from '../errors'
import { onAbort, throwIfAborted } from '../tasks'
import { failed, refusal, Transient } from './refusals'
import type { HubSettings } from './settings'

const MAX_REDIRECTS = 10
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
   * GETs `path` of the endpoint, again where that may help, `retries` times in a row. `headers` are asked for before each attempt. Throws HOGWILD_DOWNLOAD, HOGWILD_ABORTED.
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
        const url = new URL(`${this.settings.endpoint}${path}`)
        return await this.#timed((signal, alive) =>
          this.#follow(url, headers(), signal, (response) => use(response, alive, progressed)),
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

  /** Runs a request that ends when the caller's signal says so, or when nothing has come for too long. */
  async #timed<T>(run: (signal: AbortSignal, alive: () => void) => Promise<T>): Promise<T> {
    throwIfAborted(this.signal)
    const { timeoutMs } = this.settings
    const controller = new AbortController()
    const forget = onAbort(this.signal, () => controller.abort())
    const timer = setTimeout(() => controller.abort(), timeoutMs)
    try {
      return await run(controller.signal, () => timer.refresh())
    } catch (error) {
      if (error instanceof HogwildError || error instanceof Transient) throw error
      if (!isOfNetwork(error)) throw error
      const silent = controller.signal.aborted
      throw new Transient(silent ? `nothing came for ${timeoutMs} ms` : reason(error), undefined, {
        cause: error,
      })
    } finally {
      clearTimeout(timer)
      forget()
    }
  }

  /** One attempt, through its redirects. The token goes to the endpoint's own origin alone. */
  async #follow<T>(
    url: URL,
    headers: Record<string, string>,
    signal: AbortSignal,
    use: (response: Response) => Promise<T>,
  ): Promise<T> {
    const { endpoint, token } = this.settings
    for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
      const isHub = url.origin === new URL(endpoint).origin
      const response = await fetch(url, {
        signal,
        redirect: 'manual',
        headers: {
          ...headers,
          // Ranges and sizes are those of the file, not of its compressed form.
          'accept-encoding': 'identity',
          'user-agent': `hogwild; node/${process.versions.node}`,
          ...(isHub && token && { authorization: `Bearer ${token.value}` }),
        },
      })
      if (response.ok || response.status === 416) return await use(response)
      await response.body?.cancel()
      if (![301, 302, 303, 307, 308].includes(response.status))
        throw refusal(response, this.repo, this.settings)
      const location = response.headers.get('location') ?? ''
      if (!URL.canParse(location, url.href)) throw failed(`${endpoint} redirects to nowhere`)
      url = new URL(location, url.href)
      if (!/^https?:$/.test(url.protocol)) throw failed(`${endpoint} redirects to ${url.protocol}`)
    }
    throw failed(`${endpoint} redirects more than ${MAX_REDIRECTS} times`)
  }

  #unreachable(cause: Transient): HogwildError {
    const { endpoint } = this.settings
    const { HTTPS_PROXY, https_proxy, NODE_USE_ENV_PROXY } = process.env
    const proxy = (HTTPS_PROXY ?? https_proxy) && NODE_USE_ENV_PROXY === undefined
    const hint = proxy ? '; Node.js 24 uses HTTPS_PROXY with NODE_USE_ENV_PROXY=1' : ''
    return failed(`cannot get ${this.repo} from ${endpoint}: ${cause.message}${hint}`, cause)
  }
}

/** fetch rejects with a TypeError whose cause says more, or, aborted, with an AbortError. */
function isOfNetwork(error: unknown): boolean {
  const { name, message } = error as Error
  return (
    name === 'AbortError' || (name === 'TypeError' && /^(fetch failed|terminated)$/.test(message))
  )
}

function reason(error: unknown): string {
  const { message, cause } = error as Error
  const { code, message: inner } = (cause ?? {}) as NodeJS.ErrnoException
  return code ?? inner ?? message
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
