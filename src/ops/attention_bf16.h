#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/ops/attention.h"

namespace stablemask::ops {

/// Whether bf16_attention takes `packed` with these options, which packed_attention has checked.
bool has_bf16_attention(const at::Tensor& packed, const AttentionOptions& options);

/// packed_attention of fp32 on the CPU whose products take operands rounded to bf16 and add in
/// fp32: q·kᵀ, weights·v and the five of the backward. Softmax, pseudo mass and results are fp32;
/// nothing of size T × T is stored. The bits do not depend on the number of threads.
at::Tensor bf16_attention(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                          const AttentionOptions& options);

}  // namespace stablemask::ops
