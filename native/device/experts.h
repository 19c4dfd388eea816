// The choice of experts, as every device makes it.
#pragma once

#include <cstdint>
#include <span>

namespace hogwild {

// The indices of the greatest of a row's router logits [E], in descending order of them; of equal logits that of the
// lower index counts as greater. `chosen` [1 to E]. Where logits are NaN: some distinct indices.
void select_experts(std::span<const float> logits, std::span<std::int32_t> chosen);

}  // namespace hogwild
