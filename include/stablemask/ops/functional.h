#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

#include "stablemask/ops/kernels.h"
#include "stablemask/ops/weight.h"

namespace stablemask::ops {

/// Differentiable ops. With Kernels::kFused each runs a fused kernel if there is one for the device
/// and dtype; otherwise, and with Kernels::kReference, it computes the formula of ops/reference.h.
/// ops/weight.h describes where weight gradients are accumulated. Errors in shapes, dtypes
/// (others than fp32, fp64, bf16), devices and ranges throw c10::Error. Legend: B batch, T time, C
/// channels, H heads, Hkv key/value heads, Hp = H + 2·Hkv packed heads, D head dim, F feed-forward
/// hidden size, V vocabulary.

/// Products of a few rows of bf16 that need no gradient, as in decoding, run a kernel on Hopper
/// GPUs that reads the weight at the memory's bandwidth: up to 8 rows, and up to 32 of small
/// weights, of a multiple of 8 inputs. A row's result then depends on that row alone.

/// x [..., in] · weightᵀ, weight [out, in] → [..., out].
at::Tensor linear(const at::Tensor& x, const Weight& weight, Kernels kernels = Kernels::kFused);

/// residual + x · weightᵀ; the GEMM accumulates onto the residual (beta = 1).
at::Tensor linear_add(const at::Tensor& x, const Weight& weight, const at::Tensor& residual,
                      Kernels kernels = Kernels::kFused);

/// bias [C] as the rows of a tensor [..., C] of this shape, as an operand of linear_add. The
/// gradient, a sum over the rows in fp32, is accumulated as those of norms are.
at::Tensor bias_rows(const at::Tensor& bias, at::IntArrayRef shape);

/// residual + swiglu(x · upᵀ) · downᵀ; x [..., C], up [2F, C] (gate rows first), down [C, F]. On
/// Hopper GPUs SwiGLU and its gradient are epilogues of the GEMMs (bf16, C and F multiples of 8).
at::Tensor swiglu_feed_forward(const at::Tensor& x, const Weight& up, const Weight& down,
                               const at::Tensor& residual, Kernels kernels = Kernels::kFused);

/// linear(rms_norm(x, norm, eps), weight) with the same bits; one kernel where x has few rows.
at::Tensor norm_linear(const at::Tensor& x, const at::Tensor& norm, double eps,
                       const Weight& weight, Kernels kernels = Kernels::kFused);

/// swiglu_feed_forward(rms_norm(x, norm, eps), up, down, x) with the same bits; two kernels where x
/// has few rows.
at::Tensor norm_swiglu_feed_forward(const at::Tensor& x, const at::Tensor& norm, double eps,
                                    const Weight& up, const Weight& down,
                                    Kernels kernels = Kernels::kFused);

/// Arguments of `rope`.
struct RopeInputs {
  int64_t dims = 0;      ///< R, rotated dimensions of each head; even
  at::Tensor positions;  ///< int64 [T] or [B,T]
  at::Tensor table;      ///< fp32 [length, dims] from rope_table
};

/// x [B,T,C] · weight [Hp·D, C]ᵀ → [B,T,Hp,D] with the first `heads_rotated` heads rotated:
/// rope(linear(x, weight)) without an intermediate copy. On Hopper GPUs the rotation is an epilogue
/// of the GEMM when it covers whole heads of D = 64, 128 or 256 (bf16).
at::Tensor rope_linear(const at::Tensor& x, const Weight& weight, int64_t packed_heads,
                       int64_t heads_rotated, const RopeInputs& rope,
                       Kernels kernels = Kernels::kFused);

/// ids int64 [...] → [..., C]: rows of weight [V, C].
at::Tensor embedding(const at::Tensor& ids, const Weight& weight,
                     Kernels kernels = Kernels::kFused);

/// y = x / sqrt(mean(x²) + eps) · weight over the last dimension; statistics in fp32.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                    Kernels kernels = Kernels::kFused);

/// (x, rms_norm(x)), for a residual stream: the backward sums the gradients of both outputs in the
/// kernel of the norm's gradient.
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

/// GELU (Hendrycks and Gimpel, arXiv 1606.08415): exact, by erf, or approximated by tanh.
enum class Gelu { kExact, kTanh };
at::Tensor gelu(const at::Tensor& x, Gelu form = Gelu::kExact);

/// Rotary embedding of the first `heads_rotated` heads of packed [B,T,Hp,D] (queries and keys of
/// the projection [B,T,H+2·Hkv,D]); other heads and dimensions are unchanged. `positions` int64 [T]
/// or [B,T]. Pairs (x_m, x_{m+R/2}), m < R/2, R = `dims` ≤ D even, angle position·theta^(−2m/R) (Su
/// et al., arXiv 2104.09864, half-split layout). Angles in fp32. cos_sin: from rope_table.
at::Tensor rope(const at::Tensor& packed, int64_t heads_rotated, int64_t dims,
                const at::Tensor& positions, const at::Tensor& cos_sin,
                Kernels kernels = Kernels::kFused);

/// fp32 [length, dims]: cos of the dims/2 angles, then sin, for positions first … first+length−1,
/// divided by `scaling` (linear position interpolation, Chen et al., arXiv 2306.15595).
at::Tensor rope_table(int64_t length, int64_t dims, double theta, double scaling = 1.0,
                      int64_t first = 0);

/// The angles per position, theta^(−2m/dims), of `rope`: fp64 [dims/2].
at::Tensor rope_frequencies(int64_t dims, double theta);
/// rope_table of positions 0 … length−1 for other frequencies, fp64 [dims/2]; all cos and sin are
/// multiplied by `magnitude`, and with them rotated queries and keys.
at::Tensor rope_table(int64_t length, const at::Tensor& frequencies, double magnitude);

/// packed [B,T,H+2·Hkv,D] → views q [B,T,H,D], k and v [B,T,Hkv,D]. The backward writes
/// the gradient of `packed` once instead of summing three zero-padded slices.
std::tuple<at::Tensor, at::Tensor, at::Tensor> split_heads(const at::Tensor& packed, int64_t heads,
                                                           int64_t kv_heads);

/// When linear_cross_entropy accumulates the gradient of the head's weight.
enum class HeadGradient {
  kInBackward,  ///< in the backward; valid for any use of the loss
  /// In the forward, directly into weight.grad(): saves a [V, C] buffer and a pass over it. Valid
  /// only if loss.backward() follows exactly once with an incoming gradient of 1.
  kInForward,
};

/// Cross-entropy loss of the language-model head without storing all logits:
///   scale · Σ_n [ −log softmax(x_n · weightᵀ)[targets_n] + z_loss·logsumexp² ] over targets ≠
///   −100.
/// x [rows, C], weight [V, C], targets int64 [rows], scale fp64 0-dim on x's device (a recorded
/// CUDA graph reads its current value). Returns a 0-dim fp32 tensor (fp64 for fp64). Logits are
/// computed in chunks of logit_chunk_rows; if gradients are required, dx and dW are computed from
/// each chunk in the forward.
at::Tensor linear_cross_entropy(const at::Tensor& x, const Weight& weight,
                                const at::Tensor& targets, const at::Tensor& scale,
                                double z_loss = 0.0,
                                HeadGradient head_gradient = HeadGradient::kInBackward,
                                Kernels kernels = Kernels::kFused);

/// As above with `scale` as a number, which is copied to x's device.
at::Tensor linear_cross_entropy(const at::Tensor& x, const Weight& weight,
                                const at::Tensor& targets, double scale, double z_loss = 0.0);

/// Rows per chunk of logits [rows, vocab] in linear_cross_entropy and linear_nll; `frozen_head`: in
/// linear_cross_entropy with a gradient of x alone.
int64_t logit_chunk_rows(bool on_gpu, int64_t vocab, int64_t element_bytes,
                         bool frozen_head = false);

/// Negative log-likelihood per row, fp32 [rows] (0 where the target is −100), no gradients.
at::Tensor linear_nll(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                      Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops
