#pragma once

namespace stablemask::ops {

/// Implementation of an op.
enum class Kernels {
  kFused,      ///< a fused kernel if there is one for the device and dtype
  kFusedBf16,  ///< kFused; on the CPU, fp32 products with weights and of attention round
               ///< their operands to bf16
  kReference,  ///< the formula of ops/reference.h
};

}  // namespace stablemask::ops
