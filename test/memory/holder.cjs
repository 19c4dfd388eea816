// Holds a model in a process of its own: `node holder.cjs PATH OPTIONS`, OPTIONS being those of loadModel as JSON. Loads
// it when the first line comes on stdin, computes a step, says `ready`, and ends with stdin.
'use strict'
const { createInterface } = require('node:readline')
const { loadModel } = require('../../dist')

async function main() {
  const [path, options] = process.argv.slice(2)
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  console.log('started')
  await lines.next()
  const model = await loadModel(path, { ...JSON.parse(options), device: 'cpu', threads: 1 })
  const cache = model.createCache({ capacity: 64 })
  await model.prefill(cache.createBlock(), [1, 2, 3])
  console.log('ready')
  await lines.next()
  await model.close()
}

void main()
