// Choice of the SIMD level at run time.
#pragma once

#include <string>

#include "device/cpu/kernels.h"

namespace hogwild {

// The kernels of level `name`, or of the best level of this processor if `name` is empty. Throws
// kUnsupported, naming the levels there are, where this build or this processor lacks it.
const CpuKernels& select_kernels(const std::string& name);

}  // namespace hogwild
