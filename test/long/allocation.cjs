// Every allocation, mapping and thread start of the addon fails once, and all from each on.
'use strict'
const { countFailures, missing, runFailures } = require('../allocation/run.cjs')

async function main() {
  if (missing()) return console.log(`skipped: needs ${missing()}`)
  let failures = 0
  for (const mode of ['once', 'on']) {
    for (const cache of ['f32', 'int8']) {
      failures += countFailures(await runFailures({ mode, cache, timeout: 1_200_000 }))
    }
  }
  console.log(
    `${failures} failures: HOGWILD_OUT_OF_MEMORY or success each, nothing changed or leaked`,
  )
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
