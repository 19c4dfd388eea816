// Groups of known lengths on several devices, so that the last device is done as early as can be, then the one before it,
// and so on: the lexicographic makespan (Eiter, Geibinger, Musliu, Oetsch, Skočovský, Stepanova: "Answer-Set Programming for
// Lexicographical Makespan Optimisation in Parallel Machine Scheduling", 2022). Exactly, by answer-set programming, and by a
// heuristic that takes no time.
//
// From the paper differ: every device takes every group, without release dates and setup, so that the order of a device's
// groups does not change when it is done. The shortest come first, which makes them wait least on average.
//
//   npm install clingo-wasm
//   node examples/makespan.mjs

/** Ticks that each group takes on each device. `groups`: tokens by name; `devices`: tokens in a tick by name. */
export const ticksOf = (groups, devices) =>
  Object.values(groups).map((tokens) =>
    Object.values(devices).map((speed) => Math.ceil(tokens / speed)),
  )

/** When devices are done, the last first. `places`: the device of each group. */
export function spans(ticks, places) {
  const ends = new Array(ticks[0]?.length ?? 0).fill(0)
  for (const [group, device] of places.entries()) ends[device] += ticks[group][device]
  return ends.sort((one, other) => other - one)
}

/** The longest group first, each to the device that would be done with it first (Graham, 1969). Returns the places. */
export function longestFirst(ticks) {
  const ends = new Array(ticks[0]?.length ?? 0).fill(0)
  const places = new Array(ticks.length)
  const order = [...ticks.keys()].sort((a, b) => Math.min(...ticks[b]) - Math.min(...ticks[a]))
  for (const group of order) {
    const after = ends.map((end, device) => end + ticks[group][device])
    places[group] = after.indexOf(Math.min(...after))
    ends[places[group]] = after[places[group]]
  }
  return places
}

/**
 * The places whose spans are lexicographically least. Each device that is done at tick S costs 1 of priority S: where
 * that is fewest for the highest S, then for the next, the sorted spans are least. The heuristic bounds the search.
 */
export async function exact(ticks) {
  if (ticks.length === 0) return []
  const { run } = await import('clingo-wasm')
  const [bound] = spans(ticks, longestFirst(ticks))
  const times = ticks.flatMap((row, group) =>
    row.map((time, device) => `time(${group},${device},${time}).`),
  )
  const program = `${times.join(' ')}
    1 { on(G,D) : time(G,D,_) } 1 :- time(G,_,_).
    span(D,S) :- time(_,D,_), S = #sum { T,G : on(G,D), time(G,D,T) }.
    :- span(_,S), S > ${bound}.
    :~ span(D,S). [1@S,D]
    #show on/2.`
  const { Result, Call, Error: failure } = await run(program, 0)
  if (Result !== 'OPTIMUM FOUND') throw new Error(`clingo: ${failure ?? Result}`)
  const places = new Array(ticks.length)
  for (const atom of Call[0].Witnesses.at(-1).Value) {
    const [, group, device] = /on\((\d+),(\d+)\)/.exec(atom)
    places[group] = Number(device)
  }
  return places
}

/** The names of each device's groups, in the order in which they run. */
export function queues(groups, devices, places) {
  const names = Object.keys(groups).sort((one, other) => groups[one] - groups[other])
  const all = Object.keys(groups)
  return Object.fromEntries(
    Object.keys(devices).map((device, i) => [
      device,
      names.filter((name) => places[all.indexOf(name)] === i),
    ]),
  )
}

async function main() {
  const groups = { a: 500, b: 500, c: 400, d: 400, e: 300, f: 300, g: 300 }
  const devices = { 'cuda:0': 100, 'cuda:1': 100, 'cuda:2': 100 }
  const ticks = ticksOf(groups, devices)
  for (const [name, places] of [
    ['longest first', longestFirst(ticks)],
    ['exact', await exact(ticks)],
  ]) {
    console.log(`${name}: done at ${spans(ticks, places).join(', ')}`)
    console.log(queues(groups, devices, places))
  }
}

if (process.argv[1]?.endsWith('makespan.mjs')) {
  main().catch((error) => {
    console.error(error)
    process.exitCode = 1
  })
}
