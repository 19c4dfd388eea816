// Choice of the SIMD level at run time.
#pragma once

#include <string>

#include "device/cpu/kernels.h"
#include "device/cpu/quant_kernels.h"

namespace hogwild {

// A level differs from the one below in one of its tables, or in both.
struct SimdLevel {
  const char* name;
  const CpuKernels* kernels;
  const QuantKernels* quant;
};

// Level `name`, or the best level of this processor if `name` is empty. Throws kUnsupported, naming the levels
// there are, where this build or this processor lacks it.
SimdLevel select_level(const std::string& name);

}  // namespace hogwild
