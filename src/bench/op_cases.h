#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "src/bench/gpu_timing.h"

/// The kernels that `stablemask bench ops` measures.
namespace stablemask::bench {

struct Shape {
  const char* name;
  int64_t batch, length, layers, channels, hidden, heads, head_dim, vocab;
  int64_t tokens() const { return batch * length; }
  int64_t matrices() const { return (4 * channels + 3 * hidden) * channels; }  ///< of a block
  int64_t parameters() const { return 2 * vocab * channels + layers * matrices(); }
};

/// One kernel at one shape. `error` runs it once and compares with the reference; call it before
/// `run`, which may overwrite the inputs.
struct Case {
  std::string kernel;
  double bytes;
  std::function<double()> error;
  Run run;
  double flops = 0;  ///< of GEMMs
};

using CaseMaker = std::function<Case(const Shape&)>;

/// The kernels of decoding: products of few rows, attention over a cache, drawing ids.
std::vector<CaseMaker> decoding_cases();
std::vector<CaseMaker> muon_cases();

/// Products in FP8 beside those in bf16, and the kernels that write FP8.
std::vector<CaseMaker> fp8_cases();

inline at::Tensor random(at::IntArrayRef shape, at::ScalarType type = at::kBFloat16) {
  return at::empty(shape, gpu(type)).normal_();
}

inline at::Tensor fp32(const at::Tensor& x) { return x.to(at::kFloat); }

inline double bytes_of(std::initializer_list<at::Tensor> tensors) {
  double bytes = 0;
  for (const at::Tensor& x : tensors) bytes += static_cast<double>(x.nbytes());
  return bytes;
}

}  // namespace stablemask::bench
