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

  /// fp32 [rows, dims] of positions 0 … length−1 and possibly more.
  at::Tensor from_start(int64_t length, at::Device device);

 private:
  ModelConfig config_;
  /// Of increasing length. All are kept, because a CUDA graph reads the table it was captured with.
  std::vector<at::Tensor> tables_;
};

}  // namespace stablemask::nn
