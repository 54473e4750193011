#include "src/ops/cuda/projections.h"

#include <ATen/ATen.h>

#include <cstdint>

#include "src/ops/cuda/fused_gemm.h"
#include "src/ops/cuda/run.h"
#include "src/ops/cuda/thin_gemm.h"
#include "src/ops/overlap.h"

namespace stablemask::ops::cuda {
namespace {

/// Below this number of 256 x 256 tiles, cuBLASLt with smaller tiles fills the GPU better.
constexpr int64_t kMinTiles = 128;

bool is_aligned(const at::Tensor& x) { return reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0; }

void* data_of(const at::Tensor& x, int64_t rows, int64_t columns, const char* name) {
  TORCH_CHECK(x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.is_contiguous() &&
                  x.numel() == rows * columns && is_aligned(x),
              "fused projection: ", name, " must be a contiguous bf16 CUDA tensor [", rows, ", ",
              columns, "] on a 16-byte boundary, got ", x.toString(), " ", x.sizes());
  return x.data_ptr();
}

/// x [rows, inner] and weight [columns, inner], or [inner, columns] where `plain`.
Factors factors_of(const at::Tensor& x, const at::Tensor& weight, int64_t columns, bool plain) {
  const int64_t inner = x.size(1);
  const int64_t rows = plain ? inner : columns, width = plain ? columns : inner;
  return {data_of(x, x.size(0), inner, "x"), data_of(weight, rows, width, "weight"), inner, inner,
          width};
}

Factors second_factors_of(const SecondFactors& second, int64_t rows, int64_t columns, bool plain) {
  if (!second.defined()) return {};
  const at::Tensor &x = second.x, &weight = second.weight;
  TORCH_CHECK(second_factors_serve(second) && x.size(0) == rows &&
                  weight.size(plain ? 1 : 0) == columns && weight.size(plain ? 0 : 1) == x.size(1),
              "fused projection: second factors ", x.sizes(), " and ", weight.sizes(),
              " do not fit a result [", rows, ", ", columns, "]");
  return {x.const_data_ptr(), weight.const_data_ptr(), x.size(1), x.stride(0), weight.stride(0)};
}

}  // namespace

bool fused_projection_serves(const at::Tensor& x, int64_t columns, int64_t narrowest) {
  if (!x.is_cuda() || x.scalar_type() != at::kBFloat16 || !x.is_contiguous()) return false;
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t tiles = x.size(0) / 256 * (columns / 256);
  return x.size(1) % 8 == 0 && columns % 8 == 0 && narrowest % 8 == 0 && tiles >= kMinTiles &&
         is_aligned(x) && fused_gemm_runs_here();
}

bool second_factors_serve(const SecondFactors& second) {
  const auto fits = [](const at::Tensor& x) {
    return x.defined() && x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.dim() == 2 &&
           x.numel() > 0 && x.stride(1) == 1 && x.stride(0) % 8 == 0 && is_aligned(x);
  };
  return !second.defined() || (fits(second.x) && fits(second.weight));
}

void swiglu_projection(const at::Tensor& x, const at::Tensor& weight, at::Tensor& gate_up,
                       at::Tensor& out, const SecondFactors& second) {
  SwigluProjection p{};
  p.rows = x.size(0);
  p.features = out.size(1);
  p.first = factors_of(x, weight, 2 * p.features, /*plain=*/false);
  p.second = second_factors_of(second, p.rows, 2 * p.features, /*plain=*/false);
  p.gate_up = data_of(gate_up, p.rows, 2 * p.features, "gate_up");
  p.out = data_of(out, p.rows, p.features, "out");
  run("swiglu_projection", p, x);
}

void swiglu_projection_backward(const at::Tensor& dy, const at::Tensor& weight,
                                const at::Tensor& gate_up, at::Tensor& dgate_up,
                                const SecondFactors& second, const at::Tensor& out) {
  SwigluProjectionBackward p{};
  p.rows = dy.size(0);
  p.features = weight.size(1);
  p.first = factors_of(dy, weight, p.features, /*plain=*/true);
  p.second = second_factors_of(second, p.rows, p.features, /*plain=*/true);
  p.gate_up = data_of(gate_up, p.rows, 2 * p.features, "gate_up");
  p.dgate_up = data_of(dgate_up, p.rows, 2 * p.features, "dgate_up");
  if (out.defined()) p.out = data_of(out, p.rows, p.features, "out");
  run("swiglu_projection_backward", p, dy);
}

void sum_projection(const at::Tensor& x, const at::Tensor& weight, const SecondFactors& second,
                    const at::Tensor& addend, bool plain, at::Tensor& out) {
  SumProjection p{};
  p.rows = x.size(0);
  p.columns = out.size(1);
  p.first = factors_of(x, weight, p.columns, plain);
  p.second = second_factors_of(second, p.rows, p.columns, plain);
  if (addend.defined()) p.addend = data_of(addend, p.rows, p.columns, "addend");
  p.out = data_of(out, p.rows, p.columns, "out");
  p.plain = plain;
  run("sum_projection", p, x);
}

void rope_projection(const at::Tensor& x, const at::Tensor& weight, int64_t heads,
                     const at::Tensor& positions, const at::Tensor& table, at::Tensor& packed,
                     const SecondFactors& second) {
  RopeProjection p{};
  p.tokens = x.size(0);
  p.packed_heads = static_cast<int>(packed.size(2));
  p.head_dim = static_cast<int>(packed.size(3));
  p.heads = static_cast<int>(heads);
  const int64_t columns = packed.size(2) * packed.size(3);
  p.first = factors_of(x, weight, columns, /*plain=*/false);
  p.second = second_factors_of(second, p.tokens, columns, /*plain=*/false);
  p.packed = data_of(packed, p.tokens, columns, "packed");
  p.position_period = positions.numel();
  TORCH_CHECK(heads <= packed.size(2) && positions.is_cuda() && table.is_cuda() &&
                  positions.scalar_type() == at::kLong && positions.is_contiguous() &&
                  table.scalar_type() == at::kFloat && table.is_contiguous() &&
                  table.size(-1) == packed.size(3) &&
                  (p.position_period == p.tokens || p.position_period == packed.size(1)),
              "rope_projection: positions ", positions.sizes(), " and table ", table.sizes(),
              " do not fit ", heads, " heads of ", packed.sizes());
  p.positions = positions.const_data_ptr<int64_t>();
  p.table = table.const_data_ptr<float>();
  p.table_rows = table.size(0);
  run("rope_projection", p, x);
}

bool thin_projection_serves(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& norm) {
  const auto fits = [&](const at::Tensor& operand) {
    return operand.is_cuda() && operand.scalar_type() == at::kBFloat16 && operand.is_contiguous() &&
           is_aligned(operand);
  };
  if (!fits(x) || !fits(weight) || !thin_gemm_serves(x.size(0), x.size(1))) {
    return false;
  }
  if (norm.defined() && !fits(norm) &&
      !(norm.is_cuda() && norm.scalar_type() == at::kFloat && norm.is_contiguous() &&
        is_aligned(norm))) {
    return false;
  }
  const c10::cuda::CUDAGuard guard(x.device());
  return fused_gemm_runs_here();
}

void thin_projection(const at::Tensor& x, const at::Tensor& weight, const ThinOptions& options,
                     at::Tensor& out) {
  const auto& [residual, norm, eps, gated] = options;
  ThinProjection p{};
  p.rows = x.size(0);
  p.inner = x.size(1);
  p.columns = weight.size(0) / (gated ? 2 : 1);
  p.x = data_of(x, p.rows, p.inner, "x");
  p.weight = data_of(weight, (gated ? 2 : 1) * p.columns, p.inner, "weight");
  p.out = data_of(out, p.rows, p.columns, "out");
  if (residual.defined()) {
    TORCH_CHECK(residual.is_cuda() && residual.scalar_type() == at::kBFloat16 &&
                    residual.is_contiguous() && residual.numel() == p.rows * p.columns,
                "thin_projection: residual must be a contiguous bf16 CUDA tensor [", p.rows, ", ",
                p.columns, "], got ", residual.toString(), " ", residual.sizes());
    p.residual = residual.const_data_ptr();
  }
  p.eps = static_cast<float>(eps);
  p.gated = gated;
  if (norm.defined()) {
    TORCH_CHECK(norm.numel() == p.inner, "thin_projection: norm ", norm.sizes(), " does not fit x ",
                x.sizes());
    p.norm = norm.const_data_ptr();
    p.norm_dtype = norm.scalar_type() == at::kFloat ? DType::kFloat32 : DType::kBFloat16;
  }
  p.overlapped = overlaps_previous();
  run("thin_projection", p, x);
}

}  // namespace stablemask::ops::cuda
