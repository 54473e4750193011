#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/ops/attention.h"
#include "tests/ops/checks.h"

namespace stablemask::ops::testing {

/// kBeyond: fixed, with the infinite pseudo mass in the rows beyond.
enum class Mask { kCausal, kFixed, kInfinite, kSequence, kBeyond };

/// One call of ops::attention; the inputs depend on the shape only.
struct AttentionCase {
  int64_t length = 17;  ///< T
  bool alibi = false;
  Mask mask = Mask::kCausal;
  int64_t mask_length = 13;  ///< kFixed and kBeyond
  int64_t offset = 0, window = 0;
  int64_t key_offset = 0;
  int64_t heads = 4, kv_heads = 2, dims = 16;
  bool documents = false;
  double scale = 0.0;  ///< 0: the default of the op

  std::string name() const;
  /// q, k, v, gamma, p_base in fp64, all exact in bf16.
  Tensors inputs() const;
  AttentionOptions options(const Tensors& x) const;
  Function op(AttentionBackend backend) const;
  /// The reference formula, computed in the inputs' dtype.
  Function plain() const;
};

/// Every mask with and without ALiBi at lengths 1 … 512.
std::vector<AttentionCase> square_cases(int64_t dims);
/// Windows, documents, caches, head groups and odd sizes.
std::vector<AttentionCase> special_cases(int64_t dims);

/// Compares output and gradients of each backend in `type` with the formula in fp64; the formula in
/// `type` sets the tolerance (expect_as_accurate).
void compare_attention(const AttentionCase& c, const std::vector<AttentionBackend>& backends,
                       at::ScalarType type, double eps, at::Device device = at::kCPU);

/// Causal, fixed and infinite masks at lengths 1 … 512, with RoPE over whole heads.
std::vector<AttentionCase> rope_cases(int64_t dims);

/// As compare_attention for ops::rope followed by packed_attention: output and gradient of the
/// packed projection.
void compare_rotated_attention(const AttentionCase& c, at::ScalarType type, double eps,
                               at::Device device = at::kCPU);

}  // namespace stablemask::ops::testing
