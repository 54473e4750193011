#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace stablemask::ops {

/// Differentiable building blocks. Each picks a fused kernel where one exists for the device and
/// falls back to the reference in ops/reference.h.
///
/// With `use_reference_only(true)` every op of the process takes the reference, attention and
/// optimizer too: what the fused kernels are checked against. Set it before other threads call ops.
void use_reference_only(bool on);

/// Gradients of weights: when `weight.grad()` is defined it is accumulated into in place, in its
/// own dtype (fp32 views of the flat gradient buffer, also for bf16 weights), by beta = 1 where the
/// op is a GEMM; otherwise the gradient is returned to autograd as usual.

/// While it lives, gradients of weights take the short ways that a training step allows, in every
/// thread. linear_cross_entropy writes the head's gradient in its forward and passes the one of x
/// on as it is: right only where `loss.backward()` follows, once, with a gradient of 1. With
/// `overwrite`, for the first micro-batch of a step, the ops that multiply by a weight overwrite
/// its gradient instead of adding to it: it needs no zeros and is not read. Right only where each
/// weight serves one such op of the forward pass; `embedding` adds behind the head that it shares a
/// weight with.
class StepGrads {
 public:
  explicit StepGrads(bool overwrite);
  ~StepGrads();
  StepGrads(const StepGrads&) = delete;
  StepGrads& operator=(const StepGrads&) = delete;
};

/// x [..., in] · weightᵀ, weight [out, in] → [..., out].
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight);

/// residual + x · weightᵀ, the sum formed in the product's own accumulation (beta = 1).
at::Tensor linear_add(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual);

/// residual + swiglu(x · upᵀ) · downᵀ; x [..., C], up [2F, C], gate first, down [C, F]. On Hopper
/// GPUs SwiGLU and its gradient run inside the products (bf16).
at::Tensor swiglu_feed_forward(const at::Tensor& x, const at::Tensor& up, const at::Tensor& down,
                               const at::Tensor& residual);

/// Rotary embedding as `rope` does it.
struct RopeInputs {
  int64_t dims = 0;      ///< of each head, even
  at::Tensor positions;  ///< int64 [T] or [B,T]
  at::Tensor table;      ///< rope_table's
};

/// The projection x [B,T,C] · weight [Hp·D, C]ᵀ → [B,T,Hp,D] with its first `heads_rotated` heads
/// rotated: rope(linear(x, weight)) without a copy, on Hopper GPUs inside the product where all of
/// D = 64, 128 or 256 dims are rotated (bf16).
at::Tensor rope_linear(const at::Tensor& x, const at::Tensor& weight, int64_t packed_heads,
                       int64_t heads_rotated, const RopeInputs& rope);

/// ids int64 [...] → [..., C] rows of weight [V, C].
at::Tensor embedding(const at::Tensor& ids, const at::Tensor& weight);

/// y = x / sqrt(mean(x²) + eps) · weight over the last dimension; statistics in fp32.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// (x, rms_norm(x)), where x goes on beside its norm, as a residual stream does: the gradients of
/// both meet in one pass.
std::tuple<at::Tensor, at::Tensor> rms_norm_branch(const at::Tensor& x, const at::Tensor& weight,
                                                   double eps);

/// (residual + delta, rms_norm(residual + delta)): one pass over memory where fused.
std::tuple<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& delta,
                                                const at::Tensor& weight, double eps);

/// Layer normalisation with weight and bias [C]; statistics in fp32.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps);

/// gate_up [..., 2F], gate first: silu(gate) · up → [..., F].
at::Tensor swiglu(const at::Tensor& gate_up);

/// Exact (erf) GELU.
at::Tensor gelu(const at::Tensor& x);

/// Rotary embedding of the first `heads_rotated` heads of packed [B,T,Hp,D] (queries and keys of
/// the projection [B,T,H+2·Hkv,D]); the rest passes through. `positions` int64 [T] or [B,T]. Pairs
/// (x_m, x_{m+R/2}), m < R/2, R = `dims` ≤ D even, angle position·theta^(−2m/R) (Su et al.,
/// arXiv 2104.09864, half-split layout). Angles in fp32. cos_sin is rope_table's.
at::Tensor rope(const at::Tensor& packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& cos_sin);

/// fp32 [length, dims]: cos of the dims/2 angles, then sin, for positions 0 … length−1.
at::Tensor rope_table(int64_t length, int64_t dims, double theta);

/// packed [B,T,H+2·Hkv,D] → views q [B,T,H,D], k and v [B,T,Hkv,D]. The gradient of `packed` is
/// formed once, not as the sum of three padded slices.
std::tuple<at::Tensor, at::Tensor, at::Tensor> split_heads(const at::Tensor& packed, int64_t heads,
                                                           int64_t kv_heads);

/// Loss of the language-model head without keeping the logits:
///   scale · Σ_n [ −log softmax(x_n · weightᵀ)[targets_n] + z_loss·logsumexp² ] over targets ≠
///   −100.
/// x [N, C], weight [V, C], targets int64 [N]; a 0-dim fp32 tensor. Rows are processed in chunks
/// that bound the logits' memory; when gradients are on, dx and dW are formed with each chunk.
at::Tensor linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& targets, double scale, double z_loss = 0.0);

/// How many rows of logits linear_cross_entropy forms at once, over `vocab` columns.
int64_t logit_chunk_rows(bool on_gpu, int64_t vocab, int64_t element_bytes);

/// Negative log-likelihood per row, fp32 [N] (0 where the target is −100), no gradients.
at::Tensor linear_nll(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets);

}  // namespace stablemask::ops
