#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "stablemask/config/model_config.h"

namespace stablemask::nn {

/// The tables of ops::rope_table that a model's forward passes read, made when they are needed.
class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config) : config_(config) {}

  struct Rows {
    at::Tensor table;   ///< fp32 [rows, dims]
    int64_t first = 0;  ///< row of the first position asked for; the others follow it
  };
  /// Positions 0 … length−1.
  Rows from_start(int64_t length, at::Device device);
  /// Positions first … first+length−1, of tokens that continue a KV cache. At long positions the
  /// table holds a segment of them, so that its memory does not grow with the text.
  Rows continued(int64_t first, int64_t length, at::Device device);

 private:
  at::Tensor make(int64_t first, int64_t length, at::Device device) const;

  ModelConfig config_;
  /// Of increasing length. All are kept, because a CUDA graph reads the table it was captured with.
  std::vector<at::Tensor> whole_;
  at::Tensor segment_;
  int64_t segment_first_ = 0;  ///< position of the segment's row 0
};

}  // namespace stablemask::nn
