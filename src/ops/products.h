#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <vector>

#include "src/ops/cpu_bf16.h"
#include "src/ops/functional_grad.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/gemm.h"
#endif

/// Matrix products of the ops with weights, without autograd.
namespace stablemask::ops {

#ifdef STABLEMASK_HAS_CUDA
/// Whether cuda::gemm (cuBLASLt with tuned algorithms) takes x as an operand.
inline bool has_gemm(const at::Tensor& x, Kernels kernels) {
  return kernels != Kernels::kReference && x.is_cuda() && x.scalar_type() == at::kBFloat16 &&
         x.numel() > 0;
}
#endif

/// Whether products of x are cpu::bf16_product.
inline bool rounds_to_bf16(const at::Tensor& x, Kernels kernels) {
  return kernels == Kernels::kFusedBf16 && x.is_cpu() && x.scalar_type() == at::kFloat;
}

/// Factors of a second product that is added to a first one, of the same kind: x · weightᵀ or x ·
/// weight. Rows may have strides. Undefined: no second product.
struct SecondFactors {
  at::Tensor x, weight;
  bool defined() const { return x.defined(); }
};

/// out = scale · x · weightᵀ or, with `plain`, scale · x · weight; out [rows, …] is overwritten.
inline void project(at::Tensor& out, const at::Tensor& x, const at::Tensor& weight, Kernels kernels,
                    bool plain = false, double scale = 1.0) {
#ifdef STABLEMASK_HAS_CUDA
  if (has_gemm(x, kernels) && weight.scalar_type() == at::kBFloat16) {
    return cuda::gemm(out, {x}, {weight, /*transposed=*/!plain}, 0.0, {}, scale);
  }
#endif
  if (rounds_to_bf16(x, kernels)) {
    cpu::bf16_product(out, {x}, {weight, /*transposed=*/!plain}, /*adds=*/false);
  } else {
    at::mm_out(out, x, plain ? weight : weight.t());
  }
  if (scale != 1.0) out.mul_(scale);
}

/// residual + x · weightᵀ; residual [rows, out], contiguous.
inline at::Tensor projected_onto(const at::Tensor& residual, const at::Tensor& x,
                                 const at::Tensor& weight, Kernels kernels) {
#ifdef STABLEMASK_HAS_CUDA
  if (has_gemm(x, kernels) && weight.scalar_type() == at::kBFloat16 &&
      residual.scalar_type() == at::kBFloat16) {
    at::Tensor out = at::empty_like(residual);
    cuda::gemm(out, {x}, {weight, /*transposed=*/true}, 1.0, residual);
    return out;
  }
#endif
  if (rounds_to_bf16(x, kernels)) {
    at::Tensor out = residual.clone(at::MemoryFormat::Contiguous);
    cpu::bf16_product(out, {x}, {weight, /*transposed=*/true}, /*adds=*/true);
    return out;
  }
  return at::addmm(residual, x, weight.t());
}

inline at::Tensor projected(const at::Tensor& x, const at::Tensor& weight, Kernels kernels,
                            bool plain = false) {
  at::Tensor out = at::empty({x.size(0), weight.size(plain ? 1 : 0)}, x.options());
  project(out, x, weight, kernels, plain);
  return out;
}

/// out += x · weightᵀ or, with `plain`, x · weight; rows of `out` contiguous.
inline void project_onto(at::Tensor& out, const at::Tensor& x, const at::Tensor& weight,
                         Kernels kernels, bool plain = false) {
#ifdef STABLEMASK_HAS_CUDA
  if (has_gemm(x, kernels) && weight.scalar_type() == at::kBFloat16) {
    return cuda::gemm(out, {x}, {weight, /*transposed=*/!plain}, 1.0);
  }
#endif
  if (rounds_to_bf16(x, kernels)) {
    return cpu::bf16_product(out, {x}, {weight, /*transposed=*/!plain}, /*adds=*/true);
  }
  out.addmm_(x, plain ? weight : weight.t());
}

inline at::Tensor rows(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}).contiguous(); }

inline std::vector<int64_t> with_last(const at::Tensor& x, int64_t size) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = size;
  return shape;
}

/// beta of the GEMM that computes a weight's gradient: 0 to overwrite a stale buffer, else 1.
inline double gradient_beta(const Mark& mark) { return take_stale(mark) ? 0.0 : 1.0; }

/// Gradient of a [out, in] weight: accumulated into weight.grad() if it is defined, else returned.
inline at::Tensor weight_grad(const at::Tensor& weight, const Mark& mark, const at::Tensor& dy,
                              const at::Tensor& x, Kernels kernels) {
  at::Tensor grad = existing_grad(weight);
  if (!grad.defined() && rounds_to_bf16(x, kernels)) {
    at::Tensor out = at::empty_like(weight);
    accumulate_gemm(out, dy, x, /*beta=*/0.0, kernels);
    return out;
  }
  if (!grad.defined()) return at::mm(dy.t(), x);
  accumulate_gemm(grad, dy, x, gradient_beta(mark), kernels);
  return {};
}

inline void save_kernels(torch::autograd::AutogradContext* ctx, Kernels kernels) {
  ctx->saved_data["kernels"] = static_cast<int64_t>(kernels);
}
inline Kernels load_kernels(torch::autograd::AutogradContext* ctx) {
  return static_cast<Kernels>(ctx->saved_data["kernels"].toInt());
}

}  // namespace stablemask::ops
