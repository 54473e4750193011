#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "stablemask/ops/attention.h"
#include "stablemask/ops/decode.h"
#include "stablemask/ops/optimizer.h"

/// The formulas of ops/ in plain ATen: differentiable by autograd, on any device. Every fused
/// kernel is tested against them, and they run where no fused kernel exists. Shapes and formulas:
/// the functions of the same name in attention.h, decode.h, functional.h and optimizer.h.
namespace stablemask::ops::reference {

/// softmax(A ⊙ C + P) ⊙ C · v with one column per pseudo slot, including those right of the block:
/// memory is O(T·max(S, N)). Only the mass of N = ∞ is one column that holds log S. Computes in
/// the dtype `math`, by default fp32 (fp64 for fp64 inputs), and returns q's dtype. `math` = bf16
/// is the usual eager implementation, used as the error bound for bf16 kernels.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options,
                     std::optional<at::ScalarType> math = std::nullopt);

/// log Σ exp of the real scores of each row, [B,H,T], fp32 (fp64 for fp64).
at::Tensor attention_lse(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options);

/// Reads rows and positions on the host: cannot be recorded in a CUDA graph.
at::Tensor decode_attention(const at::Tensor& packed, int64_t heads, const DecodeCache& cache,
                            const at::Tensor& rows, const at::Tensor& positions,
                            const DecodeOptions& options);

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
std::tuple<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& delta,
                                                const at::Tensor& weight, double eps);
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps);
at::Tensor swiglu(const at::Tensor& gate_up);
at::Tensor rope(const at::Tensor& packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& cos_sin);
/// Per row nll + z_loss·lse², fp32 (fp64 for fp64) [rows], 0 where the target is −100.
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets, double z_loss = 0.0);
/// x fp32 as stored in bf16 by an update: m (`moment` 0) or v (1), of step `step`. Element i is
/// rounded away from 0 if the low 16 bits of its fp32 bits and 16 random bits add up to 2^16.
at::Tensor rounded_moment(const at::Tensor& x, const AdamWArgs& args, int64_t step, int64_t moment);
/// Also in fp64: weights without a remainder, m, v and grad.
void adamw_(at::Tensor& weights, at::Tensor& remainder, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args, const at::Tensor& control);

}  // namespace stablemask::ops::reference
