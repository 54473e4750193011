#pragma once

namespace stablemask::ops {

/// Implementation of an op: a fused kernel if there is one for the device and dtype, or always the
/// formula of ops/reference.h.
enum class Kernels { kFused, kReference };

}  // namespace stablemask::ops
