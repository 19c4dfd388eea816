// Bugs in the attention kernels that attention_test must see (mutants.mjs says how this is read).
const kernels = 'attention.cu'

export default {
  sources: [kernels, 'plan.cc'],
  test: 'attention_test.cc',
  // One width with tiles of whole pages, one of half pages: compiles in a third of the time.
  edits: [
    [
      kernels,
      'dispatch_int(RowWidths(), static_cast<int>',
      'dispatch_int<80, 192>(static_cast<int>',
    ],
  ],
  environment: { HOGWILD_TEST_CASES: '2', HOGWILD_TEST_ROW_WIDTHS: '80,192' },
  threads: { environment: { HOGWILD_TEST_CASES: '1' }, test: 'single_' },
  mutants: [
    // barriers and waits
    [
      'no barrier after the wait for a tile',
      kernels,
      '    __syncthreads();  // this tile is there',
      '    // this tile is there',
    ],
    [
      'wait for one group too few',
      kernels,
      'cp_async_wait<Tile::kStages - 2>',
      'cp_async_wait<Tile::kStages - 1>',
    ],
    [
      'no commit in the loop',
      kernels,
      '    simt::cp_async_commit();\n\n    const int row_tile',
      '\n    const int row_tile',
    ],
    [
      'no barrier after the rotation of queries',
      kernels,
      'at.kv_head, queries);\n      __syncthreads();',
      'at.kv_head, queries);\n',
    ],
    [
      'no barrier before the exchange',
      kernels,
      '+ place.lane;  // lane beside lane: no bank conflict\n    __syncthreads();',
      '+ place.lane;\n',
    ],
    [
      'no barrier inside the exchange',
      kernels,
      '    __syncthreads();\n    if (place.key_warp < half) {',
      '    if (place.key_warp < half) {',
    ],
    [
      'no commit before the loop',
      kernels,
      '      ++begun;\n    }\n    simt::cp_async_commit();\n  }\n\n  typename',
      '      ++begun;\n    }\n  }\n\n  typename',
    ],
    [
      'plan: no barrier before the scan reads',
      kernels,
      '    scan[tid] = tiles;\n    __syncthreads();',
      '    scan[tid] = tiles;',
    ],
    [
      'plan: no barrier before the scan adds',
      kernels,
      ': 0;\n      __syncthreads();\n      scan[tid] += lower;',
      ': 0;\n      scan[tid] += lower;',
    ],
    [
      'plan: no barrier after the scan added',
      kernels,
      'scan[tid] += lower;\n      __syncthreads();',
      'scan[tid] += lower;',
    ],
    [
      'plan: no barrier before the next round',
      kernels,
      '    before += scan[kThreads - 1];\n    __syncthreads();',
      '    before += scan[kThreads - 1];',
    ],
    [
      'barrier that only half a warp reaches',
      kernels,
      '    if (new_pair) {\n',
      '    if (place.lane < 16) __syncwarp();\n    if (new_pair) {\n',
    ],
    // stages
    [
      'copy into the stage in use',
      kernels,
      'stages + begun % Tile::kStages',
      'stages + (begun + 1) % Tile::kStages',
    ],
    ['wrong stage read', kernels, 'stages + i % Tile::kStages', 'stages + (i + 1) % Tile::kStages'],
    [
      'shared memory 16 bytes short',
      kernels,
      'kStages * kStageBytes + kMergeBytes;',
      'kStages * kStageBytes + kMergeBytes - 16;',
    ],
    // tiles, pages, tails
    [
      'slots before the segment are copied',
      kernels,
      'token < static_cast<unsigned>(segment.length);',
      'static_cast<int>(token) < segment.length;',
    ],
    [
      'slots behind the segment are copied',
      kernels,
      'token < static_cast<unsigned>(segment.length);',
      'static_cast<int>(token) >= 0;',
    ],
    [
      'always the first page',
      kernels,
      'segment.first_page + first_slot / kPageSize',
      'segment.first_page',
    ],
    [
      'always the first half of a page',
      kernels,
      ' +\n                             static_cast<std::size_t>(first_slot % kPageSize) * Tile::kChunks;',
      ';',
    ],
    [
      'another kv head of the page',
      'page.cuh',
      'page * kv_heads + kv_head',
      'page * kv_heads + (kv_head + 1) % kv_heads',
    ],
    [
      'tiles counted without the first slot',
      kernels,
      'ceil_div(s.first_slot + limit, keys_per_tile)',
      'ceil_div(limit, keys_per_tile)',
    ],
    ['tiles before the first slot are counted', kernels, ' - s.first_slot / keys_per_tile;', ';'],
    // swizzle
    ['no swizzle', 'page.cuh', 'own_chunk ^ (row / (8 / shared) % shared)', 'own_chunk'],
    [
      'queries swizzled by another row',
      kernels,
      'Tile::kChunks, r, unit.chunk[0]',
      'Tile::kChunks, r ^ 1, unit.chunk[0]',
    ],
    [
      'keys and values swapped',
      kernels,
      'const uint4* keys = stage;\n  const uint4* values = stage + Tile::kKeys * Tile::kChunks;',
      'const uint4* values = stage;\n  const uint4* keys = stage + Tile::kKeys * Tile::kChunks;',
    ],
    // masks
    [
      'mask lets one key too many through',
      kernels,
      'at >= row_mask.end[j / 2]',
      'at > row_mask.end[j / 2]',
    ],
    ['mask forgets slots before the segment', kernels, 'at < row_mask.begin || at >=', 'at >='],
    [
      'mask looks at one row only',
      kernels,
      'min(row_mask.end[0], row_mask.end[1])',
      'row_mask.end[0]',
    ],
    [
      'hidden segments are seen',
      kernels,
      '    if (range.limit == 0) continue;\n    row_mask.end[i] = segment.first_slot + min(range.limit, segment.length);',
      '    row_mask.end[i] = segment.first_slot + max(range.limit, 1);',
    ],
    // queries
    [
      'queries taken as f32',
      kernels,
      'ActivationRow q = {p.q, p.q_dtype,',
      'ActivationRow q = {p.q, Dtype::kF32,',
    ],
    [
      'queries rotated by the angle of the next row',
      kernels,
      'p.rope, range.rope_row,',
      'p.rope, range.rope_row ^ 1,',
    ],
    [
      'queries not scaled in their second chunk',
      kernels,
      'pack8<T>(unit.second, p.scale_log2)',
      'pack8<T>(unit.second)',
    ],
    [
      'queries as wide as the rows of pages',
      kernels,
      'row_index(p, row, kv_head) * head_dim}',
      'row_index(p, row, kv_head) * Tile::kWidth}',
    ],
    [
      'queries not rotated again for the next kv head',
      kernels,
      ' || at.kv_head != done.kv_head;',
      ';',
    ],
    [
      'queries not rotated again for the next segment',
      kernels,
      'at.pair != done.pair ||',
      'at.pair / segments != row_tile ||',
    ],
    // softmax and bias
    ['bias not in units of log 2', kernels, 'range.bias * kLog2E', 'range.bias'],
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
      kernels,
      'probabilities[i / 2][2 * (i % 2) + row]',
      'probabilities[i / 2][i % 2 + 2 * row]',
    ],
    ['lse in units of log 2', kernels, 'simt::log2_approx(sum)) * kLn2', 'simt::log2_approx(sum))'],
    // merge
    [
      'slots of the exchange collide',
      kernels,
      'place.key_warp % half * Tile::kRowWarps + place.row_warp;',
      'place.key_warp % half * Tile::kRowWarps;',
    ],
    ['merged sums not rescaled', 'softmax_state.cuh', 'other_sum * factor;', 'other_sum;'],
    [
      'pieces of cut outputs not rescaled',
      kernels,
      'factor = simt::exp2_approx(state.x - reference);',
      'factor = 1.f;',
    ],
    [
      'factors of the merged rows swapped',
      kernels,
      'tiles[i * 32], factor0, factor1',
      'tiles[i * 32], factor1, factor0',
    ],
    ['slots of cut outputs collide', kernels, 'begin < run_begin ? 1 : 0);', '0);'],
    [
      'the slot of the first CTA is taken for that of its first output',
      kernels,
      'cta == first_cta ? first_slot : 2 *',
      '2 *',
    ],
    [
      'more than the first CTA is looked up in the slot of its last output',
      kernels,
      'cta == first_cta ? first_slot : 2 * static_cast<std::size_t>(cta);',
      'first_slot + 2 * static_cast<std::size_t>(cta - first_cta);',
    ],
    ['cut outputs written as whole', kernels, 'first_position <= run_begin && run_end', 'run_end'],
    [
      'last CTA of an output left out',
      kernels,
      'last_cta = static_cast<int>((run_end * ctas - 1) / total)',
      'last_cta = static_cast<int>(((run_end - 1) * ctas - 1) / total)',
    ],
    [
      'state not cleared at a new output',
      kernels,
      '      state.clear();\n    }\n  }\n}',
      '    }\n  }\n}',
    ],
    [
      'rows without keys divide by zero',
      kernels,
      'sum == 0.f ? 0.f : 1.f / sum;\n      const',
      '1.f / sum;\n      const',
    ],
    [
      'outputs without keys divide by zero',
      kernels,
      'sum == 0.f ? 0.f : 1.f / sum;\n    visit_array',
      '1.f / sum;\n    visit_array',
    ],
    // results
    ['padding is written', kernels, 'if (column < columns)', 'if (true)'],
    [
      'results as wide as the rows of pages',
      kernels,
      'out + at * head_dim + own_column',
      'out + at * Tile::kWidth + own_column',
    ],
    [
      'combined results as wide as the rows of pages',
      kernels,
      'out + out_row * head_dim + column,',
      'out + out_row * p.width + column,',
    ],
    [
      'partial results as wide as heads',
      kernels,
      'p.partial_out + at * p.width + column',
      'p.partial_out + at * head_dim + column',
    ],
    [
      'f16 results written as bf16',
      'vector_load.cuh',
      'body(static_cast<simt::f16*>(array))',
      'body(static_cast<simt::bf16*>(array))',
    ],
    // work and rows
    ['cursor stops at a pair without tiles', kernels, '} while (tiles == 0);', '} while (false);'],
    [
      'shares one tile short',
      kernels,
      'static_cast<int>(share_begin(total, cta + 1, ctas) - begin)',
      'max(0, static_cast<int>(share_begin(total, cta + 1, ctas) - begin) - 1)',
    ],
    [
      'token and head of a row swapped',
      kernels,
      '* p.group + row % p.group;',
      '* p.group + row / p.group % p.group;',
    ],
    [
      'tiles counted for the first token only',
      kernels,
      'for (int t = first; t < end; ++t) {',
      'for (int t = first; t < first + 1; ++t) {',
    ],
    [
      'a block twice in a view is seen once',
      'plan.cc',
      '.limit > 0) ++copy;',
      '.limit > 1 << 30) ++copy;',
    ],
  ],
}
