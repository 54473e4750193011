#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace stablemask::ops::cuda {

/// A matrix and whether the product takes it transposed.
struct Operand {
  const at::Tensor& matrix;  ///< bf16, 2-dim, rows contiguous
  bool transposed = false;
};

/// out = a·b + beta·c through cuBLASLt with fp32 accumulation; out [M,N] bf16 or fp32, rows
/// contiguous, beta 0 or 1; c is `addend`, like out in shape, dtype and strides, or where undefined
/// out itself. The first product of a large shape times the library's candidate algorithms on
/// random data and keeps the fastest, in memory and in the file gemm_cache_path(); under
/// at::Context's deterministic mode, for small products, or while a graph is captured, it takes the
/// library's first candidate untimed. Throws c10::Error on contract violations and on a failure of
/// the library.
void gemm(at::Tensor& out, const Operand& a, const Operand& b, double beta = 0.0,
          const at::Tensor& addend = {});

/// Where the choices are kept between runs: one file per GPU model and library version under
/// ${STABLEMASK_CACHE:-~/.cache/stablemask}/gemm; "" when there is no such place.
std::string gemm_cache_path();

}  // namespace stablemask::ops::cuda
