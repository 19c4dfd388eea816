// Bugs in the matrix products.

const matmul = 'matmul.cu'
const product = 'product.cuh'

export default {
  sources: ['matmul.cu'],
  test: 'matmul_test.cc',
  environment: { HOGWILD_TEST_CASES: '2' },
  threads: { environment: { HOGWILD_TEST_CASES: '1' }, test: 'rows_equal' },
  mutants: [
    [
      'no barrier after the wait for a chunk',
      product,
      '    __syncthreads();  // this chunk is there for all; all are done with the one before\n',
      '',
    ],
    [
      'wait for one group too few',
      product,
      'simt::cp_async_wait<Own::kStages - 2>',
      'simt::cp_async_wait<Own::kStages - 1>',
    ],
    [
      'no commit before the loop',
      product,
      'loader.advance(p, stage + 1 < n);\n    }\n    simt::cp_async_commit();',
      'loader.advance(p, stage + 1 < n);\n    }',
    ],
    [
      'no commit in the loop',
      product,
      '    simt::cp_async_commit();\n    Own::multiply',
      '    Own::multiply',
    ],
    [
      'the next chunk goes into the stage in use',
      product,
      'const int free = stage == 0 ? (Own::kStages - 1) * kBytes : stage - kBytes;',
      'const int free = stage;',
    ],
    // (The barrier between the partial sums and the ticket orders CTAs, which run one after another here.)
    [
      'every warp takes a ticket',
      product,
      'if (threadIdx.x == 0) *ticket = atomicAdd(&p.tickets',
      'if (threadIdx.x % 32 == 0) *ticket = atomicAdd(&p.tickets',
    ],
    [
      'no barrier before the ticket is read',
      product,
      'atomicAdd(&p.tickets[tile], 1u);\n      __syncthreads();',
      'atomicAdd(&p.tickets[tile], 1u);',
    ],
    [
      'the ticket is not reset',
      product,
      '        if (threadIdx.x == 0) p.tickets[tile] = 0;\n',
      '',
    ],
    [
      'the last but one CTA adds up',
      product,
      'static_cast<unsigned>(last_cta - first_cta);',
      'static_cast<unsigned>(max(last_cta - first_cta - 1, 0));',
    ],
    [
      'both edges of a share in one slot',
      product,
      '(is_first_tile ? 0 : 1)) * kTileSize',
      '0) * kTileSize',
    ],
    [
      'the first CTA of a tile is left out',
      product,
      'int cta = first; cta <= last',
      'int cta = first + 1; cta <= last',
    ],
    ['sums are kept from tile to tile', product, '    sums.clear();\n    ++tile;', '    ++tile;'],
    [
      'the bias is added twice',
      product,
      'value += simt::load_constant(at.bias + output);',
      'value += 2 * simt::load_constant(at.bias + output);',
    ],
    [
      'accumulation is forgotten',
      product,
      '*y = to.accumulate ? *y + value : value;',
      '*y = value;',
    ],
    [
      'outputs beyond the matrix are written',
      product,
      'if (output >= n || row >= at.end_row) return;',
      'if (row >= at.end_row) return;',
    ],
    [
      'the tail of k is not zero',
      product,
      'const bool inside = chunk * Tile::kDepth + 8 * own_chunk < k;',
      'const bool inside = true;',
    ],
    ['rows beyond a matrix are read', product, 'inside && i < rows);', 'inside && i <= rows);'],
    [
      'operands are not permuted',
      product,
      'chunk ^ (row / kRowsPerLine',
      '0 * kRowsPerLine + chunk ^ (0 * row',
    ],
    [
      'halves of a fragment change places',
      matmul,
      'rows[2 * s], rows[2 * s + 1]',
      'rows[2 * s + 1], rows[2 * s]',
    ],
    [
      'both steps of a pair take the x of the first',
      matmul,
      'rows[2 * s], rows[2 * s + 1]',
      'rows[0], rows[1]',
    ],
    [
      'both steps of a pair take the weights of the first',
      matmul,
      '2 * (step + s) + lane / 16',
      '2 * step + lane / 16',
    ],
    [
      'the x of the first eight rows for all',
      matmul,
      'first_row + 8 * r + lane % 8',
      'first_row + lane % 8',
    ],
    ['x of the other pairs of steps', matmul, '2 * step + lane / 8', 'lane / 8'],
    [
      'x lies where the weights end in another tile',
      product,
      'stage + Operand<Weights, Tile>::kWeightBytes), chunk',
      'stage + Operand<Weights, Tile>::kWeightBytes - 128), chunk',
    ],
    [
      'threads without a row of x copy one',
      product,
      '      if (kRows % kRowsApart != 0 && own_row + i >= kRows) break;\n',
      '',
    ],
    [
      'where the work is cut depends on the rows',
      product,
      'tiles * chunks / Operand<Weights, Tile>::kMinChunks, std::int64_t{1}',
      'tiles * chunks / (params.rows > 16 ? 3 : 2), std::int64_t{1}',
    ],
    [
      'rows of the next row tile',
      product,
      '(row_tile) * Tile::kRows',
      '(row_tile) * Tile::kRows * 2',
    ],
    [
      'rows beyond the step are read',
      product,
      'rows = static_cast<int>(max(min(end_row - row, std::int64_t{kRows})',
      'rows = static_cast<int>(max(min(row < end_row ? std::int64_t{kRows} : std::int64_t{0}, std::int64_t{kRows})',
    ],
    [
      'the column stays where it is',
      product,
      'advance() { from += Tile::kDepth; }',
      'advance() {}',
    ],
    [
      'a tile begins with its first column',
      product,
      '+ chunk * Tile::kDepth + 8 * own_chunk;',
      '+ 8 * own_chunk;',
    ],
    ['the loader stays in its tile', product, 'seek(p, tile + 1, 0);', 'chunk = 0;'],
    [
      'a tile that was begun by another CTA is whole',
      product,
      '(chunk == p.chunks && share_begin <= tile_begin)',
      '(chunk == p.chunks)',
    ],
    [
      'a tile ends with its share only',
      product,
      'if (++chunk < p.chunks && left > 1) continue;',
      'if (++chunk < p.chunks || left > 1) continue;',
    ],
    ['chunks are counted on behind a tile', product, '    chunk = 0;\n', ''],
    [
      'stages are used without the last',
      product,
      'stage = stage == (Own::kStages - 1) * kBytes ? 0',
      'stage = stage == (Own::kStages - 2) * kBytes ? 0',
    ],
    [
      'the loop loads one chunk too few',
      product,
      'if (left >= Own::kStages) {',
      'if (left > Own::kStages) {',
    ],
    [
      'copies of a thread one row too close',
      product,
      'stage + i * Tile::kRowChunks, from',
      'stage + (i - i / kRowsApart) * Tile::kRowChunks, from',
    ],
    [
      'the first CTA is looked up in the slot of its last tile, never',
      product,
      'cta != first || p.shares.begin(cta) >= tile_begin',
      'true',
    ],
    [
      'the rest of the work is left out',
      'quotient.cuh',
      '(cta < larger ? cta : larger)',
      '(cta < larger ? cta : larger - 1)',
    ],
    [
      'the owner of a chunk is off where shares are smaller',
      'quotient.cuh',
      'larger + by_small.of(unit - first_small)',
      'larger + by_large.of(unit - first_small)',
    ],
    [
      'the multiplier of a quotient is rounded down',
      'quotient.cuh',
      'static_cast<std::uint64_t>(divisor) - 1) /',
      '0) /',
    ],
    [
      'a quotient is shifted too far for powers of two',
      'quotient.cuh',
      'std::bit_width(static_cast<std::uint32_t>(divisor) - 1)',
      'std::bit_width(static_cast<std::uint32_t>(divisor))',
    ],
    // kernels that overlap
    [
      'a product does not wait',
      product,
      '    ahead.advance(p, stage + 1 < n);\n  }\n  simt::wait_for_preceding();\n',
      '    ahead.advance(p, stage + 1 < n);\n  }\n',
    ],
    [
      'it lets the next kernel start only at its end',
      product,
      '  simt::launch_dependents();\n  if (p.experts.runs',
      '  if (p.experts.runs',
    ],
    [
      'x is brought before the wait',
      product,
      `    ahead.advance(p, stage + 1 < n);
  }
  simt::wait_for_preceding();
#pragma unroll 1
  for (int stage = 0; stage < Own::kStages - 1; ++stage) {
    if (stage < first_stages) {
      loader.load_x(p, shared + stage * kBytes);
`,
      `    loader.load_x(p, shared + stage * kBytes);
    loader.advance(p, stage + 1 < n);
    ahead.advance(p, stage + 1 < n);
  }
  loader.seek(p, first_tile, first_chunk);
  simt::wait_for_preceding();
#pragma unroll 1
  for (int stage = 0; stage < Own::kStages - 1; ++stage) {
    if (stage < first_stages) {
`,
    ],
    [
      'weights of all stages from the first chunk',
      product,
      '    ahead.advance(p, stage + 1 < n);\n  }\n  simt',
      '  }\n  simt',
    ],
    [
      'weights of fewer stages',
      product,
      'const int first_stages = min(n, Own::kStages - 1);',
      'const int first_stages = min(n, Own::kStages - 2);',
    ],
    // gate and up
    [
      'the first of gate and up is activated',
      product,
      'if (*ticket == 0) return;\n  __threadfence();',
      'if (*ticket == 1) return;\n  __threadfence();',
    ],
    [
      'the ticket of gate and up is not reset',
      product,
      '  if (threadIdx.x == 0) *arrived = 0;\n',
      '',
    ],
    [
      'gate and up take the tickets of tiles that are cut',
      product,
      '  p.gate_tickets += tiles;\n',
      '',
    ],
    [
      'every warp takes a ticket of gate and up',
      product,
      'if (threadIdx.x == 0) *ticket = atomicAdd(arrived, 1u);',
      'if (threadIdx.x % 32 == 0) *ticket = atomicAdd(arrived, 1u);',
    ],
    [
      'no barrier before the ticket of gate and up is read',
      product,
      'atomicAdd(arrived, 1u);\n  __syncthreads();',
      'atomicAdd(arrived, 1u);',
    ],
    // (The barrier between a tile and its ticket orders CTAs, as above.)
    ['up is activated', product, 'gates[i], ups[i])', 'ups[i], gates[i])'],
    [
      'outputs beyond gate and up are activated',
      product,
      '  if (output >= n) return;\n  static_assert',
      '  static_assert',
    ],
    [
      'rows beyond the step are activated',
      product,
      'min(at.end_row, at.first_row + Tile::kRows)',
      'at.first_row + Tile::kRows',
    ],
    [
      'half of the rows are activated',
      product,
      'row += Tile::kThreads / Tile::kOutputs',
      'row += Tile::kThreads / Tile::kOutputs * 2',
    ],
    [
      'activations are rounded to f32',
      'vector_load.cuh',
      'to->bits = static_cast<std::uint16_t>(round2<T>(v, 0.f));',
      'to->bits = static_cast<std::uint16_t>(round2<T>(0.f, v));',
    ],
    [
      'gate and up of different sizes',
      product,
      'p.n_outputs != 2 || p.outputs[0].weight.rows != p.outputs[1].weight.rows',
      'p.n_outputs != 2',
    ],
    [
      'gate and up are added to what was there',
      product,
      '    if (p.outputs[0].accumulate || p.outputs[1].accumulate) return false;\n',
      '',
    ],
    [
      'one activation for all',
      'gated.cuh',
      'if (activation == Activation::kGeluTanh)',
      'if (activation != Activation::kSilu)',
    ],
  ],
}
