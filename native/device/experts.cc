#include "device/experts.h"

#include <algorithm>
#include <cstddef>

namespace hogwild {

void select_experts(std::span<const float> logits, std::span<std::int32_t> chosen) {
  // chosen[0, n) are those of the logits before i, in order.
  std::size_t n = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    std::size_t at = n;
    while (at > 0 && logits[i] > logits[static_cast<std::size_t>(chosen[at - 1])]) --at;
    if (at == chosen.size()) continue;
    n = std::min(n + 1, chosen.size());
    std::shift_right(chosen.data() + at, chosen.data() + n, 1);
    chosen[at] = static_cast<std::int32_t>(i);
  }
}

}  // namespace hogwild
