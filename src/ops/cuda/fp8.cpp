#include "src/ops/cuda/fp8.h"

#include <ATen/ATen.h>

#include <cstdint>

#include "src/ops/cuda/fused_gemm.h"
#include "src/ops/cuda/gemm.h"
#include "src/ops/cuda/quantize.h"
#include "src/ops/cuda/run.h"

namespace stablemask::ops::cuda {
namespace {

DType fp8_source_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? DType::kFloat32 : DType::kBFloat16;
}

bool is_on_boundary(const at::Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

/// x, or a copy of it on a 16-byte boundary.
at::Tensor on_boundary(const at::Tensor& x) { return is_on_boundary(x) ? x : x.clone(); }

void* fp8_part(const at::Tensor& x, const char* name) {
  if (!x.defined()) return nullptr;
  TORCH_CHECK(is_on_boundary(x), "fp8: out.", name, " must lie on a 16-byte boundary");
  return x.data_ptr();
}

QuantizeTo quantize_to(const fp8::Slot& slot, const fp8::Matrix& out) {
  return {fp8_part(out.values, "values"), fp8_part(out.twin, "twin"),
          slot.scale.const_data_ptr<float>(), slot.maximum.data_ptr<float>(),
          slot.format == fp8::Format::kE5M2};
}

Factors fp8_factors(const fp8::Operand& x, const fp8::Operand& weight) {
  const int64_t inner = x.values.size(1);
  return {x.values.const_data_ptr(), weight.values.const_data_ptr(), inner, inner, inner};
}

/// Conditions of the products with an epilogue that do not depend on it.
bool epilogue_serves(const at::Tensor& result, const fp8::Operand& x, const fp8::Operand& weight,
                     fp8::Sums sums) {
  constexpr int64_t kMinTiles = 128;  // as of fused_projection_serves
  const int64_t tiles = x.values.size(0) / 256 * (weight.values.size(0) / 256);
  if (sums != fp8::Sums::kFast || tiles < kMinTiles) return false;
  for (const at::Tensor& factor : {x.values, weight.values}) {
    if (factor.scalar_type() != at::kFloat8_e4m3fn || !is_on_boundary(factor)) return false;
  }
  const c10::cuda::CUDAGuard guard(result.device());
  return result.scalar_type() == at::kBFloat16 && result.is_contiguous() &&
         is_on_boundary(result) && fused_gemm_runs_here();
}

}  // namespace

void update_scales_(fp8::Scaling& scaling) {
  if (scaling.maxima.numel() == 0) return;
  UpdateScales p{};
  p.maxima = scaling.maxima.data_ptr<float>();
  p.history = scaling.history.data_ptr<float>();
  p.scales = scaling.scales.data_ptr<float>();
  p.inverses = scaling.inverses.data_ptr<float>();
  p.saturations = scaling.saturations.data_ptr<int64_t>();
  p.limits = scaling.limits.const_data_ptr<float>();
  p.count = scaling.maxima.numel();
  p.length = scaling.history.size(1);
  p.inverse_stride = scaling.inverses.stride(0);
  p.margin = static_cast<float>(scaling.margin);
  run("fp8 update_scales", p, scaling.maxima);
}

void quantize(const at::Tensor& x, const fp8::Slot& slot, fp8::Matrix& out) {
  if (x.numel() == 0) return;
  const at::Tensor in = on_boundary(x);
  Quantize p{};
  p.to = quantize_to(slot, out);
  p.x = in.const_data_ptr();
  p.columns = x.size(-1);
  p.rows = x.numel() / p.columns;
  p.dtype = fp8_source_type(x);
  run("fp8 quantize", p, x);
}

void quantize_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                       double eps, const fp8::Slot& slot, at::Tensor& sum, at::Tensor& rstd,
                       fp8::Matrix& out) {
  if (x.numel() == 0) return;
  const at::Tensor in = on_boundary(residual.defined() ? sum : x), factors = on_boundary(weight);
  QuantizeRmsNorm p{};
  p.to = quantize_to(slot, out);
  p.columns = x.size(-1);
  p.rows = x.numel() / p.columns;
  p.dtype = fp8_source_type(x);
  p.weight_dtype = fp8_source_type(weight);
  RmsNormForward statistics{};
  statistics.x = x.const_data_ptr();
  statistics.residual = residual.defined() ? residual.const_data_ptr() : nullptr;
  statistics.weight = factors.const_data_ptr();
  statistics.sum = residual.defined() ? in.data_ptr() : nullptr;
  statistics.rstd = rstd.data_ptr<float>();
  statistics.rows = p.rows;
  statistics.cols = p.columns;
  statistics.eps = static_cast<float>(eps);
  statistics.dtype = p.dtype;
  statistics.weight_dtype = p.weight_dtype;
  run("fp8 rms_norm", statistics, x);
  p.x = in.const_data_ptr();
  p.weight = factors.const_data_ptr();
  p.rstd = rstd.const_data_ptr<float>();
  run("fp8 quantize_rms_norm", p, x);
  if (residual.defined() && !in.is_same(sum)) sum.copy_(in);
}

void quantize_swiglu(const at::Tensor& gate_up, const fp8::Slot& slot, fp8::Matrix& out) {
  if (gate_up.numel() == 0) return;
  const at::Tensor in = on_boundary(gate_up);
  QuantizeSwiglu p{};
  p.to = quantize_to(slot, out);
  p.gate_up = in.const_data_ptr();
  p.features = gate_up.size(-1) / 2;
  p.rows = gate_up.numel() / gate_up.size(-1);
  p.dtype = fp8_source_type(gate_up);
  run("fp8 quantize_swiglu", p, gate_up);
}

void quantize_swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up,
                              const fp8::Slot& slot, fp8::Matrix& out) {
  if (gate_up.numel() == 0) return;
  const at::Tensor in = on_boundary(gate_up), gradient = on_boundary(dout);
  QuantizeSwigluBackward p{};
  p.to = quantize_to(slot, out);
  p.dout = gradient.const_data_ptr();
  p.gate_up = in.const_data_ptr();
  p.features = dout.size(-1);
  p.rows = dout.numel() / p.features;
  p.dtype = fp8_source_type(gate_up);
  run("fp8 quantize_swiglu_backward", p, gate_up);
}

void quantize_rope_backward(const at::Tensor& dpacked, int64_t heads_rotated,
                            const RopeInputs& rope, const fp8::Slot& slot, fp8::Matrix& out) {
  if (dpacked.numel() == 0) return;
  const at::Tensor in = on_boundary(dpacked), positions = rope.positions.contiguous(),
                   table = on_boundary(rope.table.contiguous());
  QuantizeRopeBackward p{};
  p.to = quantize_to(slot, out);
  p.rope.packed = in.data_ptr();
  p.rope.positions = positions.const_data_ptr<int64_t>();
  p.rope.table = table.const_data_ptr<float>();
  p.rope.tokens = dpacked.size(0) * dpacked.size(1);
  p.rope.position_period = positions.numel();
  p.rope.table_rows = table.size(0);
  p.rope.packed_heads = static_cast<int>(dpacked.size(2));
  p.rope.head_dim = static_cast<int>(dpacked.size(3));
  p.rope.heads = static_cast<int>(heads_rotated);
  p.rope.dims = static_cast<int>(rope.dims);
  p.rope.dtype = fp8_source_type(dpacked);
  run("fp8 quantize_rope_backward", p, dpacked);
}

void product(at::Tensor& out, const fp8::Operand& a, const fp8::Operand& b, double beta,
             const at::Tensor& addend, fp8::Sums sums) {
  if (out.numel() == 0) return;
  const at::Tensor left = on_boundary(a.inverse), right = on_boundary(b.inverse);
  gemm(out, {a.values, false, left.const_data_ptr<float>()},
       {b.values, true, right.const_data_ptr<float>()}, beta, addend, 1.0,
       sums == fp8::Sums::kFast);
}

bool product_swiglu_serves(const at::Tensor& gate_up, const fp8::Operand& x,
                           const fp8::Operand& weight, const fp8::Matrix& out, fp8::Sums sums) {
  return epilogue_serves(gate_up, x, weight, sums) && out.values.defined() && out.twin.defined() &&
         out.values.scalar_type() == at::kFloat8_e4m3fn;
}

void product_swiglu(at::Tensor& gate_up, const fp8::Operand& x, const fp8::Operand& weight,
                    const fp8::Slot& slot, fp8::Matrix& out) {
  SwigluFp8Projection p{};
  p.factors = fp8_factors(x, weight);
  p.x_inverse = x.inverse.const_data_ptr<float>();
  p.weight_inverse = weight.inverse.const_data_ptr<float>();
  p.gate_up = gate_up.data_ptr();
  const QuantizeTo to = quantize_to(slot, out);
  p.values = to.values;
  p.twin = to.twin;
  p.scale = to.scale;
  p.maximum = to.maximum;
  p.rows = gate_up.size(0);
  p.features = gate_up.size(1) / 2;
  run("fp8 product_swiglu", p, gate_up);
}

bool product_rope_serves(const at::Tensor& packed, const fp8::Operand& x,
                         const fp8::Operand& weight, const RopeInputs& rope, fp8::Sums sums) {
  const int64_t dim = packed.size(3);
  return epilogue_serves(packed, x, weight, sums) && rope.dims == dim &&
         (dim == 64 || dim == 128 || dim == 256) && rope.table.scalar_type() == at::kFloat;
}

void product_rope(at::Tensor& packed, const fp8::Operand& x, const fp8::Operand& weight,
                  int64_t heads_rotated, const RopeInputs& rope) {
  const at::Tensor positions = rope.positions.contiguous(), table = rope.table.contiguous();
  RopeProjection p{};
  p.first = fp8_factors(x, weight);
  p.x_inverse = x.inverse.const_data_ptr<float>();
  p.weight_inverse = weight.inverse.const_data_ptr<float>();
  p.packed = packed.data_ptr();
  p.positions = positions.const_data_ptr<int64_t>();
  p.table = table.const_data_ptr<float>();
  p.tokens = x.values.size(0);
  p.position_period = positions.numel();
  p.table_rows = table.size(0);
  p.packed_heads = static_cast<int>(packed.size(2));
  p.head_dim = static_cast<int>(packed.size(3));
  p.heads = static_cast<int>(heads_rotated);
  run("fp8 product_rope", p, packed);
}

}  // namespace stablemask::ops::cuda
