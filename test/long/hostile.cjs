// Hostile values for every parameter and option of the public interface: each call succeeds or fails with a
// HogwildError, at once. `npm run test:long` tries every value in every place,
// test/hostile-values.test.ts a part of them.
'use strict'
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..', '..')
const MODEL = path.join(root, 'models', 'demo')

/** A call that takes longer has hung. */
const HANG_MS = 10_000

class Mine extends Error {}
const fail = () => {
  throw new Mine('mine')
}

/** Values by name; made anew for each use. */
const VALUES = {
  undefined: () => undefined,
  null: () => null,
  true: () => true,
  zero: () => 0,
  minus: () => -1,
  five: () => 5,
  half: () => 0.5,
  NaN: () => Number.NaN,
  infinity: () => Number.POSITIVE_INFINITY,
  minusInfinity: () => Number.NEGATIVE_INFINITY,
  huge: () => 2 ** 50,
  bigint: () => 5n,
  hugeBigint: () => 2n ** 70n,
  symbol: () => Symbol('s'),
  empty: () => '',
  text: () => 'x',
  longText: () => 'x'.repeat(100_000),
  control: () => '\u0000\u001b[31m\u202e',
  function: () => () => 1,
  failing: () => fail,
  async: () => async () => true,
  date: () => new Date(Number.NaN),
  object: () => ({}),
  unknownKey: () => ({ dtpye: 1, top_k: 1 }),
  nullPrototype: () => Object.create(null),
  frozen: () => Object.freeze({}),
  cyclic: () => {
    const value = {}
    value.self = value
    return value
  },
  getter: () =>
    new Proxy(
      {},
      {
        get: fail,
      },
    ),
  failingKeys: () => new Proxy({}, { ownKeys: fail, has: fail, getPrototypeOf: fail }),
  throwing: () =>
    Object.defineProperties(
      {},
      Object.fromEntries(FIELDS.map((f) => [f, { get: fail, enumerable: true }])),
    ),
  revoked: () => {
    const { proxy, revoke } = Proxy.revocable([], {})
    revoke()
    return proxy
  },
  array: () => [],
  nulls: () => [null],
  bigints: () => [1n, 2n],
  nested: () => [[[[]]]],
  sparse: () => new Array(5),
  huge2: () => ({ length: 2 ** 50 }),
  large: () => ({ length: 2 ** 31 }),
  lying: () => new Proxy([1], { get: (list, key) => (key === 'length' ? 2 ** 40 : list[key]) }),
  failingElement: () => Object.defineProperty([1, 2], 1, { get: fail }),
  failingLength: () => ({
    get length() {
      return fail()
    },
  }),
  changing: () => {
    const list = [1, 2, 3]
    Object.defineProperty(list, 0, {
      get() {
        list.length = 1
        return 1
      },
    })
    return list
  },
  failingIterator: () => Object.assign([1], { [Symbol.iterator]: fail, map: fail, forEach: fail }),
  detached: () => {
    const list = new Float32Array(8)
    structuredClone(list.buffer, { transfer: [list.buffer] })
    return list
  },
  shared: () => new Float32Array(new SharedArrayBuffer(32)),
  floats: () => new Float32Array(8).fill(Number.NaN),
  doubles: () => new Float64Array(4).fill(1),
  bigintArray: () => new BigInt64Array(2),
  resizable: () => {
    const buffer = new ArrayBuffer(32, { maxByteLength: 64 })
    return new Float32Array(buffer)
  },
  dataView: () => new DataView(new ArrayBuffer(8)),
  fakeFloats: () => ({ [Symbol.toStringTag]: 'Float32Array', length: 8 }),
  proxiedFloats: () => new Proxy(new Float32Array(8), {}),
  signal: () => ({ aborted: false, addEventListener: fail, removeEventListener: fail }),
  halfSignal: () => ({ aborted: false, addEventListener() {} }),
  failingSignal: () => ({
    get aborted() {
      return fail()
    },
    addEventListener() {},
    removeEventListener() {},
  }),
  failingReason: () => ({
    aborted: true,
    get reason() {
      return fail()
    },
    addEventListener() {},
    removeEventListener() {},
  }),
  aborting: () => ({
    aborted: false,
    addEventListener: (_, listener) => listener(),
    removeEventListener: fail,
  }),
  toPrimitive: () => ({ [Symbol.toPrimitive]: fail, toString: fail, valueOf: fail }),
  failingName: () =>
    Object.create({
      get constructor() {
        return fail()
      },
    }),
}

const FIELDS = [
  'type',
  'model',
  'layers',
  'blocks',
  'view',
  'tokens',
  'name',
  'prompt',
  'signal',
  'capacity',
]

/** The public calls. `arguments`: what each is given when all is well; places in it are replaced by values. */
async function calls(hogwild) {
  const model = await hogwild.loadModel(MODEL, { threads: 1, onWarning() {} })
  const tokenizer = await hogwild.loadTokenizer(MODEL)
  const cache = model.createCache({ capacity: 1024 })
  const rope = () => hogwild.ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: 8 })
  const small = hogwild.createCache({
    layers: 1,
    kvHeads: 1,
    headDim: 8,
    rope: rope(),
    capacity: 64,
    device: 'cpu',
  })
  const block = cache.createBlock()
  await model.prefill(block, [1, 2, 3])
  const other = cache.createBlock()
  const written = cache.createBlock()
  const device = hogwild.createDevice({ type: 'cpu', threads: 1 })
  const sampler = {
    temperature: 1,
    topK: 2,
    topP: 0.5,
    minP: 0.1,
    repetitionPenalty: 1.5,
    forbidden: [1],
    seed: 1,
  }
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-hostile-'))
  const exported = path.join(folder, 'blocks')
  await cache.export([block, other], exported)
  const entry = (own) => ({ block: own, at: 9, lag: 1, temperature: 2, bias: 0 })
  const view = (own) => ({ blocks: [block, entry(own)], writeTo: own })
  const closing = (value) => value?.close?.()

  /** A fresh block that is closed after the call. */
  const withBlock =
    (use) =>
    async (...given) => {
      const own = cache.createBlock()
      try {
        return await use(own, ...given)
      } finally {
        own.close()
      }
    }
  const withPass =
    (use) =>
    async (...given) => {
      const own = small.createBlock()
      const pass = small.beginPass([{ view: { blocks: [own] }, tokens: 1 }])
      try {
        return await use(pass, ...given)
      } finally {
        pass.abort()
        own.close()
      }
    }
  const run = async (options, use) => {
    const workers = hogwild.runWorkers(options)
    let steps = 0
    try {
      for await (const event of workers) {
        if (event.type === 'step' && steps++ === 0) await use?.(workers)
        if (steps > 20) break
      }
    } finally {
      await workers.close()
    }
  }
  const runOptions = () => ({
    model,
    tokenizer,
    prompt: [1],
    workers: [
      { name: 'a', prompt: [1], header: [2], sampler: { ...sampler }, maxTokens: 3, stop: ['zz'] },
    ],
    layout: 'combined',
    share: true,
    sharedHeader: [3],
    stopTokens: [6],
    stop: ['zz'],
    turnEnds: () => false,
    turnHeader: () => [],
    maxTokens: 3,
    capacity: 512,
    beyondContext: 'warn',
    signal: new AbortController().signal,
  })
  const grammar = await hogwild.createGrammar({ tokenizer, ebnf: 'root ::= "a"', stopTokens: [1] })
  const saved = path.join(folder, 'run')
  await run(runOptions(), (workers) => workers.save(saved))
  const control =
    (use) =>
    (...given) =>
      run(runOptions(), (workers) => use(workers, ...given))
  const layoutBlocks = () => ({ common: 'c', shared: 's', workers: [{ own: 'a', header: 'h' }] })

  return {
    close: async () => {
      await Promise.all([cache.close(), small.close()])
      await model.close()
      await tokenizer.close()
      device.close()
      rmSync(folder, { recursive: true })
    },
    table: {
      loadModel: [
        async (...given) => closing(await hogwild.loadModel(...given)),
        () => [
          MODEL,
          {
            device,
            threads: undefined,
            dtype: 'bf16',
            onProgress() {},
            signal: new AbortController().signal,
            beyondContext: 'warn',
            onWarning() {},
          },
        ],
      ],
      createDevice: [
        (...given) => closing(hogwild.createDevice(...given)),
        () => [{ type: 'cpu', index: undefined, threads: 1, simd: 'baseline', profile: true }],
      ],
      readBandwidth: [(...given) => device.readBandwidth(...given), () => [2 ** 16]],
      createCache: [
        (...given) => closing(hogwild.createCache(...given)),
        () => [
          {
            layers: 1,
            kvHeads: 1,
            headDim: 8,
            rope: rope(),
            capacity: 64,
            dtype: 'f32',
            device,
            onWarning() {},
          },
        ],
      ],
      modelCreateCache: [
        (...given) => closing(model.createCache(...given)),
        () => [{ capacity: 64, dtype: { keys: 'f32', values: 'int8' }, onWarning() {} }],
      ],
      sampler: [(...given) => new hogwild.Sampler(...given), () => [{ ...sampler }]],
      restoreSampler: [
        (...given) => hogwild.Sampler.restore(...given),
        () => [new hogwild.Sampler({ lastN: 3, ...sampler }).state],
      ],
      createGrammar: [
        (...given) => hogwild.createGrammar(...given),
        () => [{ tokenizer, ebnf: 'root ::= "a"', whitespace: 'line', stopTokens: [1] }],
      ],
      matcher: [(...given) => grammar.matcher(...given), () => [[]]],
      step: [
        (...given) => model.step(...given).finally(() => written.clear()),
        () => [
          [
            {
              view: view(written),
              tokens: [1],
              sampler: new hogwild.Sampler(sampler),
              logits: 'last',
              logprob: true,
              logitBias: { 1: 0.5 },
              processLogits() {},
              hidden: true,
              attentionMass: true,
            },
          ],
          { signal: new AbortController().signal, beyondContext: 'warn', onWarning() {} },
        ],
      ],
      stepOfEmbeddings: [
        (...given) => model.step(...given).finally(() => written.clear()),
        () => [
          [
            {
              view: view(written),
              embeddings: new Float32Array(model.config.hiddenSize),
              logitBias: new Map([[1, 0.5]]),
            },
          ],
        ],
      ],
      prefill: [
        withBlock((own, target, ...given) =>
          model.prefill(target === 'own' ? own : target, ...given),
        ),
        () => [
          'own',
          [1, 2],
          {
            sampler: null,
            logits: 'none',
            logprob: false,
            signal: new AbortController().signal,
            beyondContext: 'warn',
            onWarning() {},
          },
        ],
      ],
      appendFrom: [
        withBlock((own, ...given) => own.appendFrom(...given)),
        () => [other, { clearSource: false }],
      ],
      insert: [withBlock((own, ...given) => own.insert(...given)), () => [0, other]],
      truncate: [withBlock((own, ...given) => own.truncate(...given)), () => [0]],
      forget: [withBlock((own, ...given) => own.forget(...given)), () => [0, 0]],
      read: [(...given) => block.read(...given), () => [0]],
      export: [
        (blocks, ...given) => cache.export(blocks, exported, ...given),
        () => [
          [block, other],
          { data: { some: 'data' }, signal: new AbortController().signal, onProgress() {} },
        ],
      ],
      import: [
        async (...given) => {
          const { blocks } = await cache.import(...given)
          for (const one of blocks) one.close()
        },
        () => [exported, { signal: new AbortController().signal, onProgress() {} }],
      ],
      beginPass: [
        (...given) => small.beginPass(...given).abort(),
        () => [[{ view: { blocks: [entry(small.createBlock())], writeTo: undefined }, tokens: 1 }]],
      ],
      append: [
        withPass((pass, ...given) => pass.append(...given)),
        () => [0, new Float32Array(8), new Float32Array(8)],
      ],
      attend: [
        withPass(async (pass, ...given) => {
          await pass.append(0, new Float32Array(8), new Float32Array(8))
          return pass.attend(...given)
        }),
        () => [0, new Float32Array(16), { scale: 1, lse: true }],
      ],
      appendDevice: [
        withPass((pass, ...given) => pass.appendDevice(...given)),
        () => [0, { k: 16n, v: 16n, dtype: 'f32', stream: 0n }],
      ],
      attendDevice: [
        withPass(async (pass, ...given) => {
          await pass.append(0, new Float32Array(8), new Float32Array(8))
          return pass.attendDevice(...given)
        }),
        () => [
          0,
          { q: 16n, out: 16n, lse: 0n, dtype: 'f32', stream: 0n },
          { scale: 1, queryHeads: 1 },
        ],
      ],
      runWorkers: [(options) => run(options), () => [runOptions()]],
      join: [
        control((workers, ...given) => workers.join(...given)),
        () => [
          {
            name: 'b',
            prompt: [1],
            header: [1],
            sampler: { ...sampler },
            maxTokens: 2,
            stop: ['x'],
          },
        ],
      ],
      stop: [control((workers, ...given) => workers.stop(...given)), () => ['a', { append: [1] }]],
      pause: [
        control((workers, ...given) => {
          workers.pause(...given)
          workers.resume(...given)
        }),
        () => ['a'],
      ],
      save: [
        control((workers, target, ...given) => {
          // Whatever is no path is refused; any path but this one would be a file somewhere.
          return workers.save(typeof target === 'string' ? `${saved}-again` : target, ...given)
        }),
        () => [
          'run',
          { data: { some: 'data' }, signal: new AbortController().signal, onProgress() {} },
        ],
      ],
      restoreRun: [
        async (...given) => (await hogwild.restoreRun(...given)).run.close(),
        () => [
          saved,
          {
            model,
            tokenizer,
            scheduler: hogwild.schedulerOf(model),
            turnEnds: () => false,
            turnHeader: () => [],
            triggers: [],
            workers: { a: {} },
            park() {},
            onPrefill() {},
            onProgress() {},
            signal: new AbortController().signal,
          },
        ],
      ],
      inject: [control((workers, ...given) => workers.inject(...given)), () => ['a', [1]]],
      viewOf: [
        (...given) => hogwild.viewOf(...given),
        () => ['combined', layoutBlocks(), 0, { share: true }],
      ],
      missingIds: [(...given) => tokenizer.missingIds(...given), () => [70]],
      commitsTurns: [(...given) => hogwild.commitsTurns(...given), () => ['combined']],
    },
  }
}

/** The places of a value that can be replaced: itself, and the fields of plain objects and arrays in it. */
function placesOf(value, trail = []) {
  const isPlain =
    Array.isArray(value) ||
    (typeof value === 'object' &&
      value !== null &&
      Object.getPrototypeOf(value) === Object.prototype)
  if (!isPlain || trail.length > 5) return [trail]
  return [trail, ...Object.keys(value).flatMap((key) => placesOf(value[key], [...trail, key]))]
}

function replace(value, [key, ...rest], replacement) {
  if (key === undefined) return replacement
  const copy = Array.isArray(value) ? [...value] : { ...value }
  copy[key] = replace(value[key], rest, replacement)
  return copy
}

/**
 * Puts each value into each place of every call. `take(n)` says whether the n-th pair is tried. Resolves to the
 * number of calls, their outcomes and the faults.
 */
async function attack(hogwild, take) {
  const { table, close } = await calls(hogwild)
  const report = { calls: 0, outcomes: {}, faults: [] }
  let n = 0
  for (const [name, [call, given]] of Object.entries(table)) {
    for (const place of placesOf(given()).slice(1)) {
      for (const [kind, make] of Object.entries(VALUES)) {
        if (!take(n++)) continue
        report.calls++
        const fault = (text) => report.faults.push(`${name} ${place.join('.')} = ${kind}: ${text}`)
        const outcome = await settle(() => call(...replace(given(), place, make())))
        report.outcomes[outcome.code] = (report.outcomes[outcome.code] ?? 0) + 1
        if (outcome.fault) fault(outcome.fault)
      }
    }
    // A value that is right once must still be: nothing that was refused has left anything behind.
    const outcome = await settle(() => call(...given()))
    const allowed = ['ok', 'HOGWILD_UNSUPPORTED'] // device memory, on a CPU
    if (!allowed.includes(outcome.code))
      report.faults.push(`${name}: then ${outcome.code} ${outcome.fault}`)
  }
  await close()
  return report
}

async function settle(call) {
  let timer
  const hang = new Promise((resolve) => {
    timer = setTimeout(() => resolve({ code: 'hang', fault: 'hangs' }), HANG_MS)
  })
  const settled = (async () => {
    try {
      await call()
      return { code: 'ok' }
    } catch (error) {
      // What a callback of the caller's throws comes out as it is.
      if (error instanceof Mine) return { code: 'mine' }
      const { name, code } = error ?? {}
      const right = name === 'HogwildError' && /^HOGWILD_/.test(code) && code !== 'HOGWILD_INTERNAL'
      return { code, fault: right ? undefined : String(error?.stack).slice(0, 300) }
    }
  })()
  const outcome = await Promise.race([settled, hang])
  clearTimeout(timer)
  return outcome
}

module.exports = { attack }

if (require.main === module) {
  void attack(require(path.join(root, 'dist')), () => true).then((report) => {
    console.log(JSON.stringify(report))
    process.exitCode = report.faults.length > 0 ? 1 : 0
  })
}
