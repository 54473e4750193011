#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "src/ops/cuda/launchers.h"

/// Launch of ops::decode_attention's kernel, under the conditions of launchers.h.

namespace stablemask::ops::cuda {

/// One token of each of `batch` sequences against the slots of a cache: formula and meaning of the
/// arguments in ops/decode.h. Strides in elements; the last dimension is contiguous.
struct Decode {
  static constexpr int kLargestDim = 256;
  static constexpr int kMostSplits = 8;  ///< blocks in a cluster that every Hopper GPU can place

  const void* packed;        ///< [batch, heads + 2·kv_heads, dim]
  void* keys;                ///< [rows, slots, kv_heads, dim]
  void* values;              ///< [rows, slots, kv_heads, dim]
  void* out;                 ///< [batch, heads, dim]
  const int64_t* rows;       ///< [batch]; null: sequence b is in row b
  const int64_t* positions;  ///< [batch]; negative: no sequence
  const float* table;        ///< [table_rows, rope_dims]; positions outside give NaN
  const float* slopes;       ///< [heads] of ALiBi; null: no bias
  const float* gamma;        ///< [heads]; null: no pseudo scores
  const float* p_base;       ///< [heads]
  int64_t key_strides[3];    ///< of row, slot and head
  int64_t value_strides[3];
  int64_t table_rows;
  int64_t mask_length;   ///< N; an infinite one is 0 with infinite_beyond
  bool infinite_beyond;  ///< positions from N on have the mass of N = ∞; otherwise none
  int64_t window;        ///< 0: none
  int batch;
  int slots;
  int heads;
  int kv_heads;
  int dim;  ///< at most kLargestDim
  int rope_dims;
  float scale;
  int splits;  ///< blocks that share the keys of a head, 1 … kMostSplits; 0: chosen by the launch
  bool overlapped;  ///< may start before the kernel enqueued before it has ended; reads `packed`
                    ///< and writes after that, but reads everything else at once (cuda/overlap.cuh)
  DType dtype;
};
cudaError_t launch(const Decode& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
