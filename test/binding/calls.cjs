// Every function of the binding: arguments that work, where in them a handle stands, and of which kind. A table
// of its own, so that the binding is not asked what it takes: for tests that call it in every wrong way.
'use strict'
const { openSync } = require('node:fs')
const { cacheShape, random, stepWorker } = require('../lifetime/random-model.cjs')

const DEVICE = { type: 'cpu', index: 0, threads: 1, simd: 'baseline', profile: true }

/** An open file, to be locked. */
const file = openSync(__filename, 'r')

function floats(length, seed = 1) {
  const next = random(seed)
  return Float32Array.from({ length }, () => next() - 0.5)
}

/**
 * Opens a device, a model of `config` and `tensors`, and a cache, `keys` and `values` in formats of their own, with the
 * blocks `a` (tokens 1 2 3) and `b` (tokens 4 5). `calls`: for each function
 *   args()       arguments that work, none of them null; maybe a promise
 *   handles      path in the arguments -> kind of handle
 *   promise      it returns a promise
 *   unsupported  not on this device: even such arguments are refused
 * `handle[kind]()` makes a handle of a kind that nothing else uses; maybe a promise.
 */
async function openBinding(native, { config, tensors }, { keys = 'f32', values = keys } = {}) {
  const device = native.createDevice({ ...DEVICE, threads: 2, simd: '' })
  const newDevice = () => native.createDevice(DEVICE)
  const newModel = () => native.createModel(device, config, tensors, null, null, null, true)
  const newCache = () => native.createCache(device, cacheShape(config, 1024, keys, values))
  const passWorker = (target, nTokens = 2) => ({
    view: [target],
    fields: Float64Array.of(3, 1, 2, 0.5),
    target,
    nTokens,
    drafts: 1,
  })
  /** A pass of two tokens on a cache of its own. */
  const newPass = () => {
    const own = newCache()
    return native.beginPass(own, [passWorker(native.createBlock(own))])
  }
  /** Of three tokens in a cache of its own, which is busy with it. */
  const newExport = async () => {
    const own = newCache()
    const block = native.createBlock(own)
    await native.step(model, own, [stepWorker([block], [1, 2, 3])], null)
    return native.beginExport(own, [block])
  }
  const newImport = async () => {
    const exported = await newExport()
    return native.beginImport(newCache(), native.exportIndex(exported), [])
  }
  const writtenImport = async () => {
    const exported = await newExport()
    const imported = native.beginImport(newCache(), native.exportIndex(exported), [])
    const pieces = native.importPieces(imported).length
    for (let piece = 0; piece < pieces; piece++) {
      await native.importWrite(imported, piece, await native.exportRead(exported, piece))
    }
    return imported
  }
  const newMemory = () => native.ops.deviceMemory(device, new Uint8Array(3)).memory
  const model = await newModel()
  const cache = newCache()
  const a = native.createBlock(cache)
  const b = native.createBlock(cache)
  await native.step(model, cache, [stepWorker([a], [1, 2, 3]), stepWorker([b], [4, 5])], null)

  const kvSize = config.kvHeads * config.headDim
  const qSize = config.queryHeads * config.headDim
  const sampler = { ...stepWorker([a], [1]).sampler, forbidden: Int32Array.of(3) }
  const memory = { dtype: 'bf16', stream: 0n }
  /** With all that a worker may ask for. */
  const hookedWorker = (block) =>
    stepWorker([block], [-1, -1], {
      fields: Float64Array.of(-1, 0, 1, 0),
      sampler,
      embeddings: floats(2 * config.hiddenSize),
      logitBias: { ids: Int32Array.of(1), values: Float32Array.of(0.5) },
      held: 'with-logits',
      hidden: true,
      attentionMass: true,
    })
  const newHeldStep = async () => {
    const own = newCache()
    const worker = hookedWorker(native.createBlock(own))
    return (await native.holdStep(model, own, [worker], null, native.createEdits())).step
  }

  const calls = {
    setErrorClass: {
      args: () => [
        class extends Error {
          constructor(message, code) {
            super(message)
            this.code = code
          }
        },
      ],
    },
    probe: { args: () => [] },
    formats: { args: () => [] },
    createDevice: { args: () => [DEVICE] },
    deviceInfo: { args: () => [device], handles: { '[0]': 'device' } },
    deviceFreeMemory: { args: () => [device], handles: { '[0]': 'device' } },
    deviceReadBandwidth: {
      args: () => [device, 1 << 20],
      handles: { '[0]': 'device' },
      promise: true,
    },
    deviceProfile: { args: () => [device], handles: { '[0]': 'device' } },
    deviceClose: { args: () => [newDevice()], handles: { '[0]': 'device' } },

    createModel: {
      args: () => [
        device,
        config,
        tensors,
        'f32',
        native.createProgress(),
        native.createCancel(),
        true,
        true,
      ],
      handles: { '[0]': 'device', '[4]': 'progress', '[5]': 'cancel' },
      promise: true,
    },
    modelWeightBytes: { args: () => [model], handles: { '[0]': 'model' } },
    modelClose: { args: async () => [await newModel()], handles: { '[0]': 'model' } },

    createCache: {
      args: () => [device, cacheShape(config, 64, keys, values)],
      handles: { '[0]': 'device' },
    },
    cacheStats: { args: () => [cache], handles: { '[0]': 'cache' } },
    cacheClose: { args: () => [newCache()], handles: { '[0]': 'cache' } },

    openBudget: { args: () => [cache, 3], handles: { '[0]': 'cache' } },
    budgetStats: { args: () => [cache, native.openBudget(cache, 3)], handles: { '[0]': 'cache' } },
    closeBudget: { args: () => [cache, native.openBudget(cache, 3)], handles: { '[0]': 'cache' } },
    chargeBudget: {
      args: () => [cache, native.openBudget(cache, 3), 2],
      handles: { '[0]': 'cache' },
    },

    createBlock: {
      args: () => [cache, native.openBudget(cache, 3)],
      handles: { '[0]': 'cache' },
    },
    blockLength: { args: () => [a], handles: { '[0]': 'block' } },
    blockTokens: { args: () => [a], handles: { '[0]': 'block' } },
    blockSegments: { args: () => [a], handles: { '[0]': 'block' } },
    blockAppendFrom: {
      args: () => [native.createBlock(cache), a],
      handles: { '[0]': 'block', '[1]': 'block' },
    },
    blockInsert: {
      args: () => [native.blockFork(b), 1, a],
      handles: { '[0]': 'block', '[2]': 'block' },
    },
    blockTruncate: { args: () => [native.blockFork(a), 1], handles: { '[0]': 'block' } },
    blockForget: { args: () => [native.blockFork(a), 1, 2], handles: { '[0]': 'block' } },
    blockClear: { args: () => [native.blockFork(a)], handles: { '[0]': 'block' } },
    blockFork: { args: () => [a, 0, 1], handles: { '[0]': 'block' } },
    blockCompact: {
      args: () => [native.blockFork(a)],
      handles: { '[0]': 'block' },
      promise: true,
    },
    blockRead: { args: () => [a, 1], handles: { '[0]': 'block' } },
    blockClose: { args: () => [native.blockFork(a)], handles: { '[0]': 'block' } },

    tryLock: { args: () => [file] },

    createProgress: { args: () => [] },
    progressBytes: { args: () => [native.createProgress()], handles: { '[0]': 'progress' } },
    createCancel: { args: () => [] },
    cancel: { args: () => [native.createCancel()], handles: { '[0]': 'cancel' } },

    step: {
      args: () => {
        const own = newCache()
        const block = native.createBlock(own)
        const worker = stepWorker([block], [1, 2], {
          fields: Float64Array.of(-1, 0, 1, 0),
          drafts: 1,
          group: 0,
          sampler,
        })
        return [model, own, [worker], native.createCancel()]
      },
      handles: {
        '[0]': 'model',
        '[1]': 'cache',
        '[2][0].view[0]': 'block',
        '[2][0].target': 'block',
        '[3]': 'cancel',
      },
      promise: true,
    },
    createEdits: { args: () => [] },
    bringEdits: {
      args: () => {
        const edit = { logits: floats(config.vocabSize), allowed: Int32Array.of(-1) }
        return [native.createEdits(), [edit]]
      },
      handles: { '[0]': 'edits' },
    },
    holdStep: {
      args: () => {
        const own = newCache()
        const worker = hookedWorker(native.createBlock(own))
        return [model, own, [worker], native.createCancel(), native.createEdits()]
      },
      handles: {
        '[0]': 'model',
        '[1]': 'cache',
        '[2][0].view[0]': 'block',
        '[2][0].target': 'block',
        '[3]': 'cancel',
        '[4]': 'edits',
      },
      promise: true,
    },
    finishStep: {
      args: async () => {
        const edit = { logits: floats(config.vocabSize), allowed: Int32Array.of(-1) }
        return [await newHeldStep(), [edit], native.createCancel()]
      },
      handles: { '[0]': 'step', '[2]': 'cancel' },
      promise: true,
    },
    abortStep: {
      args: async () => [await newHeldStep()],
      handles: { '[0]': 'step' },
      promise: true,
    },

    beginPass: {
      args: () => {
        const own = newCache()
        return [own, [passWorker(native.createBlock(own))]]
      },
      handles: { '[0]': 'cache', '[1][0].view[0]': 'block', '[1][0].target': 'block' },
    },
    passAppend: {
      args: () => [newPass(), 1, floats(2 * kvSize), floats(2 * kvSize)],
      handles: { '[0]': 'pass' },
      promise: true,
    },
    passAttend: {
      args: () => {
        const { queryHeads } = config
        const arrays = {
          out: floats(2 * qSize),
          lse: floats(2 * queryHeads),
          sinks: floats(queryHeads),
        }
        const options = { scale: 0.25, softcap: 20, window: 3, wantLse: true, ...arrays }
        return [newPass(), 1, floats(2 * qSize), queryHeads, options]
      },
      handles: { '[0]': 'pass' },
      promise: true,
    },
    passAppendDevice: {
      args: () => [newPass(), 1, { k: 16n, v: 16n, ...memory }],
      handles: { '[0]': 'pass' },
      promise: true,
      unsupported: true,
    },
    passAttendDevice: {
      args: () => [newPass(), 1, { q: 16n, out: 32n, lse: 0n, ...memory }, config.queryHeads, 0.25],
      handles: { '[0]': 'pass' },
      promise: true,
      unsupported: true,
    },
    passCommit: { args: () => [newPass(), Int32Array.of(1)], handles: { '[0]': 'pass' } },
    passAbort: { args: () => [newPass()], handles: { '[0]': 'pass' } },

    beginExport: {
      args: () => {
        const own = newCache()
        return [own, [native.createBlock(own), native.createBlock(own)]]
      },
      handles: { '[0]': 'cache', '[1][0]': 'block' },
    },
    exportIndex: { args: async () => [await newExport()], handles: { '[0]': 'export' } },
    exportPieces: { args: async () => [await newExport()], handles: { '[0]': 'export' } },
    exportRead: {
      args: async () => [await newExport(), 0],
      handles: { '[0]': 'export' },
      promise: true,
    },
    exportEnd: { args: async () => [await newExport()], handles: { '[0]': 'export' } },
    beginImport: {
      args: async () => [newCache(), native.exportIndex(await newExport()), [0, 0]],
      handles: { '[0]': 'cache' },
    },
    importPieces: { args: async () => [await newImport()], handles: { '[0]': 'import' } },
    importWrite: {
      args: async () => {
        const exported = await newExport()
        const imported = native.beginImport(newCache(), native.exportIndex(exported), [])
        return [imported, 0, await native.exportRead(exported, 0)]
      },
      handles: { '[0]': 'import' },
      promise: true,
    },
    importCommit: { args: async () => [await writtenImport()], handles: { '[0]': 'import' } },
    importAbort: { args: async () => [await newImport()], handles: { '[0]': 'import' } },

    'ops.deviceMemory': {
      args: () => [device, new Uint8Array(3)],
      handles: { '[0]': 'device' },
    },
    'ops.readMemory': { args: () => [newMemory()], handles: { '[0]': 'memory' } },
    'ops.embedding': {
      args: () => [device, Int32Array.of(0, 2), new Uint8Array(3 * 4 * 4), 'f32', 4, 1],
      handles: { '[0]': 'device' },
    },
    'ops.rmsNorm': {
      args: () => [device, floats(16), floats(8), 1e-5],
      handles: { '[0]': 'device' },
    },
    'ops.matmul': {
      args: () => {
        const weight = { data: new Uint8Array(3 * 4 * 4), format: 'f32', bias: floats(3) }
        return [device, floats(8), 2, [weight, weight]]
      },
      handles: { '[0]': 'device' },
    },
    'ops.gatedActivation': {
      args: () => [device, floats(8), floats(8), 'silu'],
      handles: { '[0]': 'device' },
    },
    'ops.sample': {
      args: () => [
        device,
        floats(8),
        8,
        [{ ...sampler, seen: Int32Array.of(1), counts: Int32Array.of(2) }],
      ],
      handles: { '[0]': 'device' },
    },
  }

  const handle = {
    device: newDevice,
    model: newModel,
    cache: newCache,
    block: () => native.createBlock(newCache()),
    pass: newPass,
    progress: () => native.createProgress(),
    cancel: () => native.createCancel(),
    memory: newMemory,
    export: newExport,
    import: newImport,
    step: newHeldStep,
    edits: () => native.createEdits(),
  }

  return { device, model, cache, a, b, newCache, newPass, passWorker, calls, handle }
}

/** The function of that name: 'step', 'ops.matmul'. */
function functionOf(native, name) {
  return name.startsWith('ops.') ? native.ops[name.slice(4)] : native[name]
}

/** What stands at a path such as '[2][0].view[0]'. */
function at(value, path) {
  return keys(path).reduce((inside, key) => inside[key], value)
}

/** A copy of `value` with something else at a path; what lies beside the path is shared. */
function put(value, path, other) {
  const [key, ...rest] = keys(path)
  if (key === undefined) return other
  const copy = Object.assign(Array.isArray(value) ? [] : {}, value) // (an array may claim to be 2^32 long)
  copy[key] = put(value[key], rest, other)
  return copy
}

const keys = (path) => (Array.isArray(path) ? path : path.match(/[^.[\]]+/g))

module.exports = { at, floats, functionOf, openBinding, put }
