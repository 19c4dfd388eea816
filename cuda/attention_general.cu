// Concurrent attention: the general main kernel (attention.cuh). What distinguishes it from the plain one is decided at
// run time, once per tile and outside the loops over it, the same for all threads.
//
// mma.sync multiplies 16 bits. Keys and values of a 16-bit format are multiplied as they lie. The others become bf16 on
// their way to shared memory: codes of int8 are exact there, and their scales multiply the scores, or the weights;
// f32 is rounded.
#include "attention.cuh"

namespace hogwild::cuda {
namespace {

// Shared memory: queries, stages, what warps exchange, and the masks of the rows.
template <int kRowWidth, int kRowsPerTile>
struct GeneralTile : Tile<kRowWidth, kRowsPerTile> {
  using Base = Tile<kRowWidth, kRowsPerTile>;
  static constexpr int kOperandBytes = Base::kStageBytes / 2;  // of the keys of a tile, or of its values
  static constexpr int kScaleBytes = Base::kKeys * static_cast<int>(sizeof(float));
  static constexpr int kStageBytes = 2 * (kOperandBytes + kScaleBytes);  // keys, values, their scales
  static constexpr int kMaskBytes = Base::kRows * static_cast<int>(sizeof(int4));
  static constexpr int kOtherBytes = Base::kQueryBytes + Base::kMergeBytes + kMaskBytes;
  static constexpr int kStages = stages_that_fit(kOtherBytes, kStageBytes);
  static constexpr int kSharedBytes = kOtherBytes + kStages * kStageBytes;
  static_assert(kSharedBytes <= kSharedLimit, "does not fit");
};

// What a row sees of a segment, in slots from the segment's first page (nothing where end <= begin), and what becomes
// of its scores.
struct alignas(16) RowSight {
  int begin, end;
  float inverse_temperature;
  float bias;  // in units of log 2
};

// Eight codes as eight bf16. 128 + (code & 127) has the low bits of the code for its own, and so has
// -128 - (code & 128).
SIMT_DEVICE uint4 widen_codes(unsigned low, unsigned high) {
  const auto pair = [](unsigned codes, unsigned selectors) {
    const std::uint32_t spread = simt::select_bytes(codes, 0, selectors);
    return simt::add_bf16x2((spread & 0x007f007fu) | 0x43004300u, (spread & 0x00800080u) | 0xc300c300u);
  };
  constexpr unsigned kFirst = 0x4140, kSecond = 0x4342;  // two bytes, each with a zero above it
  return make_uint4(pair(low, kFirst), pair(low, kSecond), pair(high, kFirst), pair(high, kSecond));
}

SIMT_DEVICE uint4 narrow_floats(uint4 first, uint4 second) {
  float x[8];
  memcpy(x, &first, sizeof first);
  memcpy(x + 4, &second, sizeof second);
  return pack8<simt::bf16>(x);
}

// A tile of a segment in the pool.
struct TilePlace {
  std::int64_t page;
  int kv_head;
  int slot;         // of the page: the tile's first
  int first_token;  // of the segment, at that slot; may be negative
  int length;       // of the segment

  SIMT_DEVICE bool is_token(int row) const {
    return static_cast<unsigned>(first_token + row) < static_cast<unsigned>(length);
  }
};

template <typename Tile>
SIMT_DEVICE TilePlace place_of(const AttentionArguments& p, const WorkCursor& at, int segments) {
  const Segment segment = load_constant_16(p.plan.segments + at.pair % segments);
  const int first_slot = (p.first_tiles[at.pair] + at.tile) * Tile::kKeys;
  return {simt::load_constant(p.plan.pages + segment.first_page + first_slot / kPageSize), at.kv_head,
          static_cast<int>(first_slot % kPageSize), first_slot - segment.first_slot, segment.length};
}

// The keys, or the values, of a tile to shared memory: operands [kKeys][kChunks], and scales [kKeys] where the format
// has them. Slots that are not the segment's become zero.
template <typename Tile>
SIMT_DEVICE void load_rows(const AttentionArguments& p, const void* pool, KvFormat format, const TilePlace& tile,
                           uint4* operands, float* scales) {
  constexpr int kOperands = Tile::kKeys * Tile::kChunks;
  const int tid = static_cast<int>(threadIdx.x);
  const unsigned char* const head = static_cast<const unsigned char*>(pool) +
                                    page_byte(tile.page, tile.kv_head, p.shape.kv_heads, format, Tile::kWidth);
  if (is_permuted(format)) {
    const uint4* const from = reinterpret_cast<const uint4*>(head) + tile.slot * Tile::kChunks;
    static_assert(kOperands % kThreads == 0, "each thread copies the same number of chunks");
#pragma unroll
    for (int i = 0; i < kOperands / kThreads; ++i) {
      const int chunk = tid + i * kThreads;
      simt::cp_async_16(operands + chunk, from + chunk, tile.is_token(chunk / Tile::kChunks));
    }
    return;
  }
  const uint4 zero = make_uint4(0, 0, 0, 0);
  if (format == KvFormat::kInt8) {
    constexpr int kChunks = Tile::kChunks / 2;  // of a row of codes, each of two operands
    const uint4* const from = reinterpret_cast<const uint4*>(head) + tile.slot * kChunks;
#pragma unroll 2
    for (int chunk = tid; chunk < kOperands / 2; chunk += kThreads) {
      const int row = chunk / kChunks;
      const uint4 codes = tile.is_token(row) ? simt::load_once(from + chunk) : zero;
      operands[swizzled_chunk(Tile::kChunks, row, chunk % kChunks * 2, 0)] = widen_codes(codes.x, codes.y);
      operands[swizzled_chunk(Tile::kChunks, row, chunk % kChunks * 2, 1)] = widen_codes(codes.z, codes.w);
    }
    if (tid < Tile::kKeys) {
      const float* const from_scales = reinterpret_cast<const float*>(head + kPageSize * Tile::kWidth) + tile.slot;
      scales[tid] = tile.is_token(tid) ? from_scales[tid] : 0.f;
    }
    return;
  }
  const uint4* const from = reinterpret_cast<const uint4*>(head) + tile.slot * 2 * Tile::kChunks;
#pragma unroll 2
  for (int chunk = tid; chunk < kOperands; chunk += kThreads) {
    const int row = chunk / Tile::kChunks;
    const bool is_token = tile.is_token(row);
    const uint4 first = is_token ? simt::load_once(from + 2 * chunk) : zero;
    const uint4 second = is_token ? simt::load_once(from + 2 * chunk + 1) : zero;
    operands[swizzled_chunk(Tile::kChunks, row, chunk % Tile::kChunks)] = narrow_floats(first, second);
  }
}

// Asks for the rows that load_rows will wait for.
template <typename Tile>
SIMT_DEVICE void prefetch_rows(const AttentionArguments& p, const void* pool, KvFormat format, const TilePlace& tile) {
  if (is_permuted(format)) return;
  constexpr int kLine = 128;
  const int row_bytes = Tile::kWidth * (format == KvFormat::kInt8 ? 1 : 4);
  const unsigned char* const rows = static_cast<const unsigned char*>(pool) +
                                    page_byte(tile.page, tile.kv_head, p.shape.kv_heads, format, Tile::kWidth) +
                                    tile.slot * row_bytes;
  for (int at = static_cast<int>(threadIdx.x) * kLine; at < Tile::kKeys * row_bytes; at += kThreads * kLine) {
    simt::prefetch(rows + at);
  }
}

template <typename TileSizes>
struct GeneralAttention {
  using Tile = TileSizes;

  const uint4* queries;   // [kRows][kChunks]: registers for them are left to what a tile needs
  RowSight* sights;       // [kRows]
  int segment_start = 0;  // first slot of the segment's first tile that is seen

  SIMT_DEVICE explicit GeneralAttention(unsigned char* shared)
      : queries(reinterpret_cast<const uint4*>(shared)),
        sights(reinterpret_cast<RowSight*>(shared + Tile::kSharedBytes - Tile::kMaskBytes)) {}

  SIMT_DEVICE static float* key_scales(uint4* stage) {
    return reinterpret_cast<float*>(stage + 2 * Tile::kOperandBytes / static_cast<int>(sizeof(uint4)));
  }
  SIMT_DEVICE static float* value_scales(uint4* stage) { return key_scales(stage) + Tile::kKeys; }
  SIMT_DEVICE static uint4* values_of(uint4* stage) {
    return stage + Tile::kOperandBytes / static_cast<int>(sizeof(uint4));
  }

  SIMT_DEVICE void load(const AttentionArguments& p, const WorkCursor& at, int segments, uint4* stage) const {
    const TilePlace tile = place_of<Tile>(p, at, segments);
    load_rows<Tile>(p, p.layer.keys, p.shape.key_format, tile, stage, key_scales(stage));
    load_rows<Tile>(p, p.layer.values, p.shape.value_format, tile, values_of(stage), value_scales(stage));
    if (at.tile + 1 == at.tiles) return;
    WorkCursor ahead = at;
    ++ahead.tile;
    const TilePlace next = place_of<Tile>(p, ahead, segments);
    prefetch_rows<Tile>(p, p.layer.keys, p.shape.key_format, next);
    prefetch_rows<Tile>(p, p.layer.values, p.shape.value_format, next);
  }

  SIMT_DEVICE void open(const AttentionArguments& p, const WorkCursor& at, int tokens, int segments, int rows,
                        int first_row, uint4* rotated, const Place&) {
    const int index = at.pair % segments;
    const std::size_t first_range = static_cast<std::size_t>(index) * tokens;
    const DeviceQueryRange* query_ranges = p.plan.query_ranges + first_range;
    const Segment segment = load_constant_16(p.plan.segments + index);
    const bool in_f16 = p.shape.key_format == KvFormat::kF16;
    rotate_queries<Tile>(p, query_ranges, rows, first_row, at.kv_head, rotated, [&](const float (&x)[8], float factor) {
      return in_f16 ? pack8<simt::f16>(x, factor) : pack8<simt::bf16>(x, factor);
    });
    const int row = first_row + static_cast<int>(threadIdx.x);
    if (static_cast<int>(threadIdx.x) < Tile::kRows) {
      RowSight sight = {0, 0, 1, 0};
      if (row < rows) {
        const int token = row / p.group;
        const DeviceQueryRange range = load_constant_16(query_ranges + token);
        sight.begin = segment.first_slot + first_seen(range, p.window);
        sight.end = segment.first_slot + min(range.limit, segment.length);
        sight.bias = range.bias * kLog2E;
        if (p.plan.temperatures != nullptr) {
          sight.inverse_temperature = 1.f / simt::load_constant(p.plan.temperatures + first_range + token);
        }
      }
      sights[threadIdx.x] = sight;
    }
    __syncthreads();
    segment_start = p.first_tiles[at.pair] * Tile::kKeys;
  }

  // softcap * tanh(score / softcap), both in units of log 2.
  SIMT_DEVICE static float cap(float score, float softcap) {
    const float greatest = softcap * kLog2E;
    const float x = score * (kLn2 / softcap);
    // Where 1 - 2 / (e^2x + 1) loses its last digits: the series of tanh, to 2^-22.
    const float x2 = x * x;
    const float near = score * (1 + x2 * (-1.f / 3 + x2 * (2.f / 15 + x2 * (-17.f / 315 + x2 * (62.f / 2835)))));
    const float far = greatest - 2 * greatest * simt::reciprocal_approx(1 + simt::exp2_approx(2 * kLog2E * x));
    return x2 < 0.09f ? near : far;
  }

  // Of the warp's keys: those of columns 8 i + 2 (lane % 4) and the next.
  SIMT_DEVICE static float2 scales_at(const float* scales, const Place& place, int i) {
    return *reinterpret_cast<const float2*>(scales + place.key_warp * Tile::kWarpKeys + 8 * i + 2 * (place.lane % 4));
  }

  SIMT_DEVICE void attend(const AttentionArguments& p, uint4* stage, const Place& place, int tile,
                          typename Tile::State& state) const {
    constexpr int kWarpKeys = Tile::kWarpKeys;
    std::uint32_t query_fragments[Tile::kWidth / 16][4];
    load_query_fragments<Tile>(queries, place, query_fragments);
    float scores[kWarpKeys / 8][4] = {};
    if (p.shape.key_format == KvFormat::kF16) {
      add_scores<simt::f16, Tile>(stage, query_fragments, place, scores);
    } else {
      add_scores<simt::bf16, Tile>(stage, query_fragments, place, scores);
    }
    if (p.shape.key_format == KvFormat::kInt8) {
#pragma unroll
      for (int i = 0; i < kWarpKeys / 8; ++i) {
        const float2 scale = scales_at(key_scales(stage), place, i);
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i][j] *= j % 2 == 0 ? scale.x : scale.y;
      }
    }
    if (p.softcap != 0) {
#pragma unroll
      for (int i = 0; i < kWarpKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i][j] = cap(scores[i][j], p.softcap);
      }
    }

    const RowSight* own = sights + place.row_warp * 16 + place.lane / 4;
    const RowSight sight[2] = {own[0], own[8]};
#pragma unroll
    for (int i = 0; i < kWarpKeys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[i][j] = scores[i][j] * sight[j / 2].inverse_temperature + sight[j / 2].bias;
      }
    }
    const int slot = segment_start + tile * Tile::kKeys + place.key_warp * kWarpKeys;
    if (slot < max(sight[0].begin, sight[1].begin) || slot + kWarpKeys > min(sight[0].end, sight[1].end)) {
      hide_scores<Tile>(place, slot, scores,
                        [&](int at, int row) { return at < sight[row].begin || at >= sight[row].end; });
    }

    weigh_scores<Tile>(scores, state, [&](int i, int row, float first, float second) {
      scores[i][2 * row] = first;
      scores[i][2 * row + 1] = second;
    });
    if (p.shape.value_format == KvFormat::kInt8) {
#pragma unroll
      for (int i = 0; i < kWarpKeys / 8; ++i) {
        const float2 scale = scales_at(value_scales(stage), place, i);
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i][j] *= j % 2 == 0 ? scale.x : scale.y;
      }
    }
    if (p.shape.value_format == KvFormat::kF16) {
      add_weighted<simt::f16>(values_of(stage), scores, place, state);
    } else {
      add_weighted<simt::bf16>(values_of(stage), scores, place, state);
    }
  }

  template <typename T>
  SIMT_DEVICE static void add_weighted(const uint4* values, const float (&weights)[Tile::kWarpKeys / 8][4],
                                       const Place& place, typename Tile::State& state) {
    std::uint32_t packed[Tile::kWarpKeys / 16][4];
#pragma unroll
    for (int i = 0; i < Tile::kWarpKeys / 8; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        packed[i / 2][2 * (i % 2) + row] = simt::pack2<T>(weights[i][2 * row], weights[i][2 * row + 1]);
      }
    }
    add_values<T, Tile>(values, packed, place, state);
  }
};

template <typename Tile>
__global__ void __launch_bounds__(kThreads, 2) attend_general(const __grid_constant__ AttentionArguments p) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(shared);
  walk_share<GeneralAttention<Tile>>(p, shared);
}

}  // namespace

cudaError_t general_ctas_per_multiprocessor(const AttentionArguments& p, int* ctas) {
  return dispatch_tile(p.width, p.rows_per_tile, [&]<int kWidth, int kRows>() {
    using Sizes = GeneralTile<kWidth, kRows>;
    return SIMT_OCCUPANCY(attend_general<Sizes>, kThreads, Sizes::kSharedBytes, ctas);
  });
}

cudaError_t launch_general(const AttentionArguments& p, KernelStream stream) {
  return dispatch_tile(p.width, p.rows_per_tile, [&]<int kWidth, int kRows>() {
    using Sizes = GeneralTile<kWidth, kRows>;
    return SIMT_LAUNCH(attend_general<Sizes>, dim3(static_cast<unsigned>(p.max_ctas)), dim3(kThreads),
                       Sizes::kSharedBytes, stream, p);
  });
}

}  // namespace hogwild::cuda
