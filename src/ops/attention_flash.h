#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

/// Stock flash attention kernels behind one face: they return the output and the natural
/// log-sum-exp of each row's scores, and take both back for the gradient. No autograd, no
/// StableMask.
namespace stablemask::ops::flash {

enum class Kernel {
  kCpu,     ///< ATen's CPU kernel: fp32, fp64, bf16, grouped heads, additive mask
  kCudnn,   ///< bf16, square causal
  kFlash2,  ///< FlashAttention-2: bf16, grouped heads, causal up to the last key, window, sequences
};

struct Call {
  Kernel kernel = Kernel::kCpu;
  double scale = 1.0;
  bool causal = true;     ///< row i sees key j ≤ i + (S − T); kCpu and kCudnn need S = T for it
  at::Tensor mask;        ///< kCpu: added to the scores, broadcastable to [B,H,T,S]
  int64_t window = 0;     ///< kFlash2: keys a row may see, itself included; 0: all
  at::Tensor boundaries;  ///< kFlash2: int32 [n+1], where each of n sequences packed into one
                          ///< row (B = 1) begins, then T; no sequence sees another
  int64_t longest = 0;    ///< kFlash2: upper bound on the length of those sequences
};

struct Result {
  at::Tensor out;           ///< [B,T,H,D]
  at::Tensor lse;           ///< fp32 (fp64 for fp64) [B,H,T]
  at::Tensor seed, offset;  ///< random state the backward insists on, though there is no dropout
};

/// q [B,T,H,D], k and v [B,S,Hkv,D]; last dimension contiguous.
Result forward(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

/// Gradients of q, k, v. `result` holds the out and lse with respect to which weights are
/// exp(score − lse): those of `forward`, or both corrected.
std::array<at::Tensor, 3> backward(const Call& call, const at::Tensor& dout, const at::Tensor& q,
                                   const at::Tensor& k, const at::Tensor& v, const Result& result);

}  // namespace stablemask::ops::flash
