#include "stablemask/nn/linear.h"

#include <ATen/ATen.h>

#include <vector>

namespace stablemask::nn {

ops::Dropout Linear::dropout(const DropoutStep& step) const {
  ops::Dropout dropout = dropout_;
  dropout.key = step.key;
  dropout.first_row = step.first_row;
  return dropout;
}

at::Tensor Linear::product(const ops::Input& x, const at::Tensor& addend, ops::Kernels kernels,
                           const DropoutStep& step) const {
  if (adapter_.defined()) {
    return ops::adapted_linear(x, weight(), adapter_, dropout(step), addend, kernels);
  }
  if (in_fp8()) return ops::fp8::linear(x.x, {weight_, fp8_}, addend, kernels);
  return addend.defined() ? ops::linear_add(x.x, weight_, addend, kernels)
                          : ops::linear(x.x, weight_, kernels);
}

at::Tensor Linear::forward(const ops::Input& x, ops::Kernels kernels,
                           const DropoutStep& step) const {
  if (!bias_.defined()) return product(x, {}, kernels, step);
  std::vector<int64_t> shape = x.x.sizes().vec();
  shape.back() = bias_.size(0);
  return product(x, ops::bias_rows(bias_, shape), kernels, step);
}

at::Tensor Linear::add_to(const at::Tensor& residual, const ops::Input& x, ops::Kernels kernels,
                          const DropoutStep& step) const {
  if (!bias_.defined()) return product(x, residual, kernels, step);
  return product(x, residual + ops::bias_rows(bias_, residual.sizes()), kernels, step);
}

at::Tensor Linear::rotated(const ops::Input& x, int64_t packed_heads, int64_t heads_rotated,
                           const ops::RopeInputs& rope, ops::Kernels kernels,
                           const DropoutStep& step) const {
  if (plain() && in_fp8()) {
    return ops::fp8::rope_linear(x.x, {weight_, fp8_}, packed_heads, heads_rotated, rope, kernels);
  }
  if (plain()) return ops::rope_linear(x.x, weight_, packed_heads, heads_rotated, rope, kernels);
  if (!bias_.defined()) {
    return ops::adapted_rope_linear(x, weight(), adapter_, dropout(step), packed_heads,
                                    heads_rotated, rope, kernels);
  }
  const at::Tensor packed =
      forward(x, kernels, step).view({x.x.size(0), x.x.size(1), packed_heads, -1});
  return ops::rope(packed, heads_rotated, rope.dims, rope.positions, rope.table, kernels);
}

at::Tensor Linear::swiglu(const Linear& up, const Linear& down, const ops::Input& x,
                          const at::Tensor& residual, ops::Kernels kernels,
                          const DropoutStep& step) {
  if (up.plain() && down.plain() && up.in_fp8() && down.in_fp8()) {
    return ops::fp8::swiglu_feed_forward(x.x, {up.weight_, up.fp8_}, {down.weight_, down.fp8_},
                                         residual, kernels);
  }
  if (up.plain() && down.plain()) {
    return ops::swiglu_feed_forward(x.x, up.weight_, down.weight_, residual, kernels);
  }
  const bool adapted = up.adapter_.defined() && down.adapter_.defined();
  if (adapted && !up.bias_.defined() && !down.bias_.defined()) {
    return ops::adapted_swiglu_feed_forward(x, up.adapted(step), down.adapted(step), residual,
                                            kernels);
  }
  return down.add_to(residual, ops::swiglu(up.forward(x, kernels, step), kernels), kernels, step);
}

at::Tensor Linear::normed(const at::Tensor& x, const at::Tensor& norm, double eps,
                          ops::Kernels kernels) const {
  if (plain()) return ops::norm_linear(x, norm, eps, weight_, kernels);
  return forward(ops::rms_norm(x, norm, eps, kernels), kernels);
}

at::Tensor Linear::normed_swiglu(const Linear& up, const Linear& down, const at::Tensor& x,
                                 const at::Tensor& norm, double eps, ops::Kernels kernels) {
  if (up.plain() && down.plain()) {
    return ops::norm_swiglu_feed_forward(x, norm, eps, up.weight_, down.weight_, kernels);
  }
  return swiglu(up, down, ops::rms_norm(x, norm, eps, kernels), x, kernels);
}

at::Tensor Linear::lookup(const at::Tensor& ids, ops::Kernels kernels) const {
  return ops::embedding(ids, weight_, kernels);
}

at::Tensor Linear::loss(const at::Tensor& x, const at::Tensor& targets, const at::Tensor& scale,
                        double z_loss, ops::HeadGradient head_gradient,
                        ops::Kernels kernels) const {
  return ops::linear_cross_entropy(x, weight_, targets, scale, z_loss, head_gradient, kernels);
}

at::Tensor Linear::nll(const at::Tensor& x, const at::Tensor& targets, ops::Kernels kernels) const {
  return ops::linear_nll(x, weight(), targets, kernels);
}

void Linear::begin_gradient() const {
  for (const ops::Weight* weight : {&weight_, &adapter_.a, &adapter_.b}) {
    if (weight->defined()) weight->begin_gradient();
  }
}

void Linear::finish_gradient() const {
  for (const ops::Weight* weight : {&weight_, &adapter_.a, &adapter_.b}) {
    if (weight->defined()) weight->finish_gradient();
  }
}

}  // namespace stablemask::nn
