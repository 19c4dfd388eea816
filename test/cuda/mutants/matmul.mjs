// Bugs in the matrix products.
const matmul = 'matmul.cu'

export default {
  sources: ['matmul.cu'],
  test: 'matmul_test.cc',
  environment: { HOGWILD_TEST_CASES: '2' },
  threads: { environment: { HOGWILD_TEST_CASES: '1' }, test: 'rows_equal' },
  mutants: [
    [
      'no barrier after the wait for a chunk',
      matmul,
      '    __syncthreads();  // this chunk is there for all; all are done with the one before\n',
      '',
    ],
    [
      'wait for one group too few',
      matmul,
      'simt::cp_async_wait<Tile::kStages - 2>',
      'simt::cp_async_wait<Tile::kStages - 1>',
    ],
    [
      'the next chunk goes into the stage in use',
      matmul,
      '(i + Tile::kStages - 1) % Tile::kStages * Tile::kStageBytes',
      'i % Tile::kStages * Tile::kStageBytes',
    ],
    // (The barrier between the partial sums and the ticket orders CTAs, which run one after another here.)
    [
      'every warp takes a ticket',
      matmul,
      'if (threadIdx.x == 0) *ticket',
      'if (threadIdx.x % 32 == 0) *ticket',
    ],
    [
      'no barrier before the ticket is read',
      matmul,
      'atomicAdd(&p.tickets[tile], 1u);\n      __syncthreads();',
      'atomicAdd(&p.tickets[tile], 1u);',
    ],
    ['the ticket is not reset', matmul, '        if (threadIdx.x == 0) p.tickets[tile] = 0;\n', ''],
    [
      'the last but one CTA adds up',
      matmul,
      'static_cast<unsigned>(last_cta - first_cta);',
      'static_cast<unsigned>(max(last_cta - first_cta - 1, 0));',
    ],
    [
      'both edges of a share in one slot',
      matmul,
      '(tile == first.tile ? 0 : 1)) * kTileSize',
      '0) * kTileSize',
    ],
    [
      'the first CTA of a tile is left out',
      matmul,
      'int cta = first; cta <= last',
      'int cta = first + 1; cta <= last',
    ],
    [
      'sums are kept from tile to tile',
      matmul,
      '    sums.clear();\n    tile_chunks = 0;',
      '    tile_chunks = 0;',
    ],
    [
      'the bias is added twice',
      matmul,
      'value += simt::load_constant(to.bias + output);',
      'value += 2 * simt::load_constant(to.bias + output);',
    ],
    [
      'accumulation is forgotten',
      matmul,
      '*y = to.accumulate ? *y + value : value;',
      '*y = value;',
    ],
    [
      'outputs beyond the matrix are written',
      matmul,
      'if (output >= n || row >= p.params.rows) return;',
      'if (row >= p.params.rows) return;',
    ],
    [
      'the tail of k is not zero',
      matmul,
      'const bool valid = row < p.params.rows && column < k;',
      'const bool valid = row < p.params.rows;',
    ],
    [
      'weights beyond the matrix are read',
      matmul,
      'const bool valid = output < weight.rows && column < k;',
      'const bool valid = output < weight.rows + 1 && column < k;',
    ],
    [
      'weights are not permuted',
      matmul,
      'chunk ^ (row / kRowsPerLine',
      '0 * kRowsPerLine + chunk ^ (0 * row',
    ],
    [
      'halves of a fragment change places',
      matmul,
      'fragments[o], low, high)',
      'fragments[o], high, low)',
    ],
    ['x overflows in f16', matmul, 'v > kMax ? kMax : v < -kMax ? -kMax : v', 'v'],
    [
      'where the work is cut depends on the rows',
      matmul,
      'tiles * chunks / kMinChunks, std::int64_t{1}',
      'tiles * chunks / (params.rows > 16 ? 3 : kMinChunks), std::int64_t{1}',
    ],
    [
      'rows of the next row tile',
      matmul,
      'within % p.row_tiles) * Tile::kRows',
      'within % p.row_tiles) * Tile::kRows * 2',
    ],
  ],
}
