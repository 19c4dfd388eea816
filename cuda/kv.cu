#include "kernels.h"

namespace hogwild::cuda {}  // namespace hogwild::cuda
