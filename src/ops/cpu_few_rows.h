#pragma once

#include <ATen/core/Tensor.h>

/// Products of few rows on the CPU, as in decoding, where reading the weight takes the time.
namespace stablemask::ops::cpu {

/// Whether few_rows_product takes them and is faster than the BLAS library: fp32, contiguous weight
/// [out, in], x [rows, in] of at most 8 rows.
bool few_rows_serves(const at::Tensor& x, const at::Tensor& weight);

/// out [rows, out] = x [rows, in] · weightᵀ + residual [rows, out], if that is defined; all
/// contiguous. A row's bits depend neither on the other rows nor on the number of threads.
void few_rows_product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual,
                      at::Tensor& out);

}  // namespace stablemask::ops::cpu
