#pragma once

namespace stablemask::ops {

/// Which implementation an op takes: a fused kernel where one serves the device and dtype, or the
/// formula of ops/reference.h.
enum class Kernels { kFused, kReference };

}  // namespace stablemask::ops
