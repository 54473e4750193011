// Replaces ops.cpp and attention.cpp in builds without CUDA kernels.
#include "src/bench/bench.h"
#include "stablemask/base/error.h"
#include "stablemask/ops/device.h"

namespace stablemask::bench {

Report run_attention() { throw ConfigError("this benchmark needs a GPU: " + ops::cuda_problem()); }

Report run_ops(const std::vector<std::string>&) { return run_attention(); }

}  // namespace stablemask::bench
