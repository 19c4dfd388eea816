// Mutation run: injects one bug at a time into the attention kernels and reports which check sees it.
//
//   node test/cuda/mutants.mjs [part of a name ...]
//
// Each mutant is compiled for two head dims (whole and half page tiles) and run through attention_test,
// and, where that sees nothing, under ThreadSanitizer. Prints a table; exits 1 where a bug escapes or
// the unmodified control is reported. About 15 s of a processor per mutant, not for CI.
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))
const attention = 'attention.cu'
const all = Symbol('replace every occurrence')

/** [name, file of cuda/, text, replacement, all?] */
const mutants = [
  ['control: nothing changed', attention, '', ''],
  // barriers and waits
  [
    'no barrier after the wait for a tile',
    attention,
    '    __syncthreads();  // this tile is there',
    '    // this tile is there',
  ],
  [
    'wait for one group too few',
    attention,
    'cp_async_wait<Shape::kStages - 2>',
    'cp_async_wait<Shape::kStages - 1>',
  ],
  [
    'no commit in the loop',
    attention,
    '    simt::cp_async_commit();\n\n    const int row_tile',
    '\n    const int row_tile',
  ],
  [
    'no barrier after the rotation of queries',
    attention,
    'at.kv_head, queries);\n      __syncthreads();',
    'at.kv_head, queries);\n',
  ],
  [
    'no barrier before the exchange',
    attention,
    '+ place.lane;  // lane beside lane: no bank conflict\n    __syncthreads();',
    '+ place.lane;\n',
  ],
  [
    'no barrier inside the exchange',
    attention,
    '    __syncthreads();\n    if (place.key_warp < half) {',
    '    if (place.key_warp < half) {',
  ],
  [
    'plan: no barrier before the scan adds',
    attention,
    ': 0;\n      __syncthreads();\n      scan[tid] += lower;',
    ': 0;\n      scan[tid] += lower;',
  ],
  [
    'plan: no barrier after the scan added',
    attention,
    'scan[tid] += lower;\n      __syncthreads();',
    'scan[tid] += lower;',
  ],
  [
    'plan: no barrier before the next round',
    attention,
    '    before += scan[kThreads - 1];\n    __syncthreads();',
    '    before += scan[kThreads - 1];',
  ],
  [
    'barrier that only some warps reach',
    attention,
    '    if (new_pair) {\n',
    '    if (place.lane < 16) __syncwarp();\n    if (new_pair) {\n',
  ],
  // stages
  [
    'copy into the stage in use',
    attention,
    'stages + begun % Shape::kStages',
    'stages + (begun + 1) % Shape::kStages',
  ],
  [
    'wrong stage read',
    attention,
    'stages + i % Shape::kStages',
    'stages + (i + 1) % Shape::kStages',
  ],
  [
    'shared memory 16 bytes short',
    attention,
    'kStages * kStageBytes + kMergeBytes;',
    'kStages * kStageBytes + kMergeBytes - 16;',
  ],
  // tiles, pages, tails
  [
    'slots before the segment are copied',
    attention,
    'slot >= segment.first_slot && slot <',
    'slot <',
  ],
  [
    'slots behind the segment are copied',
    attention,
    ' && slot < segment.first_slot + segment.length;',
    ';',
  ],
  [
    'always the first page',
    attention,
    'segment.first_page + first_slot / kPageSize',
    'segment.first_page',
  ],
  [
    'always the first half of a page',
    attention,
    ' + static_cast<std::size_t>(first_slot % kPageSize) * Shape::kHeadDim;',
    ';',
  ],
  [
    'another kv head of the page',
    'page.cuh',
    'page * shape.kv_heads + kv_head',
    'page * shape.kv_heads + (kv_head + 1) % shape.kv_heads',
  ],
  [
    'tiles counted without the first slot',
    attention,
    'ceil_div(s.first_slot + limit, keys_per_tile)',
    'ceil_div(limit, keys_per_tile)',
  ],
  ['tiles before the first slot are counted', attention, ' - s.first_slot / keys_per_tile;', ';'],
  // swizzle
  ['no swizzle', 'page.cuh', 'own_chunk ^ (row / (8 / kShared) % kShared)', 'own_chunk'],
  [
    'queries swizzled by another row',
    attention,
    '(r, first_chunk & ~1, first_chunk & 1)',
    '(r ^ 1, first_chunk & ~1, first_chunk & 1)',
  ],
  [
    'keys and values swapped',
    attention,
    'const uint4* keys = stage;\n  const uint4* values = stage + Shape::kKeys * Shape::kChunks;',
    'const uint4* values = stage;\n  const uint4* keys = stage + Shape::kKeys * Shape::kChunks;',
  ],
  // masks
  [
    'mask lets one key too many through',
    attention,
    'at >= sight.end[j / 2]',
    'at > sight.end[j / 2]',
  ],
  ['mask forgets slots before the segment', attention, 'at < sight.begin || at >=', 'at >='],
  ['mask looks at one row only', attention, 'min(sight.end[0], sight.end[1])', 'sight.end[0]'],
  [
    'hidden segments are seen',
    attention,
    '    if (visit.limit == 0) continue;\n    sight.end[i] = segment.first_slot + min(visit.limit, segment.length);',
    '    sight.end[i] = segment.first_slot + max(visit.limit, 1);',
  ],
  [
    'padding rows take the last token',
    attention,
    'if (row < rows && visit.limit > 0)',
    'if (visit.limit > 0)',
  ],
  // rotation
  ['rotation the other way', attention, 'x * cos[i] - y * sin[i]', 'x * cos[i] + y * sin[i]'],
  [
    'rotation by the angle of the next row',
    attention,
    'static_cast<std::size_t>(visit.angle)',
    'static_cast<std::size_t>(visit.angle ^ 1)',
  ],
  [
    'all dims rotated together',
    attention,
    'u + rotary_units : 2 * u + 1',
    'u + kPairs : 2 * u + 1',
  ],
  [
    'queries not rotated again for the next kv head',
    attention,
    ' || at.kv_head != done.kv_head;',
    ';',
  ],
  [
    'queries not rotated again for the next segment',
    attention,
    'at.pair != done.pair ||',
    'at.pair / segments != row_tile ||',
  ],
  // softmax and bias
  ['bias not in units of log 2', attention, 'visit.bias * kLog2E', 'visit.bias'],
  ['sum not rescaled', 'softmax_state.cuh', '    sum[row] *= factor;\n', ''],
  ['output not rescaled', 'softmax_state.cuh', 'out[i][2 * row] *= factor;', ';'],
  [
    'maximum over two of four lanes',
    'softmax_state.cuh',
    'return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));',
    'return value;',
  ],
  [
    'no care for rows without keys',
    'softmax_state.cuh',
    'raised == -INFINITY ? 0.f : raised',
    'raised',
  ],
  [
    'probabilities in another order',
    attention,
    'probabilities[i / 2][2 * (i % 2) + row]',
    'probabilities[i / 2][i % 2 + 2 * row]',
  ],
  ['lse in units of log 2', attention, 'simt::log2_approx(sum)) * kLn2', 'simt::log2_approx(sum))'],
  // merge
  [
    'factors of the merged rows swapped',
    attention,
    'tiles[i * 32], factor0, factor1',
    'tiles[i * 32], factor1, factor0',
  ],
  [
    'slots of cut outputs collide',
    attention,
    'static_cast<int>(blockIdx.x) + output, state',
    'static_cast<int>(blockIdx.x), state',
  ],
  ['cut outputs written as whole', attention, 'first_position <= run_begin && run_end', 'run_end'],
  [
    'last CTA of an output left out',
    attention,
    'last_cta = static_cast<int>((run_end * ctas - 1) / total)',
    'last_cta = static_cast<int>(((run_end - 1) * ctas - 1) / total)',
  ],
  [
    'state not cleared at a new output',
    attention,
    '      state.clear();\n    }\n  }\n}',
    '    }\n  }\n}',
  ],
  [
    'outputs without keys divide by zero',
    attention,
    'const float inverse = sum > 0.f ? 1.f / sum : 0.f',
    'const float inverse = 1.f / sum',
  ],
  // work and rows
  ['cursor stops at a pair without tiles', attention, '} while (tiles == 0);', '} while (false);'],
  [
    'shares one tile short',
    attention,
    'static_cast<int>(share_begin(total, cta + 1, ctas) - begin)',
    'max(0, static_cast<int>(share_begin(total, cta + 1, ctas) - begin) - 1)',
  ],
  [
    'token and head of a row swapped',
    attention,
    '* p.group + row % p.group;',
    '* p.group + row / p.group % p.group;',
    all,
  ],
  [
    'tiles counted for the first token only',
    attention,
    'for (int t = first; t < end; ++t) {',
    'for (int t = first; t < first + 1; ++t) {',
  ],
  [
    'a block twice in a view is seen once',
    'plan.cc',
    '.limit > 0) ++copy;',
    '.limit > 1 << 30) ++copy;',
  ],
]

const work = mkdtempSync(join(tmpdir(), 'hogwild-mutants-'))
const runtime = ['fiber', 'runtime', 'warp', 'async_copy'].map((name) => `cuda/simt/${name}.cc`)
const flags = ['-std=c++20', '-O1', '-w', '-DHOGWILD_SIMT', '-Inative']

function compile(...args) {
  const { status, stderr } = spawnSync('g++', args, { cwd: root, encoding: 'utf8' })
  if (status !== 0) throw new Error(`g++ ${args.join(' ')}\n${stderr}`)
}

/** What is compiled once: the runtime and the test, plain and for ThreadSanitizer. */
function build(name, runtimeFlags, testFlags, cases, tests) {
  const folder = join(work, name)
  mkdirSync(folder)
  const objects = [...runtime, 'test/cuda/attention_test.cc'].map((file, i) => {
    const object = join(folder, `${i}.o`)
    const own = file.startsWith('test/') ? testFlags : runtimeFlags
    compile(...flags, '-Icuda', ...own, '-c', file, '-o', object)
    return object
  })
  return (cuda) => {
    const program = join(folder, 'test')
    compile(
      ...flags,
      ...testFlags,
      `-I${cuda}`,
      '-x',
      'c++',
      join(cuda, attention),
      join(cuda, 'plan.cc'),
      '-x',
      'none',
      ...objects,
      '-o',
      program,
    )
    const { status, signal, stdout, stderr } = spawnSync(program, tests, {
      cwd: work,
      encoding: 'utf8',
      timeout: 300_000,
      env: {
        ...process.env,
        HOGWILD_TEST_CASES: cases,
        HOGWILD_TEST_HEAD_DIMS: '80,192',
        TSAN_OPTIONS: 'exitcode=66',
      },
    })
    const text = stdout + stderr
    if (signal === 'SIGTERM') return 'hangs'
    if (text.includes('ThreadSanitizer: data race')) return 'data race (ThreadSanitizer)'
    if (signal !== null) return `crash (${signal})`
    if (status === 0) return ''
    if (/unexpected exception: (block|deadlock)/.test(text)) return 'report of the layer'
    if (/error \/ tolerance|: lse /.test(text)) return 'wrong result'
    if (/same_bits/.test(text)) return 'depends on the schedule'
    if (/bytes_copied/.test(text)) return 'bytes read'
    if (/ldmatrix_conflicts/.test(text)) return 'bank conflicts'
    return `exit ${status}`
  }
}

let failed = false
try {
  const plain = build('plain', [], [], '2', [])
  const threads = build('tsan', ['-DSIMT_TSAN'], ['-fsanitize=thread'], '1', ['single_tokens'])
  const wanted = process.argv.slice(2)
  console.log('| injected bug | seen by |\n| --- | --- |')
  for (const [name, file, from, to, every] of mutants) {
    if (wanted.length > 0 && !wanted.some((part) => name.includes(part))) continue
    const cuda = join(work, 'cuda')
    rmSync(cuda, { recursive: true, force: true })
    cpSync(join(root, 'cuda'), cuda, { recursive: true })
    const edit = (path, before, after, everywhere) => {
      const text = readFileSync(join(cuda, path), 'utf8')
      const count = text.split(before).length - 1
      if (before !== '' && (everywhere ? count < 1 : count !== 1)) {
        throw new Error(`${name}: '${before}' occurs ${count} times in ${path}`)
      }
      writeFileSync(join(cuda, path), before === '' ? text : text.replaceAll(before, () => after))
    }
    edit(attention, 'dispatch_int<64, 80, 96, 112, 128, 192, 256>', 'dispatch_int<80, 192>')
    edit(file, from, to, every === all)
    const seen = plain(cuda) || threads(cuda)
    const isControl = from === ''
    failed ||= isControl === (seen !== '')
    console.log(`| ${name} | ${seen || (isControl ? '-' : '**not seen**')} |`)
  }
} finally {
  rmSync(work, { recursive: true })
}
process.exitCode = failed ? 1 : 0
