// One kernel source, two targets. Included by every .cuh and .cu file of cuda/ in place of the CUDA
// headers.
//
// Under nvcc each name below is a CUDA built-in or one PTX instruction. Under a host compiler the same
// names run on the CPU with the documented semantics and report what CUDA leaves undefined: README.md
// says how, and what a kernel must do to run on both.
#pragma once

#if defined(__CUDACC__)
#include "simt/target_cuda.h"
#else
#include "simt/target_host.h"
#endif
