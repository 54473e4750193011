#include "src/ops/attention_flash.h"

#include <ATen/ATen.h>

#include <optional>

namespace stablemask::ops::flash {
namespace {

std::optional<at::Tensor> optional_tensor(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
}

std::optional<int64_t> window_left(const Call& call) {
  return call.window > 0 ? std::optional<int64_t>(call.window - 1) : std::nullopt;
}

at::Tensor swap(const at::Tensor& x) { return x.transpose(1, 2); }

Result forward_cpu(const Call& call, const at::Tensor& q, const at::Tensor& k,
                   const at::Tensor& v) {
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
      swap(q), swap(k), swap(v), /*dropout_p=*/0.0, call.causal, optional_tensor(call.mask),
      call.scale);
  return {swap(out), lse, {}, {}};
}

Result forward_cudnn(const Call& call, const at::Tensor& q, const at::Tensor& k,
                     const at::Tensor& v) {
  auto result = at::_scaled_dot_product_cudnn_attention(
      swap(q), swap(k), swap(v), /*attn_bias=*/std::nullopt, /*compute_log_sumexp=*/true,
      /*dropout_p=*/0.0, call.causal, /*return_debug_mask=*/false, call.scale);
  return {swap(std::get<0>(result)), std::get<1>(result).squeeze(-1), std::get<6>(result),
          std::get<7>(result)};
}

Result forward_flash2(const Call& call, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v) {
  const bool packed = call.boundaries.defined();
  const auto run = [&](const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_,
                       int64_t max_q, int64_t max_k) {
    return at::_flash_attention_forward(
        q_, k_, v_, optional_tensor(call.boundaries), optional_tensor(call.boundaries), max_q,
        max_k,
        /*dropout_p=*/0.0, call.causal, /*return_debug_mask=*/false, call.scale, window_left(call),
        window_left(call) ? std::optional<int64_t>(0) : std::nullopt);
  };
  if (!packed) {
    auto result = run(q, k, v, q.size(1), k.size(1));
    return {std::get<0>(result), std::get<1>(result), std::get<2>(result), std::get<3>(result)};
  }
  auto result = run(q.squeeze(0), k.squeeze(0), v.squeeze(0), call.longest, call.longest);
  return {std::get<0>(result).unsqueeze(0), std::get<1>(result).unsqueeze(0), std::get<2>(result),
          std::get<3>(result)};
}

std::array<at::Tensor, 3> backward_cpu(const Call& call, const at::Tensor& dout,
                                       const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& v, const Result& result) {
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      swap(dout), swap(q), swap(k), swap(v), swap(result.out), result.lse, /*dropout_p=*/0.0,
      call.causal, optional_tensor(call.mask), call.scale);
  return {swap(dq), swap(dk), swap(dv)};
}

std::array<at::Tensor, 3> backward_cudnn(const Call& call, const at::Tensor& dout,
                                         const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const Result& result) {
  const at::Tensor none;
  auto [dq, dk, dv] = at::_scaled_dot_product_cudnn_attention_backward(
      swap(dout.contiguous()), swap(q), swap(k), swap(v), swap(result.out),
      result.lse.unsqueeze(-1), result.seed, result.offset, /*attn_bias=*/none, /*cum_seq_q=*/none,
      /*cum_seq_k=*/none, q.size(1), k.size(1), /*dropout_p=*/0.0, call.causal, call.scale);
  return {swap(dq), swap(dk), swap(dv)};
}

std::array<at::Tensor, 3> backward_flash2(const Call& call, const at::Tensor& dout,
                                          const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, const Result& result) {
  const bool packed = call.boundaries.defined();
  const auto flat = [packed](const at::Tensor& x) { return packed ? x.squeeze(0) : x; };
  const auto back = [packed](const at::Tensor& x) { return packed ? x.unsqueeze(0) : x; };
  auto [dq, dk, dv] = at::_flash_attention_backward(
      flat(dout).contiguous(), flat(q), flat(k), flat(v), flat(result.out), flat(result.lse),
      call.boundaries, call.boundaries, packed ? call.longest : q.size(1),
      packed ? call.longest : k.size(1), /*dropout_p=*/0.0, call.causal, result.seed, result.offset,
      call.scale, window_left(call), window_left(call) ? std::optional<int64_t>(0) : std::nullopt);
  return {back(dq), back(dk), back(dv)};
}

}  // namespace

Result forward(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  switch (call.kernel) {
    case Kernel::kCudnn:
      return forward_cudnn(call, q, k, v);
    case Kernel::kFlash2:
      return forward_flash2(call, q, k, v);
    case Kernel::kCpu:
      break;
  }
  return forward_cpu(call, q, k, v);
}

std::array<at::Tensor, 3> backward(const Call& call, const at::Tensor& dout, const at::Tensor& q,
                                   const at::Tensor& k, const at::Tensor& v, const Result& result) {
  switch (call.kernel) {
    case Kernel::kCudnn:
      return backward_cudnn(call, dout, q, k, v, result);
    case Kernel::kFlash2:
      return backward_flash2(call, dout, q, k, v, result);
    case Kernel::kCpu:
      break;
  }
  return backward_cpu(call, dout, q, k, v, result);
}

}  // namespace stablemask::ops::flash
