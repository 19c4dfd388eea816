// Where the hub is, where its cache lies and who asks: options, else the variables that huggingface_hub reads.

import { homedir } from 'node:os'
import { join } from 'node:path'
import { HogwildError } from '../errors'
import { optional, readText } from '../sources/files'

/** Which hub, and where its files lie here. What is absent is taken from the environment. */
export interface HubOptions {
  /** Address of the hub or of a mirror; default: HF_ENDPOINT, else https://huggingface.co. */
  endpoint?: string | undefined
  /**
   * The cache, which Python's tools share; default: HF_HUB_CACHE, else the folder `hub` of HF_HOME, of
   * XDG_CACHE_HOME/huggingface or of ~/.cache/huggingface.
   */
  cacheFolder?: string | undefined
  /**
   * Default: HF_TOKEN, else the file that HF_TOKEN_PATH names, else the one of `hf auth login`. It is sent to the
   * endpoint alone, not to where that redirects. '': none.
   */
  token?: string | undefined
  /** Only what the cache holds; default: whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is 1, true, yes or on. */
  offline?: boolean | undefined
}

export interface HubSettings {
  /** Without a slash at its end. */
  endpoint: string
  cacheFolder: string
  token: { value: string; from: string } | undefined
  offline: boolean
  /** Whether snapshots link to blobs; else they hold the files themselves. */
  symlinks: boolean
  /** Without an answer, or between two pieces of it. */
  timeoutMs: number
}

const DEFAULT_ENDPOINT = 'https://huggingface.co'
const DEFAULT_TIMEOUT_SECONDS = 10
const MAX_TOKEN_BYTES = 4096

type Environment = Readonly<Record<string, string | undefined>>

/** Options have been checked for their types. Throws HOGWILD_INVALID_ARGUMENT. */
export async function hubSettings(
  options: HubOptions,
  env: Environment = process.env,
): Promise<HubSettings> {
  const home = hubHome(env)
  return {
    endpoint: checkEndpoint(options.endpoint ?? (env.HF_ENDPOINT || DEFAULT_ENDPOINT)),
    cacheFolder: expandHome(
      options.cacheFolder ?? (env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || join(home, 'hub')),
    ),
    token: await findToken(options.token, home, env),
    offline: options.offline ?? (isTrue(env.HF_HUB_OFFLINE) || isTrue(env.TRANSFORMERS_OFFLINE)),
    symlinks: !isTrue(env.HF_HUB_DISABLE_SYMLINKS),
    timeoutMs: 1000 * (Number(env.HF_HUB_DOWNLOAD_TIMEOUT) || DEFAULT_TIMEOUT_SECONDS),
  }
}

function hubHome(env: Environment): string {
  const caches = env.XDG_CACHE_HOME || join(homedir(), '.cache')
  return expandHome(env.HF_HOME || join(caches, 'huggingface'))
}

function expandHome(path: string): string {
  return path === '~' || path.startsWith('~/') ? join(homedir(), path.slice(1)) : path
}

function isTrue(value: string | undefined): boolean {
  return ['1', 'ON', 'YES', 'TRUE'].includes((value ?? '').toUpperCase())
}

function checkEndpoint(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  const isPlain = url !== undefined && /^https?:$/.test(url.protocol) && !url.search && !url.hash
  if (isPlain && url.username === '' && url.password === '') return url.href.replace(/\/+$/, '')
  throw new HogwildError(
    'expected the endpoint of the hub (HF_ENDPOINT) to be an address with http: or https:, without a user',
    'HOGWILD_INVALID_ARGUMENT',
  )
}

async function findToken(
  given: string | undefined,
  home: string,
  env: Environment,
): Promise<HubSettings['token']> {
  if (given !== undefined) return cleanToken(given, 'options.token')
  if (isTrue(env.HF_HUB_DISABLE_IMPLICIT_TOKEN)) return undefined
  for (const name of ['HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN']) {
    const token = cleanToken(env[name] ?? '', name)
    if (token !== undefined) return token
  }
  const path = expandHome(env.HF_TOKEN_PATH || join(home, 'token'))
  return cleanToken((await optional(readText, path, { maxBytes: MAX_TOKEN_BYTES })) ?? '', path)
}

function cleanToken(text: string, from: string): HubSettings['token'] {
  const value = text.trim()
  if (value === '') return undefined
  // What it is goes into no message.
  if (/^[\x21-\x7e]+$/.test(value)) return { value, from }
  throw new HogwildError(
    `the token of the hub (${from}) holds characters that no token has`,
    'HOGWILD_INVALID_ARGUMENT',
  )
}
