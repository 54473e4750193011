#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/ops/stable_mask.h"

/// ops::log_pseudo_mass on a GPU: one kernel for the value and one for the gradient.
namespace stablemask::ops::cuda {

/// Whether gamma and p_base are fp32 on a GPU.
bool has_log_mass(const PseudoScores& pseudo);

/// log S for `count` rows of every head, fp32 [H, count]. Row r has position positions[r]
/// (contiguous int64 on the GPU), or offset + r where positions is undefined. Differentiable once
/// in gamma and p_base.
at::Tensor log_mass(const PseudoScores& pseudo, const at::Tensor& positions, int64_t offset,
                    int64_t count, int64_t sequence_length);

}  // namespace stablemask::ops::cuda
