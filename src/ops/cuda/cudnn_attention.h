#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

/// Causal attention with as many keys as queries through cuDNN's graph API. Reads q, k and v from
/// the packed projection in place and writes their gradients into one packed buffer. No autograd.
/// Of StableMask only a mass that is constant over the rows of a head (`sink`).
///
/// Execution plans are built once per shape, options and device, and shared by all threads.
/// Launches go to the current stream, allocate only from the caching allocator and do not
/// synchronise, so that after a first call they can be captured into a CUDA graph. The backward
/// sums in no fixed order unless `deterministic`.
namespace stablemask::ops::cuda {

/// packed is bf16 [B,T,H+2·Hkv,D], contiguous: H query heads, Hkv key heads, Hkv value heads.
struct CudnnAttention {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  double scale = 1.0;
  at::Tensor alibi_slopes;  ///< fp32 [H], contiguous: a_ij −= slope·(i − j); undefined: no bias
  at::Tensor sink;  ///< fp32 [H], contiguous: log of a mass added to the softmax denominator of
                    ///< every row of the head; undefined: none. Used by the forward only: out
                    ///< and lse pass it on to the backward
  bool deterministic = false;  ///< the backward's sums have a fixed order; it takes a workspace of
                               ///< 2·B·H·T² bytes, where that is at most kDeterministicWorkspace
};
constexpr int64_t kDeterministicWorkspace = int64_t{2} << 30;

/// Why cuDNN cannot run this call on `packed`, as one clause; empty when it can. Builds the forward
/// plan, and with `gradients` the backward plan.
std::string cudnn_attention_obstacle(const CudnnAttention& call, const at::Tensor& packed,
                                     bool gradients);

/// Writes out bf16 [B,T,H,D] and lse fp32 [B,H,T], both contiguous; lse is the natural logarithm of
/// the softmax denominator, including the sink. Throws c10::Error where cudnn_attention_obstacle is
/// not empty.
void cudnn_attention_forward(const CudnnAttention& call, const at::Tensor& packed, at::Tensor& out,
                             at::Tensor& lse);

/// Writes the gradients of all heads into dpacked (packed's shape, contiguous); dout is contiguous
/// [B,T,H,D]. The attention weights are recomputed as exp(score − lse), so out and lse may have
/// been corrected by any row mass, but only both together.
void cudnn_attention_backward(const CudnnAttention& call, const at::Tensor& dout,
                              const at::Tensor& packed, const at::Tensor& out,
                              const at::Tensor& lse, at::Tensor& dpacked);

}  // namespace stablemask::ops::cuda
