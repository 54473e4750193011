#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "src/ops/cuda/launchers.h"

/// Launch of ops::sample's kernel, under the conditions of launchers.h.

namespace stablemask::ops::cuda {

struct Sample {
  const void* logits;  ///< [batch, vocabulary]
  int64_t stride;      ///< elements from row to row
  int64_t batch;
  int64_t vocabulary;         ///< at most sampling::kLargestVocabulary
  const double* temperature;  ///< [batch], as the settings below
  const int64_t* top_k;
  const double* top_p;
  const double* min_p;
  const double* repetition_penalty;
  const int64_t* seed;
  const int64_t* drawn;
  const int64_t* rows;  ///< null: b; one outside `seen`: no penalty and no mark
  uint8_t* seen;        ///< [seen_rows, seen_columns] or null
  int64_t seen_rows;
  int64_t seen_columns;
  int64_t* ids;  ///< [batch]
  DType dtype;
};
cudaError_t launch(const Sample& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
