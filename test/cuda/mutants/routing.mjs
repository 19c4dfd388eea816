// Bugs in mixtures of experts: routing, and the products of each expert's rows.
import { doesNotWait } from './overlap.mjs'

const routing = 'routing.cu'
const product = 'product.cuh'

export default {
  sources: ['routing.cu', 'matmul.cu'],
  test: 'routing_test.cc',
  environment: { HOGWILD_TEST_CASES: '2' },
  threads: { environment: { HOGWILD_TEST_CASES: '1' }, test: 'few_rows' },
  mutants: [
    [
      'of equal logits the higher index',
      routing,
      'a.logit == b.logit && a.expert < b.expert',
      'a.logit == b.logit && a.expert > b.expert',
    ],
    ['equal logits in no order', routing, ' || (a.logit == b.logit && a.expert < b.expert)', ''],
    [
      'rows beyond the step are counted',
      routing,
      'static_cast<int>(rows_of(p) * p.params.used)',
      'static_cast<int>(p.params.rows * p.params.used)',
    ],
    ['rows beyond the step get a sum', routing, ' || row >= rows_of(p)) return;', ') return;'],
    ['the same expert again', routing, '    last = best;\n', ''],
    ['what is no number is compared', routing, 'logit == logit ? logit : -kInfinity', 'logit'],
    [
      'only the first 32 experts',
      routing,
      'i < n_experts; i += 32) {\n      const float logit',
      'i < min(n_experts, 32); i += 32) {\n      const float logit',
    ],
    [
      'each lane has a choice of its own',
      routing,
      'if (comes_before(other, best)) best = other;',
      '',
    ],
    ['no barrier between choice and weights', routing, '  __syncwarp();\n', ''],
    ['softmax over those used, always', routing, 'if (!p.params.normalized) sum', 'if (false) sum'],
    ['softmax over all, always', routing, 'if (p.params.normalized) {', 'if (false) {'],
    ['weights are not divided', routing, ' - max) / sum;', ' - max);'],
    ['a row that is not finite gets weights', routing, 'good ? weight', 'true ? weight'],
    [
      'each lane judges by the logits that it has read',
      routing,
      '  good = __all_sync(0xffffffffu, good);\n',
      '',
    ],
    [
      'no barrier before pairs are counted',
      routing,
      'next[e] = 0;\n  __syncthreads();',
      'next[e] = 0;',
    ],
    [
      'no barrier after pairs are counted',
      routing,
      'p.experts[i]], 1u);\n  }\n  __syncthreads();',
      'p.experts[i]], 1u);\n  }',
    ],
    [
      'no barrier before places are taken',
      routing,
      '    if (threadIdx.x == 0) *p.n_runs = runs;\n  }\n  __syncthreads();',
      '    if (threadIdx.x == 0) *p.n_runs = runs;\n  }',
    ],
    ['places of the experts before are forgotten', routing, '      places += all_places;\n', ''],
    ['runs of the experts before are forgotten', routing, '      runs += all_runs;\n', ''],
    [
      'runs are rounded down',
      routing,
      '(count + p.run_rows - 1) / p.run_rows',
      'count / p.run_rows',
    ],
    ['the last run has all rows', routing, 'min(p.run_rows, count - i * p.run_rows)', 'p.run_rows'],
    ['all runs begin with the first row', routing, 'place + i * p.run_rows', 'place'],
    ['a run is the first of its expert', routing, '.first_run = run,', '.first_run = run + i,'],
    [
      'a scan without its last step',
      routing,
      'distance < 32; distance *= 2',
      'distance < 16; distance *= 2',
    ],
    ['runs of all groups are selected', routing, '.group == selected.group;', '.group >= 0;'],
    [
      'the group of the first expert for all',
      routing,
      'kExpertMatrices * run.expert).group',
      '0 * run.expert).group',
    ],
    ['a selected run tells of runs as they were', routing, '      run.first_run += at - i;\n', ''],
    [
      'only the first 32 runs are looked at',
      routing,
      'first < n; first += 32',
      'first < min(n, 32); first += 32',
    ],
    [
      'runs selected before are overwritten',
      routing,
      'count + sum_before(wanted ? 1 : 0, more)',
      'sum_before(wanted ? 1 : 0, more)',
    ],
    ['runs behind the last are selected', routing, 'if (i < n) {', 'if (true) {'],
    [
      'a group without rows has the runs of the one before',
      routing,
      'if (threadIdx.x == 0) *selected.n_runs = count;',
      'if (threadIdx.x == 0 && count > 0) *selected.n_runs = count;',
    ],
    [
      'rows of the pair, not of the row',
      routing,
      'pair / p.params.used) * gather.cols',
      'pair % p.params.rows) * gather.cols',
    ],
    ['copies lie in the order of pairs', routing, 'gather.out) + place *', 'gather.out) + pair *'],
    [
      'columns of the first expert',
      routing,
      'kExpertMatrices * expert + gather.matrix',
      'gather.matrix',
    ],
    [
      'columns of the first matrix',
      routing,
      'kExpertMatrices * expert + gather.matrix',
      'kExpertMatrices * expert',
    ],
    [
      'columns behind a row',
      routing,
      'if (i >= gather.cols) return 0.f;',
      'if (i > gather.cols) return 0.f;',
    ],
    ['sums are not weighted', routing, 'p.weights[pair] * ', ''],
    [
      'one expert is left out',
      routing,
      'pair < (row + 1) * p.params.used; ++pair',
      'pair < (row + 1) * p.params.used - 1; ++pair',
    ],
    ['the sum replaces what was there', routing, '+ column] += sum;', '+ column] = sum;'],
    [
      'weights of the first expert',
      product,
      'kExpertMatrices * run.expert + p.experts.first_matrix',
      'p.experts.first_matrix',
    ],
    ['weights of the first matrix', product, '+ p.experts.first_matrix + matrix', '+ matrix'],
    [
      'the matrix in hand for all',
      product,
      '+ p.experts.first_matrix + matrix',
      '+ p.experts.first_matrix',
    ],
    [
      'the loader goes on behind the last tile',
      product,
      'if (++chunk == p.chunks && more)',
      'if (++chunk == p.chunks)',
    ],
    ['no expert has its bias', product, '    at.bias = own.bias;\n', ''],
    [
      'rows of all runs',
      product,
      'at.end_row = run.first + run.rows;',
      'at.end_row = run.first + Tile::kRows;',
    ],
    ['each run begins at the first row', product, 'at.first_row = run.first;', 'at.first_row = 0;'],
    ['the runs of an expert are one', product, 'if (run.runs > 1) run =', 'if (false) run ='],
    ['tiles of outputs are not shared by the runs', product, 'within / run.runs;', 'within;'],
    [
      'tiles of the experts before count',
      product,
      'within -= run.first_run * p.by_run.divisor;',
      '',
    ],
    [
      'the last tiles are left out',
      product,
      'tiles * (cta + 1) / gridDim.x',
      'tiles * cta / gridDim.x + 1',
    ],
    [
      'bounds of the host for those of the card',
      product,
      'std::int64_t{*p.experts.n_runs}',
      'std::int64_t{p.experts.max_runs}',
    ],
    // kernels that overlap
    doesNotWait(
      'the choice',
      routing,
      'choose_experts(const __grid_constant__ RoutingLaunch p, int n_experts) {',
    ),
    doesNotWait(
      'places',
      routing,
      'place_pairs(const __grid_constant__ RoutingLaunch p, int n_experts) {',
    ),
    doesNotWait('gathering', routing, 'GatherParams gather) {'),
    doesNotWait('the sum of pairs', routing, 'RoutingLaunch p, const float* y) {'),
    [
      'runs are read before the wait',
      product,
      '    simt::wait_for_preceding();  // which weights it takes is decided in the step\n',
      '',
    ],
    [
      'pairs are added up before the wait',
      routing,
      `  simt::follow_preceding();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const std::int64_t hidden = p.params.hidden;
  const std::int64_t row = blockIdx.x;
  if (column >= hidden || row >= rows_of(p)) return;
`,
      `  simt::launch_dependents();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const std::int64_t hidden = p.params.hidden;
  const std::int64_t row = blockIdx.x;
  const float weight = p.weights[row * p.params.used];
  simt::wait_for_preceding();
  if (column >= hidden || row >= rows_of(p) || weight != p.weights[row * p.params.used]) return;
`,
    ],
  ],
}
