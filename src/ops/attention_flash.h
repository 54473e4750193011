#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

/// LibTorch's flash attention kernels with one interface. forward returns the output and the
/// natural log-sum-exp of each row's scores; backward takes both. No autograd, no StableMask.
namespace stablemask::ops::flash {

enum class Kernel {
  kCpu,     ///< ATen's CPU kernel: fp32, fp64, bf16, grouped heads, additive mask
  kCudnn,   ///< bf16, square causal
  kFlash2,  ///< FlashAttention-2: bf16, grouped heads, causal aligned to the last key, window,
            ///< variable-length sequences
};

struct Call {
  Kernel kernel = Kernel::kCpu;
  double scale = 1.0;
  bool causal = true;     ///< row i sees key j ≤ i + (S − T); kCpu and kCudnn need S = T for it
  at::Tensor mask;        ///< kCpu: added to the scores, broadcastable to [B,H,T,S]
  int64_t window = 0;     ///< kFlash2: keys visible to a row, including its own; 0: all
  at::Tensor boundaries;  ///< kFlash2: int32 [n+1], starts of the n sequences packed into one row
                          ///< (B = 1), then T; attention does not cross sequences
  int64_t longest = 0;    ///< kFlash2: upper bound on the length of these sequences
};

struct Result {
  at::Tensor out;           ///< [B,T,H,D]
  at::Tensor lse;           ///< fp32 (fp64 for fp64) [B,H,T]
  at::Tensor seed, offset;  ///< dropout state, which the backward requires even without dropout
};

/// q [B,T,H,D], k and v [B,S,Hkv,D]; last dimension contiguous.
Result forward(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

/// Gradients of q, k, v. The attention weights are recomputed as exp(score − lse), so
/// `result` holds out and lse as returned by `forward` or both corrected.
std::array<at::Tensor, 3> backward(const Call& call, const at::Tensor& dout, const at::Tensor& q,
                                   const at::Tensor& k, const at::Tensor& v, const Result& result);

}  // namespace stablemask::ops::flash
