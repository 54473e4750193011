#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace stablemask::ops::cuda {

/// An operand of a GEMM and whether it is taken transposed.
struct Operand {
  const at::Tensor& matrix;  ///< bf16 or FP8, 2-dim, rows contiguous
  bool transposed = false;
  const float* inverse = nullptr;  ///< FP8: its factor, in device memory on a 16-byte boundary
};

/// out = alpha·a·b + beta·c through cuBLASLt with fp32 accumulation. out [M,N] is bf16 or fp32 with
/// contiguous rows, beta 0 or 1; c is `addend`, which has out's shape, dtype and strides, or out
/// itself where `addend` is undefined.
///
/// Both operands may be FP8, e4m3 or one of them e5m2, on Hopper a not transposed and b transposed;
/// with all sizes and strides multiples of 16. `fast`: their sums stay in the tensor cores, with
/// fewer bits than fp32.
///
/// Algorithm choice: the first GEMM of a large shape times cuBLASLt's candidates on random data and
/// keeps the fastest in memory and in the file gemm_cache_path(); several processes take the choice
/// of one (ops/algorithms.h). In at::Context's deterministic mode, for small shapes and during
/// graph capture the first candidate is taken without timing. Throws c10::Error on contract
/// violations and when cuBLASLt fails.
void gemm(at::Tensor& out, const Operand& a, const Operand& b, double beta = 0.0,
          const at::Tensor& addend = {}, double alpha = 1.0, bool fast = false);

/// File that keeps the chosen algorithms between runs: one per GPU model and cuBLASLt version under
/// ${STABLEMASK_CACHE:-~/.cache/stablemask}/gemm; "" when neither STABLEMASK_CACHE nor HOME is set.
std::string gemm_cache_path();

}  // namespace stablemask::ops::cuda
