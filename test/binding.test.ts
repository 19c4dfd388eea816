// The binding as a table: it exports what lib/native.ts says, and no argument of a wrong type, range or kind
// crashes it or changes anything, whatever the function and the place.

import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { inspect, promisify, types } from 'node:util'
import ts from 'typescript'
import { HogwildError } from '../lib/errors'
import { type BlockHandle, type CacheHandle, type DeviceHandle, native } from '../lib/native'

interface Call {
  args(): unknown[] | Promise<unknown[]>
  handles?: Record<string, string>
  promise?: true
  unsupported?: true
}
interface Binding {
  device: DeviceHandle
  cache: CacheHandle
  a: BlockHandle
  b: BlockHandle
  calls: Record<string, Call>
  handle: Record<string, () => unknown>
}
type Callable = (...args: unknown[]) => unknown

const { at, functionOf, openBinding, put } = require('./binding/calls.cjs') as {
  at(value: unknown, path: string): unknown
  functionOf(binding: unknown, name: string): Callable
  openBinding(binding: unknown, model: unknown): Promise<Binding>
  put(value: unknown, path: string, other: unknown): unknown[]
}
const { randomModel } = require('./lifetime/random-model.cjs') as {
  randomModel(): { remove(): void }
}

const root = join(__dirname, '..')
const { remove, ...files } = randomModel()
let binding: Binding

beforeAll(async () => {
  binding = await openBinding(native, files)
})

afterAll(() => {
  native.deviceClose(binding.device)
  remove()
})

/** The code with which a call throws or rejects, 'done', or the error itself where it has no code. */
async function outcome(call: () => unknown): Promise<unknown> {
  try {
    await call()
    return 'done'
  } catch (error) {
    return (error as { code?: unknown }).code ?? error
  }
}

/** What a call must not change when it is refused. */
function snapshot(): unknown {
  const { cache, a, b } = binding
  const { peakPages: _, ...stats } = native.cacheStats(cache)
  const block = (handle: BlockHandle) => [
    Array.from(native.blockTokens(handle)),
    native.blockSegments(handle),
    native.blockRead(handle, 1),
  ]
  return [stats, block(a), block(b)]
}

/** The members of an interface of lib/native.ts. */
function members(name: string): ts.NodeArray<ts.TypeElement> {
  const file = join(root, 'lib', 'native.ts')
  const source = ts.createSourceFile(file, readFileSync(file, 'utf8'), ts.ScriptTarget.Latest, true)
  return source.statements
    .filter(ts.isInterfaceDeclaration)
    .find((declaration) => declaration.name.text === name)!.members
}

function memberNames(name: string): string[] {
  return members(name)
    .map((member) => (member.name as ts.Identifier).text)
    .sort()
}

test('it exports exactly what the interface says, and the table names all of it', () => {
  expect(Object.keys(native).sort()).toEqual(memberNames('NativeBinding'))
  expect(Object.keys(native.ops).sort()).toEqual(memberNames('NativeOps'))
  const named = [
    ...memberNames('NativeBinding').filter((name) => name !== 'ops'),
    ...memberNames('NativeOps').map((name) => `ops.${name}`),
  ]
  expect(Object.keys(binding.calls).sort()).toEqual(named.sort())
})

// ---- kinds of handles -----------------------------------------------------------------------------

test('the table has every parameter whose type is a handle', () => {
  const declared: Record<string, Record<string, string>> = {}
  for (const [prefix, name] of [
    ['', 'NativeBinding'],
    ['ops.', 'NativeOps'],
  ] as const) {
    for (const member of members(name)) {
      if (!ts.isMethodSignature(member)) continue
      const handles: Record<string, string> = {}
      member.parameters.forEach((parameter, i) => {
        const kind = /^(\w+)Handle\b/.exec(parameter.type!.getText())?.[1]
        if (kind !== undefined) handles[`[${i}]`] = kind.toLowerCase()
      })
      declared[prefix + (member.name as ts.Identifier).text] = handles
    }
  }
  const table = Object.fromEntries(
    Object.entries(binding.calls).map(([name, { handles = {} }]) => [
      name,
      Object.fromEntries(Object.entries(handles).filter(([path]) => /^\[\d+\]$/.test(path))),
    ]),
  )
  expect(table).toEqual(declared)
})

test('every kind of handle offered to every handle parameter: only the right one is taken', async () => {
  const before = snapshot()
  const wrongly: string[] = []
  let offered = 0
  for (const [name, { args, handles = {}, unsupported }] of Object.entries(binding.calls)) {
    const call = functionOf(native, name)
    for (const [path, wanted] of Object.entries(handles)) {
      for (const [kind, make] of Object.entries(binding.handle)) {
        const working = await args()
        const there = at(working, path)
        // The right kind is offered as it stands there: another cache's block would be refused for that.
        const given = put(working, path, kind === wanted ? there : await make())
        offered++
        const error = await (async () => call(...given))().then(
          () => undefined,
          (thrown: unknown) => thrown,
        )
        const { code, message } = (error ?? {}) as { code?: unknown; message?: string }
        const good =
          kind === wanted
            ? code === (unsupported ? 'HOGWILD_UNSUPPORTED' : undefined)
            : code === 'HOGWILD_INVALID_ARGUMENT' &&
              message!.endsWith(`expected a ${wanted} handle, received a handle of another kind`)
        if (!good) wrongly.push(`${name}${path}: a ${kind}: ${inspect(error)}`)
      }
    }
  }
  expect(wrongly).toEqual([])
  expect(offered).toBeGreaterThan(300)
  expect(snapshot()).toEqual(before)
})

// ---- wrong values everywhere ----------------------------------------------------------------------

// Parameters that take any finite number (or any in a range): the rest are integers.
const FRACTIONS =
  /rmsNormEps|normOffset|[sS]cale$|[sS]oftcap$|attentionFactor|temperature|topP|minP|[pP]enalty$|^ops.embedding\[5\]|^ops.rmsNorm\[3\]/

// Parameters for which -1 means none.
const MINUS_ONE = /rope$/

// Parameters that take one of some words.
const CHOICES =
  /type$|format$|activation$|qkNorm$|logits$|held$|scope$|^(createModel|ops.embedding|ops.gatedActivation)\[3\]$/

// Parameters that may be null.
const NULLABLE =
  /bias|fields$|sampler$|convertTo|^(step|holdStep)\[3\]|^finishStep(\[2\]|\[1\]\[0\]\.)|^bringEdits\[1\]\[0\]\.|createModel\[[345]\]|^passAttend\[4\]\.(?!scale|wantLse)/

// Parameters that may be left out.
const OPTIONAL =
  /^(createModel\[7\]|createBlock\[1\]|blockFork\[1\]|passCommit\[1\])$|^holdStep.*\.(embeddings|logitBias|held|hidden|attentionMass)$|^(step|beginPass).*\.(drafts|group)$/

function kindOf(value: unknown): string {
  if (types.isExternal(value)) return 'handle'
  if (ArrayBuffer.isView(value)) return Object.prototype.toString.call(value)
  if (Array.isArray(value)) return 'array'
  return value === null ? 'null' : typeof value
}

/** Every place in `value`, as a path, what is there, and a copy of `value` with something else there. */
function* places(
  value: unknown,
  path: string,
): Generator<{ path: string; there: unknown; replaced(other: unknown): unknown }> {
  yield { path, there: value, replaced: (other) => other }
  if (Array.isArray(value)) {
    const isArguments = !path.includes('[')
    for (const i of isArguments ? value.keys() : new Set([0, value.length - 1])) {
      if (value.length === 0) break
      for (const place of places(value[i], `${path}[${i}]`)) {
        yield { ...place, replaced: (other) => value.with(i, place.replaced(other)) }
      }
    }
  } else if (kindOf(value) === 'object') {
    for (const key of Object.keys(value as object)) {
      for (const place of places((value as Record<string, unknown>)[key], `${path}.${key}`)) {
        yield {
          ...place,
          replaced: (other) => ({ ...(value as object), [key]: place.replaced(other) }),
        }
      }
    }
  }
}

test('wrong values in any place are refused with a code, and nothing changes', async () => {
  const detached = Float32Array.of(1, 2)
  structuredClone(detached, { transfer: [detached.buffer] })
  const handles: unknown[] = []
  for (const make of Object.values(binding.handle)) handles.push(await make())
  const wrong: unknown[] = [
    undefined,
    null,
    true,
    7,
    '',
    'f32 ',
    Symbol('x'),
    1n,
    {},
    [],
    [undefined],
    () => 1,
    class {},
    new Date(),
    new Int32Array(1),
    new Float32Array(3),
    new Float64Array(2),
    new Uint8Array(5),
    new DataView(new ArrayBuffer(4)),
    new ArrayBuffer(4),
    detached,
    new Proxy({}, {}),
    Object.assign([], { length: 2 ** 32 - 1 }),
    ...handles,
  ]
  const wrongOfKind = (there: unknown, path: string): unknown[] => {
    if (typeof there === 'number') {
      const infinite = [Number.NaN, Number.POSITIVE_INFINITY]
      if (FRACTIONS.test(path)) return infinite
      return [...infinite, MINUS_ONE.test(path) ? -2 : -1, 1.5, 2 ** 60]
    }
    if (typeof there === 'bigint') return [-1n, 2n ** 64n]
    return CHOICES.test(path) ? ['', 'f32 ', 'constructor'] : []
  }

  const before = snapshot()
  const wrongly: string[] = []
  let tried = 0
  for (const [name, { args, promise, unsupported }] of Object.entries(binding.calls)) {
    if (unsupported) continue // refused whatever the arguments
    const call = functionOf(native, name)
    for (const { path, there, replaced } of places(await args(), name)) {
      if (path === name) continue // not an argument
      const kind = kindOf(there)
      // An array is also refused by what is in it, and some objects may lack everything.
      const bad = wrong.filter((value) => kindOf(value) !== kind || kind === 'array')
      for (const value of [...bad, ...wrongOfKind(there, path)]) {
        if (value === null && NULLABLE.test(path)) continue
        if (value === undefined && OPTIONAL.test(path)) continue
        if (kind === 'array' && Array.isArray(value) && value.length === 0) continue
        if (kind === 'function' && typeof value === 'function') continue
        let returned: unknown
        const code = await outcome(() => {
          returned = call(...(replaced(value) as unknown[]))
          return returned
        })
        tried++
        if (code !== 'HOGWILD_INVALID_ARGUMENT') {
          wrongly.push(`${path} = ${inspect(value)}: ${String(code)}`)
        }
        if (promise && !types.isPromise(returned)) wrongly.push(`${path} threw`)
      }
    }
    // The arguments from which all this was made do work.
    const worked = await outcome(async () => call(...(await args())))
    if (worked !== 'done') wrongly.push(`${name} itself: ${String(worked)}`)
  }
  native.setErrorClass(HogwildError) // which was one of the calls
  expect(wrongly).toEqual([])
  expect(tried).toBeGreaterThan(2000)
  expect(snapshot()).toEqual(before)
})

test('3,000 random hostile calls, on an int8 cache, crash nothing and fail with a code', async () => {
  const script = join(root, 'test', 'binding', 'hostile.cjs')
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--expose-gc', script, '20251129', '3000'],
    { timeout: 60_000 },
  )
  const { codes } = JSON.parse(stdout) as { codes: Record<string, number> }
  expect(Object.values(codes).reduce((sum, n) => sum + n)).toBeGreaterThan(2500)
  expect(codes).not.toHaveProperty('HOGWILD_INTERNAL')
})
