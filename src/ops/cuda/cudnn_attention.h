#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

/// Square causal attention by cuDNN's fused kernels, through its graph API: reads queries, keys and
/// values where the packed projection has them and writes their gradients into one packed buffer.
/// No autograd, no StableMask but the constant one (`sink`).
///
/// Plans are built once per shape, options and device and shared by all threads. Launches go to the
/// current stream, allocate from the caching allocator alone and never wait, so that after a first
/// call they can be captured into a CUDA graph. The backward adds up in no fixed order.
namespace stablemask::ops::cuda {

/// packed is bf16 [B,T,H+2·Hkv,D], contiguous: H query heads, Hkv key heads, Hkv value heads.
struct CudnnAttention {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  double scale = 1.0;
  at::Tensor alibi_slopes;  ///< fp32 [H], contiguous: a_ij −= slope·(i − j); undefined: no bias
  at::Tensor sink;          ///< fp32 [H], contiguous: log of a mass in the denominator of each of a
                            ///< head's rows, the same for all; undefined: none. Forward only: the
                            ///< backward knows it through out and lse
};

/// Why cuDNN cannot serve calls on `packed`, one clause; empty when it can, and then their plans,
/// with `gradients` the backward's too, are ready.
std::string cudnn_attention_obstacle(const CudnnAttention& call, const at::Tensor& packed,
                                     bool gradients);

/// Writes out bf16 [B,T,H,D] and lse fp32 [B,H,T], both contiguous: lse is the natural logarithm of
/// the denominator, the sink's share included. Throws c10::Error where there is an obstacle.
void cudnn_attention_forward(const CudnnAttention& call, const at::Tensor& packed, at::Tensor& out,
                             at::Tensor& lse);

/// Writes the gradients of all heads into dpacked (packed's shape, contiguous). The weights are
/// exp(score − lse), so out and lse may be corrected by a mask of any kind, both or none. dout
/// contiguous [B,T,H,D].
void cudnn_attention_backward(const CudnnAttention& call, const at::Tensor& dout,
                              const at::Tensor& packed, const at::Tensor& out,
                              const at::Tensor& lse, at::Tensor& dpacked);

}  // namespace stablemask::ops::cuda
