// The tag of each kind of handle. JavaScript gives handles back as opaque values: the tag alone tells a
// block from a cache, so two kinds that shared one would be memory errors waiting to happen.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace hogwild::addon {

class BlockHandle;
class CacheHandle;
class Cancel;
class DeviceHandle;
class EarlyEdits;
class ExportHandle;
class ImportHandle;
class HeldStep;
class ModelHandle;
class PassHandle;
struct DeviceMemory;
struct Progress;

// A tag is the place of its state's type in this list, so no tag can be given twice.
template <typename... States>
struct KindList {
  template <typename State>
  static constexpr napi_type_tag tag() {
    static_assert((std::is_same_v<State, States> + ...) == 1, "each kind of handle stands in the list once");
    std::uint64_t place = 0;
    static_cast<void>((... || (++place, std::is_same_v<State, States>)));
    return {0x686f6777696c6400, 0x9d5c1f0b7a3e4c00 + place};
  }
};
using Kinds = KindList<DeviceHandle, ModelHandle, CacheHandle, BlockHandle, PassHandle, Progress, Cancel, DeviceMemory,
                       ExportHandle, ImportHandle, HeldStep, EarlyEdits>;

template <typename State>
inline constexpr napi_type_tag kTypeTag = Kinds::tag<State>();

}  // namespace hogwild::addon
