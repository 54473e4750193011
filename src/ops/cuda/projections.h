#pragma once

#include <ATen/core/Tensor.h>

#include "src/ops/products.h"

/// Projections with an elementwise op as the GEMM's epilogue: one kernel instead of a GEMM and a
/// pass over its result, with the same values. Tensors are bf16 and contiguous on one CUDA device.
/// `second` (products.h) is another product, which is added before the elementwise op; its rows may
/// have strides.
namespace stablemask::ops::cuda {

/// Whether the fused kernels can run for x [rows, K] and a GEMM result of `columns` columns, and
/// are faster: needs a GPU of compute capability 9.0, enough tiles to fill it, and rows that are
/// multiples of 16 bytes, as TMA requires: K, `columns` and `narrowest`, the shortest row of any
/// matrix involved, must be multiples of 8.
bool fused_projection_serves(const at::Tensor& x, int64_t columns, int64_t narrowest);

/// Whether the fused kernels take them: undefined, or rows that begin at multiples of 16 bytes.
bool second_factors_serve(const SecondFactors& second);

/// gate_up [rows, 2F] = x [rows, K] · weight [2F, K]ᵀ, out [rows, F] = silu(gate) · up.
void swiglu_projection(const at::Tensor& x, const at::Tensor& weight, at::Tensor& gate_up,
                       at::Tensor& out, const SecondFactors& second = {});

/// dgate_up [rows, 2F] = gradient with respect to gate_up of silu(gate)·up, whose own gradient is
/// dy [rows, K] · weight [K, F]. `out` [rows, F], if defined, = silu(gate)·up.
void swiglu_projection_backward(const at::Tensor& dy, const at::Tensor& weight,
                                const at::Tensor& gate_up, at::Tensor& dgate_up,
                                const SecondFactors& second = {}, const at::Tensor& out = {});

/// packed [B,T,Hp,D] = x [B·T, K] · weight [Hp·D, K]ᵀ, rotary embedding in all D dims of the
/// first `heads` heads, D = 64, 128 or 256; positions int64 [T] or [B,T], table fp32 [P, D] as in
/// rope_.
void rope_projection(const at::Tensor& x, const at::Tensor& weight, int64_t heads,
                     const at::Tensor& positions, const at::Tensor& table, at::Tensor& packed,
                     const SecondFactors& second = {});

/// out [rows, N] = x [rows, K] · weight [N, K]ᵀ plus `addend` [rows, N], if that is defined, or,
/// with `plain` and no addend, x · weight [K, N].
void sum_projection(const at::Tensor& x, const at::Tensor& weight, const SecondFactors& second,
                    const at::Tensor& addend, bool plain, at::Tensor& out);

/// What thin_projection combines the product with; undefined tensors stand for nothing.
struct ThinOptions {
  const at::Tensor& residual;  ///< bf16 [rows, N], added
  const at::Tensor& norm;      ///< bf16 or fp32 [K]: the weight of an RMSNorm of x
  double eps;
  bool gated;  ///< out = silu(gate) · up, weight [2N, K] with the gate first
};

/// Whether thin_projection runs for contiguous x [rows, K]: needs a GPU of compute capability 9.0,
/// K a multiple of 8, 16-byte alignment, and at most 8 rows of 8192, 16 of 4096 or 32 of 2048.
bool thin_projection_serves(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& norm);

/// out [rows, N] = x [rows, K] · weight [N, K]ᵀ for few rows (cuda/thin_gemm.h). Overlaps with the
/// kernel before it where stablemask/ops/overlap.h allows that.
void thin_projection(const at::Tensor& x, const at::Tensor& weight, const ThinOptions& options,
                     at::Tensor& out);

}  // namespace stablemask::ops::cuda
