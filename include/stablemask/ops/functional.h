#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

#include "stablemask/ops/kernels.h"
#include "stablemask/ops/weight.h"

namespace stablemask::ops {

/// Differentiable building blocks. With Kernels::kFused each takes a fused kernel where one serves
/// the device and dtype; otherwise, and with Kernels::kReference, it computes the formula of
/// ops/reference.h. Weight gradients go where ops/weight.h says. Shape and dtype errors are
/// c10::Error.

/// x [..., in] · weightᵀ, weight [out, in] → [..., out].
at::Tensor linear(const at::Tensor& x, const Weight& weight, Kernels kernels = Kernels::kFused);

/// residual + x · weightᵀ; the GEMM accumulates onto the residual (beta = 1).
at::Tensor linear_add(const at::Tensor& x, const Weight& weight, const at::Tensor& residual,
                      Kernels kernels = Kernels::kFused);

/// residual + swiglu(x · upᵀ) · downᵀ; x [..., C], up [2F, C], gate first, down [C, F]. On Hopper
/// GPUs SwiGLU and its gradient are epilogues of the GEMMs (bf16, C and F multiples of 8).
at::Tensor swiglu_feed_forward(const at::Tensor& x, const Weight& up, const Weight& down,
                               const at::Tensor& residual, Kernels kernels = Kernels::kFused);

/// Arguments of `rope`.
struct RopeInputs {
  int64_t dims = 0;      ///< of each head, even
  at::Tensor positions;  ///< int64 [T] or [B,T]
  at::Tensor table;      ///< rope_table's
};

/// x [B,T,C] · weight [Hp·D, C]ᵀ → [B,T,Hp,D] with the first `heads_rotated` heads rotated:
/// rope(linear(x, weight)) without a copy. On Hopper GPUs the rotation is an epilogue of the GEMM
/// when it covers whole heads of D = 64, 128 or 256 (bf16).
at::Tensor rope_linear(const at::Tensor& x, const Weight& weight, int64_t packed_heads,
                       int64_t heads_rotated, const RopeInputs& rope,
                       Kernels kernels = Kernels::kFused);

/// ids int64 [...] → [..., C] rows of weight [V, C].
at::Tensor embedding(const at::Tensor& ids, const Weight& weight,
                     Kernels kernels = Kernels::kFused);

/// y = x / sqrt(mean(x²) + eps) · weight over the last dimension; statistics in fp32.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                    Kernels kernels = Kernels::kFused);

/// (x, rms_norm(x)) for a residual stream: the backward adds the gradients of both outputs in one
/// pass.
std::tuple<at::Tensor, at::Tensor> rms_norm_branch(const at::Tensor& x, const at::Tensor& weight,
                                                   double eps, Kernels kernels = Kernels::kFused);

/// (residual + delta, rms_norm(residual + delta)): one pass over memory where fused.
std::tuple<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& delta,
                                                const at::Tensor& weight, double eps,
                                                Kernels kernels = Kernels::kFused);

/// Layer normalisation with weight and bias [C]; statistics in fp32.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps);

/// gate_up [..., 2F], gate first: silu(gate) · up → [..., F].
at::Tensor swiglu(const at::Tensor& gate_up, Kernels kernels = Kernels::kFused);

/// Exact (erf) GELU.
at::Tensor gelu(const at::Tensor& x);

/// Rotary embedding of the first `heads_rotated` heads of packed [B,T,Hp,D] (queries and keys of
/// the projection [B,T,H+2·Hkv,D]); the rest passes through. `positions` int64 [T] or [B,T]. Pairs
/// (x_m, x_{m+R/2}), m < R/2, R = `dims` ≤ D even, angle position·theta^(−2m/R) (Su et al.,
/// arXiv 2104.09864, half-split layout). Angles in fp32. cos_sin is rope_table's.
at::Tensor rope(const at::Tensor& packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& cos_sin,
                Kernels kernels = Kernels::kFused);

/// fp32 [length, dims]: cos of the dims/2 angles, then sin, for positions 0 … length−1.
at::Tensor rope_table(int64_t length, int64_t dims, double theta);

/// packed [B,T,H+2·Hkv,D] → views q [B,T,H,D], k and v [B,T,Hkv,D]. The gradient of `packed` is
/// formed once, not as the sum of three padded slices.
std::tuple<at::Tensor, at::Tensor, at::Tensor> split_heads(const at::Tensor& packed, int64_t heads,
                                                           int64_t kv_heads);

/// When linear_cross_entropy forms the gradient of the head.
enum class HeadGradient {
  kInBackward,  ///< for any use of the loss
  /// Already in the forward, into weight.grad(): saves a [V, C] buffer and a pass over it. Right
  /// only when `loss.backward()` follows exactly once, with a gradient of 1.
  kInForward,
};

/// Loss of the language-model head without keeping the logits:
///   scale · Σ_n [ −log softmax(x_n · weightᵀ)[targets_n] + z_loss·logsumexp² ] over targets ≠
///   −100.
/// x [N, C], weight [V, C], targets int64 [N], scale fp64 0-dim on x's device (a recorded CUDA
/// graph reads its current value). Returns a 0-dim fp32 tensor (fp64 for fp64). Rows are processed
/// in chunks that bound the memory of the logits; with gradients on, dx and dW are formed with each
/// chunk.
at::Tensor linear_cross_entropy(const at::Tensor& x, const Weight& weight,
                                const at::Tensor& targets, const at::Tensor& scale,
                                double z_loss = 0.0,
                                HeadGradient head_gradient = HeadGradient::kInBackward,
                                Kernels kernels = Kernels::kFused);

/// The same with a number for scale, copied to x's device.
at::Tensor linear_cross_entropy(const at::Tensor& x, const Weight& weight,
                                const at::Tensor& targets, double scale, double z_loss = 0.0);

/// How many rows of logits linear_cross_entropy forms at once, over `vocab` columns.
int64_t logit_chunk_rows(bool on_gpu, int64_t vocab, int64_t element_bytes);

/// Negative log-likelihood per row, fp32 [N] (0 where the target is −100), no gradients.
at::Tensor linear_nll(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                      Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
