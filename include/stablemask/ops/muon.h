#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "stablemask/ops/kernels.h"

/// The update of Muon for weight matrices (Jordan et al., "Muon: An optimizer for hidden layers in
/// neural networks", 2024, https://kellerjordan.github.io/posts/muon), in three parts: the momentum
/// with Nesterov's look-ahead, its orthogonalisation, and the step. `control` is that of
/// ops/optimizer.h; a negative gradient scale leaves all but `sum` unchanged. All functions throw
/// c10::Error if sizes, dtypes or devices differ from what they state.
namespace stablemask::ops {

/// m = μ·m + g and sum = g + μ·m with g = grad_scale·grad, on flat buffers of equal size. m and
/// grad are fp32, sum is fp32 or bf16, to which it is rounded. A skipped update leaves `sum` as it
/// was.
void muon_momentum_(at::Tensor& momentum, at::Tensor& sum, const at::Tensor& grad, double mu,
                    const at::Tensor& control, Kernels kernels = Kernels::kFused);

/// Replaces each matrix X by scale·p(p(p(p(p(X/‖X‖))))) with p(X) = (a·I + b·XXᵀ + c·(XXᵀ)²)·X,
/// a = 3.4445, b = −4.7750, c = 2.0315 and the Frobenius norm, which maps the singular values of X
/// to about 1: those above 0.0016·‖X‖ to between 0.68 and 1.21, smaller ones to less; 0 stays 0.
///
/// Each tensor [n, rows, cols] holds n matrices, with any stride between them and contiguous rows
/// or columns; rows ≤ cols, equal in all tensors. fp32 (also fp64), or bf16: then the products take
/// bf16 factors, add up in fp32 and round to bf16. Bitwise reproducible. Takes temporary memory of
/// up to 4 times that of the tensors.
void orthogonalize_(const std::vector<at::Tensor>& matrices, double scale,
                    Kernels kernels = Kernels::kFused);

/// w = (1 − lr·weight_decay)·w − lr·update on flat buffers of equal size; update fp32 or bf16, w as
/// for adamw_.
void muon_apply_(at::Tensor& weights, at::Tensor& remainder, const at::Tensor& update,
                 double weight_decay, const at::Tensor& control, Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
