// What a run of workers writes, to the bit: its events, and a hash of the logits that each of its tokens was chosen from.
// test/prefixes.test.ts compares runs by it, in its own process and in another:
//
//     node test/prefixes/record.cjs '{ model, dtype, prefixes, runs }'
//
// makes the runs one after the other on one scheduler and prints JSON: { records, prefixes }, the scheduler's metrics.
'use strict'
const { createHash } = require('node:crypto')

/** `options`: as of `runWorkers`. Times are left out, and how much was reused is told apart. */
async function record({ runWorkers }, options) {
  const hash = createHash('sha256')
  const processLogits = (logits, { worker }) => {
    hash.update(`${worker}`)
    hash.update(new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength))
  }
  const workers = options.workers.map((worker) => ({ ...worker, processLogits }))
  const events = []
  let reusedTokens = 0
  for await (const event of runWorkers({ ...options, workers })) {
    const timeless = 'milliseconds' in event ? { ...event, milliseconds: 0 } : event
    if (event.type !== 'end') {
      events.push(timeless)
      continue
    }
    const { reusedTokens: reused, ...usage } = event.usage
    reusedTokens = reused
    events.push({ ...timeless, usage })
  }
  return { written: { events, logits: hash.digest('hex') }, reusedTokens }
}

async function main() {
  const hogwild = require('../../dist/index.js')
  const { model: path, dtype, prefixes, runs } = JSON.parse(process.argv[2])
  const model = await hogwild.loadModel(path, { device: 'cpu', threads: 1 })
  const scheduler = hogwild.createScheduler({ model, prefixes })
  const records = []
  for (const run of runs) {
    records.push(await record(hogwild, { ...run, model, scheduler, cacheDtype: dtype }))
  }
  await scheduler.close()
  console.log(JSON.stringify({ records, prefixes: scheduler.metrics.prefixes }))
  await model.close()
}

module.exports = { record }
if (require.main === module) void main()
