// In place of ops.cpp and attention.cpp where the CUDA kernels are not built: select_device says
// so.
#include "src/bench/bench.h"
#include "stablemask/base/error.h"
#include "stablemask/ops/device.h"

namespace stablemask::bench {

Report run_ops() { throw ConfigError("kernels are timed on a GPU alone: " + ops::cuda_problem()); }

Report run_attention() { return run_ops(); }

}  // namespace stablemask::bench
