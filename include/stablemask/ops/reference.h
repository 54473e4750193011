#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "stablemask/ops/attention.h"
#include "stablemask/ops/optimizer.h"

/// The mathematics of ops/ in plain ATen: differentiable by autograd, on any device. What every
/// fused kernel is tested against, and what runs where no fused kernel exists. Shapes and formulas
/// are those of the functions of the same name in attention.h, functional.h and optimizer.h.
namespace stablemask::ops::reference {

/// Literal softmax(A ⊙ C + P) ⊙ C · v: every pseudo slot is a column, those right of the block too,
/// so that memory is O(T·max(S, N)); only N = ∞ enters as one column holding log S. Computes in
/// `math` — by default fp32, fp64 for fp64 inputs — and returns q's dtype. bf16 as `math` gives the
/// usual eager program, the yardstick for the error of bf16 kernels.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options,
                     std::optional<at::ScalarType> math = std::nullopt);

/// log Σ exp of the real scores of each row of such a call, [B,H,T] in the `math` of `attention`.
at::Tensor attention_lse(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options);

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
std::tuple<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& delta,
                                                const at::Tensor& weight, double eps);
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps);
at::Tensor swiglu(const at::Tensor& gate_up);
at::Tensor rope(const at::Tensor& packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& cos_sin);
/// Per row nll + z_loss·lse², fp32 (fp64 for fp64) [N], 0 where the target is −100.
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets, double z_loss = 0.0);
void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control);

}  // namespace stablemask::ops::reference
