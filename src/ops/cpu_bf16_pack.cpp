#include "src/ops/cpu_bf16_pack.h"

#include <algorithm>
#include <bit>

#include "src/ops/cpu_simd.h"

namespace stablemask::ops::cpu::bf16 {
namespace {

constexpr int64_t kTile = 16;

/// The bits of x rounded to the nearest bf16, ties to even, in the high half; NaN stays NaN.
STABLEMASK_SIMD_PART uint32_t rounded(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t up = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : up;
}

STABLEMASK_SIMD_PART uint32_t pair(float first, float second) {
  return (rounded(first) >> 16) | (rounded(second) & 0xffff0000u);
}

/// Words [begin, end) of word row i.
STABLEMASK_SIMD_PART void pack_row(const Words& words, int64_t i, int64_t begin, int64_t end,
                                   uint32_t* out) {
  if (words.down) {
    const float* first = words.x + 2 * i * words.stride;
    if (2 * i + 1 < words.rows) {
      const float* second = first + words.stride;
      for (int64_t j = begin; j < end; ++j) out[j - begin] = pair(first[j], second[j]);
    } else {
      for (int64_t j = begin; j < end; ++j) out[j - begin] = pair(first[j], 0.0f);
    }
    return;
  }
  const float* row = words.x + i * words.stride;
  const int64_t whole = std::min(end, words.cols / 2);
  for (int64_t j = begin; j < whole; ++j) out[j - begin] = pair(row[2 * j], row[2 * j + 1]);
  if (whole < end) out[whole - begin] = pair(row[2 * whole], 0.0f);
}

/// out[j][i] = tile[i][j] of `height` x `width` words.
STABLEMASK_SIMD_PART void transpose(const uint32_t (&tile)[kTile][kTile], int64_t height,
                                    int64_t width, uint32_t* out, int64_t stride) {
  if (height == kTile) {  // a constant number: a quarter less time
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t i = 0; i < kTile; ++i) out[j * stride + i] = tile[i][j];
    }
    return;
  }
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t i = 0; i < height; ++i) out[j * stride + i] = tile[i][j];
  }
}

}  // namespace

STABLEMASK_SIMD void pack(const Words& words, uint32_t* out, int64_t stride, bool transposed) {
  const int64_t height = words.height(), width = words.width();
  if (!transposed) {
    for (int64_t i = 0; i < height; ++i) pack_row(words, i, 0, width, out + i * stride);
    return;
  }
  uint32_t tile[kTile][kTile];
  for (int64_t i = 0; i < height; i += kTile) {
    const int64_t rows = std::min(kTile, height - i);
    for (int64_t j = 0; j < width; j += kTile) {
      const int64_t columns = std::min(kTile, width - j);
      for (int64_t k = 0; k < rows; ++k) pack_row(words, i + k, j, j + columns, tile[k]);
      transpose(tile, rows, columns, out + j * stride + i, stride);
    }
  }
}

}  // namespace stablemask::ops::cpu::bf16
