#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/ops/decode.h"
#include "tests/ops/attention_cases.h"

namespace stablemask::ops::testing {

/// Two sequences of `length` tokens that are decoded token by token from position `start` on, the
/// second one kLag tokens behind the first.
struct DecodeCase {
  static constexpr int64_t kLag = 5;

  int64_t length = 37, start = 0;
  bool alibi = false;
  int64_t rope_dims = 0;
  Mask mask = Mask::kCausal;
  int64_t mask_length = 13;  ///< kFixed and kBeyond
  int64_t window = 0, slots = 37;
  int64_t heads = 4, kv_heads = 2, dims = 16;
  double scale = 0.0;  ///< 0: the default of the op

  std::string name() const;
  DecodeOptions options(at::Device device) const;
};

using DecodeOp = decltype(&decode_attention);

/// Every position encoding, mask and window, the ring among them.
std::vector<DecodeCase> decode_cases(int64_t dims);
/// Mask lengths around the positions, groups of heads, partial rotation and other scales.
std::vector<DecodeCase> special_decode_cases(int64_t dims);

/// Compares every step of `op` in `type` with the rows of attention of the whole sequences in fp64;
/// the formula in `type` sets the tolerance (expect_as_accurate). The slots that are not written
/// hold NaN.
void compare_decoding(const DecodeCase& c, DecodeOp op, at::ScalarType type, double eps,
                      at::Device device = at::kCPU);

}  // namespace stablemask::ops::testing
