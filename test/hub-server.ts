// A hub of our own, for tests: the part of its API that downloads use, with a second server in the place of the
// content network to which large files are redirected. What goes wrong on networks goes wrong on demand.

import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface Repo {
  files: Record<string, Buffer | string>
  commit?: string
  /** Branches and tags, with their commits; default: main. */
  revisions?: Record<string, string>
  /** Who may read it; default: everybody. */
  token?: string
  gated?: boolean
  /** What is answered in place of the listing. */
  listing?: string
}

export interface Request {
  server: 'hub' | 'content'
  path: string
  range: string | undefined
  authorization: string | undefined
}

/** Decides what happens to the content of a file instead of its being sent. True: it has answered. */
export type Fault = (
  response: ServerResponse,
  content: Buffer,
  from: number,
  request: IncomingMessage,
) => boolean

export const COMMIT = 'c0ffee'.padEnd(40, '0')
/** Files from this size on are "large". */
const LARGE = 1000

export const sha256 = (content: Buffer) => createHash('sha256').update(content).digest('hex')
export const gitId = (content: Buffer) =>
  createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex')

export class HubServer {
  readonly repos = new Map<string, Repo>()
  readonly requests: Request[] = []
  /** By path in the repository. */
  readonly faults = new Map<string, Fault>()
  /** Answers every request with this status. */
  down: number | undefined
  readonly #hub = createServer((request, response) => this.#answer(request, response))
  readonly #content = createServer((request, response) => this.#send(request, response))

  endpoint = ''

  static async start(): Promise<HubServer> {
    const server = new HubServer()
    for (const one of [server.#hub, server.#content]) {
      await new Promise<void>((resolve) => one.listen(0, '127.0.0.1', resolve))
    }
    server.endpoint = addressOf(server.#hub)
    return server
  }

  async close(): Promise<void> {
    for (const one of [this.#hub, this.#content]) {
      one.closeAllConnections()
      await new Promise((resolve) => one.close(resolve))
    }
  }

  #note(server: Request['server'], { url = '', headers }: IncomingMessage): URL {
    const { range, authorization } = headers
    this.requests.push({ server, path: url, range, authorization })
    return new URL(url, 'http://host')
  }

  #answer(request: IncomingMessage, response: ServerResponse): ServerResponse {
    const url = this.#note('hub', request)
    if (this.down !== undefined) return refuse(response, this.down)
    const listing = /^\/api\/models\/([^/]+\/[^/]+)\/revision\/([^/]+)$/.exec(url.pathname)
    const file = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname)
    const [, name = '', revision = '', path = ''] = listing ?? file ?? []
    const repo = this.repos.get(name)
    const mayRead =
      repo?.token === undefined || request.headers.authorization === `Bearer ${repo.token}`
    if (repo === undefined || !(mayRead || repo.gated)) return refuse(response, 401, 'RepoNotFound')
    const commit = commitOf(repo, decodeURIComponent(revision))
    if (commit === undefined) return refuse(response, 404, 'RevisionNotFound')
    if (listing !== null) return list(response, repo, commit)
    if (!mayRead) return refuse(response, 403, 'GatedRepo')
    const wanted = repo.files[decodeURIComponent(path)]
    if (wanted === undefined) return refuse(response, 404, 'EntryNotFound')
    const content = Buffer.from(wanted)
    response.setHeader('X-Repo-Commit', commit)
    if (content.length < LARGE) {
      response.setHeader('ETag', `"${gitId(content)}"`)
      return this.#write(request, response, path, content)
    }
    response.setHeader('X-Linked-ETag', `"${sha256(content)}"`)
    response.setHeader('X-Linked-Size', content.length)
    return response
      .writeHead(302, { location: `${addressOf(this.#content, 'localhost')}/${name}/${path}` })
      .end()
  }

  #send(request: IncomingMessage, response: ServerResponse): ServerResponse {
    const url = this.#note('content', request)
    const [, name = '', path = ''] = /^\/([^/]+\/[^/]+)\/(.+)$/.exec(url.pathname) ?? []
    const content = this.repos.get(name)?.files[decodeURIComponent(path)]
    if (content === undefined) return refuse(response, 404)
    return this.#write(request, response, path, Buffer.from(content))
  }

  #write(
    request: IncomingMessage,
    response: ServerResponse,
    path: string,
    content: Buffer,
  ): ServerResponse {
    const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? '')
    const from = Number(range?.[1] ?? 0)
    if (this.faults.get(path)?.(response, content, from, request)) return response
    if (from >= content.length && range !== null) return refuse(response, 416)
    const body = content.subarray(from)
    if (range !== null) {
      response.setHeader('Content-Range', `bytes ${from}-${content.length - 1}/${content.length}`)
    }
    response.writeHead(range === null ? 200 : 206, { 'Content-Length': body.length })
    return response.end(request.method === 'HEAD' ? undefined : body)
  }
}

function addressOf(server: Server, host = '127.0.0.1'): string {
  return `http://${host}:${(server.address() as AddressInfo).port}`
}

function commitOf({ commit = COMMIT, revisions = { main: commit } }: Repo, revision: string) {
  return revision === commit ? commit : revisions[revision]
}

function list(response: ServerResponse, { files, listing }: Repo, commit: string) {
  const siblings = Object.entries(files).map(([rfilename, text]) => {
    const content = Buffer.from(text)
    const size = content.length
    const lfs = { sha256: sha256(content), size, pointerSize: 134 }
    return { rfilename, size, blobId: gitId(content), ...(size >= LARGE && { lfs }) }
  })
  response.writeHead(200, { 'Content-Type': 'application/json' })
  return response.end(listing ?? JSON.stringify({ sha: commit, siblings }))
}

function refuse(response: ServerResponse, status: number, code?: string) {
  return response.writeHead(status, code === undefined ? {} : { 'X-Error-Code': code }).end()
}

/** Sends the beginning of a file, then cuts the connection; `times` over. */
export function cut(bytes: number, times = 1): Fault {
  let left = times
  return (response, content, from) => {
    if (left-- <= 0) return false
    const range = `bytes ${from}-${content.length - 1}/${content.length}`
    response.writeHead(from > 0 ? 206 : 200, {
      'Content-Length': content.length - from,
      ...(from > 0 && { 'Content-Range': range }),
    })
    response.write(content.subarray(from, from + bytes), () => response.destroy())
    return true
  }
}
