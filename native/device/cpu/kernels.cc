// Compiled once per SIMD level; HOGWILD_SIMD is the level's name.
//
// RULE: no symbol of vague linkage may leave this file (templates and inline functions of the
// standard library, member functions defined in a class). The linker keeps one copy of such a
// symbol, and that could be the AVX-512 one. So: C headers and intrinsics only, everything but the
// table in an anonymous namespace, and of ops.h the plain data members alone. CI checks it with nm.
#include "device/cpu/kernels.h"

// In this order: each builds on those before it.
// clang-format off
#include "device/cpu/simd.h"
#include "device/cpu/pointwise.h"
#if defined(HOGWILD_HAS_TILES)
#include "device/cpu/amx.h"
#include "device/cpu/amx_matmul.h"
#endif
#include "device/cpu/matmul.h"
#include "device/cpu/kv.h"
#include "device/cpu/attention.h"
// clang-format on

#define HOGWILD_CONCAT_(a, b) a##b
#define HOGWILD_CONCAT(a, b) HOGWILD_CONCAT_(a, b)

namespace hogwild {

extern const CpuKernels HOGWILD_CONCAT(kCpuKernels_, HOGWILD_SIMD);
const CpuKernels HOGWILD_CONCAT(kCpuKernels_, HOGWILD_SIMD) = {
    .embedding = embedding,
    .rms_norm = rms_norm,
    .packs_x = packs_x,
    .pack_x = pack_x,
    .output_block = kOutputBlock,
    .matmul = matmul,
    .gated_activation = gated_activation,
    .add = add,
    .softcap = softcap,
    .add_weighted = add_weighted,
    .kv_append = kv_append,
    .kv_move = kv_move,
    .kv_read = kv_read,
    .kv_save = kv_copy<false>,
    .kv_load = kv_copy<true>,
    .attention_span = attention_span,
    .merge_state = merge_state,
    .finish_state = finish_state,
    .find_max = find_max,
    .sum_exp = sum_exp,
    .read = read,
};

}  // namespace hogwild
