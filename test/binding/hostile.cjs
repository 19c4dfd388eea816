// Random hostile calls of the binding: `node --expose-gc hostile.cjs SEED COUNT`. Each takes arguments that
// work, puts something hostile in one to three places and calls, without waiting for the calls before. Ends
// with exit code 0 and a line of counts unless something crashes, hangs, or fails without a code or with
// HOGWILD_INTERNAL.
'use strict'
const { isExternal } = require('node:util').types
const { setImmediate: tick } = require('node:timers/promises')
const { at, functionOf, openBinding, put } = require('./calls.cjs')
const { choices, loadAddon, random, randomModel } = require('../lifetime/random-model.cjs')

/** Formats of keys and values, one pair after the other with the seeds. */
const CACHES = [
  { keys: 'f32' },
  { keys: 'int8' },
  { keys: 'bf16', values: 'int8' },
  { keys: 'int8', values: 'f16' },
]

// What a getter throws on purpose comes back as it is.
class Hostile extends Error {}

/** Every path in the arguments of a call. */
function* pathsIn(value, path = '') {
  if (path !== '') yield path
  if (ArrayBuffer.isView(value) || isExternal(value)) return
  if (value === null || typeof value !== 'object') return
  const keys = Array.isArray(value) ? [...value.keys()].slice(0, 3) : Object.keys(value)
  for (const key of keys) yield* pathsIn(value[key], `${path}[${key}]`)
}

/** A source of hostile values; `handles`: all that there are, open, busy and closed ones. */
function hostileValues(native, next, handles) {
  const { below, pick } = choices(next)
  const numbers = [
    0,
    -0,
    1,
    2,
    3,
    7,
    63,
    64,
    65,
    255,
    256,
    -1,
    0.5,
    1e-320,
    1e308,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    2 ** 31 - 1,
    2 ** 31,
    2 ** 32,
    2 ** 53 - 1,
    2 ** 53,
    2 ** 63,
    2 ** 64,
  ]
  const detached = (array) => {
    structuredClone(array, { transfer: [array.buffer] })
    return array
  }
  const typedArray = () => {
    const length = pick([0, 1, 2, 3, 8, 16, 64, 1000, 1 << 16])
    const make = pick([
      Int8Array,
      Uint8Array,
      Uint8ClampedArray,
      Int16Array,
      Int32Array,
      Uint32Array,
      Float32Array,
      Float32Array,
      Float64Array,
      BigInt64Array,
    ])
    if (next() < 0.1) return new make(new SharedArrayBuffer(length * make.BYTES_PER_ELEMENT))
    const array = new make(length)
    if (!(array instanceof BigInt64Array)) array.fill(pick(numbers))
    return next() < 0.1 ? detached(array) : array
  }
  const interfere = () => {
    const handle = pick(handles)
    const close = [native.blockClose, native.passAbort, native.cancel, () => globalThis.gc()]
    try {
      pick(close)(handle)
    } catch {}
    if (next() < 0.1) throw new Hostile('on purpose')
  }
  const trap = (value) => {
    const target = value !== null && typeof value === 'object' ? value : {}
    const get = (object, key) => {
      interfere()
      return next() < 0.3 ? any() : object[key]
    }
    return new Proxy(target, { get })
  }
  // Of the type that stands there: gets past the first checks.
  const similar = (there) => {
    if (typeof there === 'number') return pick(numbers)
    if (typeof there === 'bigint') return BigInt(below(2 ** 32)) << BigInt(below(33))
    if (typeof there === 'boolean') return next() < 0.5
    if (ArrayBuffer.isView(there)) {
      const array = new there.constructor(pick([there.length, below(100)]))
      return array.fill(pick(numbers))
    }
    if (isExternal(there)) return pick(handles)
    return there
  }
  const any = (there) => {
    if (next() < 0.4) return similar(there)
    const kind = below(13)
    if (kind < 3) return pick(numbers)
    if (kind === 3) return pick([undefined, null, true, false, Symbol('s'), () => {}, class {}])
    if (kind === 4)
      return pick([0n, 1n, 15n, 16n, -1n, 2n ** 63n, 2n ** 64n - 1n, 2n ** 64n, 2n ** 200n])
    if (kind === 5) {
      return pick([
        '',
        'f32',
        'bf16',
        'int8',
        'cpu',
        'all',
        'silu',
        '\ud800',
        '\0',
        'x'.repeat(70000),
        '/dev/zero',
      ])
    }
    if (kind < 8) return typedArray()
    if (kind < 10) return pick(handles)
    if (kind === 10) {
      const array = Array.from({ length: below(4) }, () => any())
      if (next() < 0.2) array.length = 2 ** 32 - 1
      return array
    }
    if (kind === 11) return trap(there)
    return pick([{}, [], new Date(), new Map(), Object.create(null), there, [there], { ...there }])
  }
  return any
}

async function main() {
  const [seed, count] = process.argv.slice(2).map(Number)
  const next = random(seed)
  const native = loadAddon()
  const { remove, ...files } = randomModel({ seed })
  process.on('exit', remove)
  const binding = await openBinding(native, files, CACHES[seed % CACHES.length])
  const names = Object.keys(binding.calls)
  const kinds = Object.values(binding.handle)
  const handles = []
  for (const make of [...kinds, ...kinds]) handles.push(await make())
  const any = hostileValues(native, next, handles)

  const codes = {}
  let pending = []
  const failed = (name, error) => {
    if (error instanceof Hostile) return
    const code = error?.code
    if (!/^HOGWILD_/.test(code) || code === 'HOGWILD_INTERNAL') {
      console.error(`seed ${seed}, ${name}: ${error?.stack ?? String(error)}`)
      process.exit(1)
    }
    codes[code] = (codes[code] ?? 0) + 1
  }

  const settle = async () => {
    await Promise.all(pending)
    pending = []
  }
  const working = async (name) => {
    try {
      return await binding.calls[name].args()
    } catch (error) {
      if (error.code !== 'HOGWILD_BUSY') throw error
      await settle() // a step, or a pass that nobody holds any more
      globalThis.gc()
      await tick()
      return binding.calls[name].args()
    }
  }

  for (let i = 0; i < count; i++) {
    const name = names[Math.floor(next() * names.length)]
    let args = await working(name)
    const paths = [...pathsIn(args)]
    for (let places = Math.floor(next() * 4); places > 0 && paths.length > 0; places--) {
      const path = paths[Math.floor(next() * paths.length)]
      try {
        args = put(args, path, any(at(args, path)))
      } catch {} // an earlier replacement took the place away
    }
    if (name === 'setErrorClass') continue // the class is the package's own
    // A measurement is only slow.
    if (name === 'deviceReadBandwidth' && Number.isInteger(args[1]) && args[1] >= 2 ** 16) continue
    if (name === 'deviceClose' && args[0] === binding.device) continue
    try {
      const returned = functionOf(native, name)(...args)
      if (returned instanceof Promise) {
        pending.push(
          returned.then(
            () => {
              codes.ok = (codes.ok ?? 0) + 1
            },
            (error) => failed(name, error),
          ),
        )
      } else {
        codes.ok = (codes.ok ?? 0) + 1
      }
    } catch (error) {
      failed(name, error)
    }
    if (pending.length > 20) await settle()
    if (i % 500 === 0) {
      await settle()
      await tick()
      globalThis.gc()
      // Those that calls have closed are replaced by open ones.
      for (const [k, make] of kinds.entries()) handles[k] = await make()
    }
  }
  await settle()
  console.log(JSON.stringify({ seed, calls: count, codes }))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
