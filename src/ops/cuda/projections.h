#pragma once

#include <ATen/core/Tensor.h>

/// Projections with an elementwise op as the epilogue of the GEMM: one kernel instead of a GEMM and
/// a pass over its result, the same values. bf16, contiguous, on one CUDA device.
namespace stablemask::ops::cuda {

/// Whether the kernels take x [N, K] to `columns` columns here and pay off: a GPU of compute
/// capability 9.0, enough tiles to fill it, and rows that are multiples of 16 bytes, which TMA
/// requires: K, `columns` and `narrowest`, the shortest row of any matrix involved, must be
/// multiples of 8.
bool fused_projection_serves(const at::Tensor& x, int64_t columns, int64_t narrowest);

/// gate_up [N, 2F] = x [N, K] · weight [2F, K]ᵀ, out [N, F] = silu(gate) · up.
void swiglu_projection(const at::Tensor& x, const at::Tensor& weight, at::Tensor& gate_up,
                       at::Tensor& out);

/// dgate_up [N, 2F] = gradient of silu(gate)·up for the gradient dy [N, K] · weight [K, F] of it.
void swiglu_projection_backward(const at::Tensor& dy, const at::Tensor& weight,
                                const at::Tensor& gate_up, at::Tensor& dgate_up);

/// packed [B,T,Hp,D] = x [B·T, K] · weight [Hp·D, K]ᵀ, its first `heads` heads rotated in all their
/// D dims, 64, 128 or 256; positions int64 [T] or [B,T], table fp32 [P, D] as in rope_.
void rope_projection(const at::Tensor& x, const at::Tensor& weight, int64_t heads,
                     const at::Tensor& positions, const at::Tensor& table, at::Tensor& packed);

}  // namespace stablemask::ops::cuda
