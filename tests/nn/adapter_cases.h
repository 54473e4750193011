#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "stablemask/ops/adapter.h"
#include "tests/ops/checks.h"

/// Shared by the tests of adapted ops: inputs, and each op beside the one with merged weights.
namespace stablemask::testing_adapters {

using ops::testing::normal;
using ops::testing::Tensors;

inline constexpr double kScale = 1.75;
inline const std::vector<int64_t> kRows = {5, 2, 2};

inline ops::Adapter adapter_of(const at::Tensor& a, const at::Tensor& b) {
  ops::Adapter adapter;
  adapter.a = a;
  adapter.b = b;
  adapter.rows = kRows;
  adapter.scale = kScale;
  return adapter;
}

/// W_j + scale · B_j · A_j of each W_j, below each other.
inline at::Tensor merged(const at::Tensor& weight, const at::Tensor& a, const at::Tensor& b,
                         const std::vector<int64_t>& rows, double scale) {
  Tensors parts;
  const int64_t rank = b.size(1);
  for (int64_t j = 0, first = 0; j < static_cast<int64_t>(rows.size()); first += rows[j++]) {
    parts.push_back(weight.narrow(0, first, rows[j]) +
                    scale * at::mm(b.narrow(0, first, rows[j]), a.narrow(0, j * rank, rank)));
  }
  return at::cat(parts);
}

/// x [2,3,7], W [9,7], A [3·2,7], B [9,2], residual [2,3,9].
inline Tensors inputs() {
  return {normal({2, 3, 7}, 1), normal({9, 7}, 2), normal({6, 7}, 3), normal({9, 2}, 4),
          normal({2, 3, 9}, 5)};
}

inline ops::Dropout half(int64_t first_row = 0) {
  ops::Dropout dropout;
  dropout.share = 0.5;
  dropout.stream = 3;
  dropout.key = at::full({}, 77, at::kLong);
  dropout.first_row = first_row;
  return dropout;
}

/// An adapted op with an epilogue, as a function of the inputs and the factors, and the same op
/// with merged weights.
struct FusedCase {
  Tensors inputs;
  std::vector<int64_t> out;  ///< shape of the result
  /// Of another form of inputs[0], and of all inputs.
  std::function<at::Tensor(const ops::Input&, const Tensors&, const ops::Dropout&, ops::Kernels)>
      of_input;
  std::function<at::Tensor(const Tensors&)> with_merged;

  at::Tensor adapted(const Tensors& in, const ops::Dropout& dropout, ops::Kernels kernels) const {
    return of_input(in[0], in, dropout, kernels);
  }
};

inline ops::Adapter factors(const at::Tensor& a, const at::Tensor& b, std::vector<int64_t> rows) {
  ops::Adapter adapter = adapter_of(a, b);
  adapter.rows = std::move(rows);
  return adapter;
}

inline FusedCase rope_case(int64_t length, int64_t channels, int64_t heads, int64_t dims,
                           int64_t rank) {
  const int64_t packed = heads + 2, out = packed * dims;
  const std::vector<int64_t> rows = {heads * dims, dims, dims};
  const at::Tensor weight = normal({out, channels}, 2) / 8;
  const auto rope = [=](const at::Tensor& x) {
    return ops::RopeInputs{dims, at::arange(length, at::kLong).to(x.device()),
                           ops::rope_table(length, dims, 100.0).to(x.device())};
  };
  return {{normal({2, length, channels}, 1), normal({3 * rank, channels}, 3) / 8,
           normal({out, rank}, 4) / 2},
          {2, length, packed, dims},
          [=](const ops::Input& x, const Tensors& in, const ops::Dropout& dropout,
              ops::Kernels kernels) {
            return ops::adapted_rope_linear(x, weight.to(in[0]), factors(in[1], in[2], rows),
                                            dropout, packed, heads + 1, rope(in[0]), kernels);
          },
          [=](const Tensors& in) {
            return ops::rope_linear(in[0], merged(weight.to(in[0]), in[1], in[2], rows, kScale),
                                    packed, heads + 1, rope(in[0]));
          }};
}

inline FusedCase swiglu_case(int64_t length, int64_t channels, int64_t features, int64_t rank) {
  const std::vector<int64_t> up_rows = {features, features}, down_rows = {channels};
  const at::Tensor up = normal({2 * features, channels}, 2) / 8,
                   down = normal({channels, features}, 5) / 8;
  return {{normal({2, length, channels}, 1), normal({2 * rank, channels}, 3) / 8,
           normal({2 * features, rank}, 4) / 2, normal({rank, features}, 6) / 8,
           normal({channels, rank}, 7) / 2, normal({2, length, channels}, 8)},
          {2, length, channels},
          [=](const ops::Input& x, const Tensors& in, const ops::Dropout& dropout,
              ops::Kernels kernels) {
            ops::Dropout second = dropout;
            ++second.stream;
            return ops::adapted_swiglu_feed_forward(
                x, {up.to(in[0]), factors(in[1], in[2], up_rows), dropout},
                {down.to(in[0]), factors(in[3], in[4], down_rows), second}, in[5], kernels);
          },
          [=](const Tensors& in) {
            return ops::swiglu_feed_forward(
                in[0], merged(up.to(in[0]), in[1], in[2], up_rows, kScale),
                merged(down.to(in[0]), in[3], in[4], down_rows, kScale), in[5]);
          }};
}

inline FusedCase linear_case() {
  const Tensors in = inputs();
  const at::Tensor weight = in[1];
  return {{in[0], in[2], in[3], in[4]},
          {2, 3, 9},
          [=](const ops::Input& x, const Tensors& all, const ops::Dropout& dropout,
              ops::Kernels kernels) {
            return ops::adapted_linear(x, weight.to(all[0]), adapter_of(all[1], all[2]), dropout,
                                       all[3], kernels);
          },
          {}};
}

}  // namespace stablemask::testing_adapters
