#include "src/ops/cpu_bf16_pack.h"

#include <algorithm>
#include <bit>

#include "src/ops/cpu_bf16_tile.h"
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

STABLEMASK_SIMD void pack_anywhere(const Words& words, uint32_t* out, int64_t stride,
                                   bool transposed) {
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

#if defined(__x86_64__)

/// 16 words of word row i from word j on, none of whose numbers is lacking.
STABLEMASK_BF16_PART __m512i load_whole(const Words& words, int64_t i, int64_t j) {
  if (words.down) {
    const float* first = words.x + 2 * i * words.stride + j;
    return pairs(_mm512_loadu_ps(first), _mm512_loadu_ps(first + words.stride));
  }
  const float* row = words.x + i * words.stride + 2 * j;
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + kTile), _mm512_loadu_ps(row));
}

/// The same with 0 for lacking numbers.
STABLEMASK_BF16_PART __m512i load_part(const Words& words, int64_t i, int64_t j) {
  if (words.down) {
    const float* first = words.x + 2 * i * words.stride + j;
    const __mmask16 lanes = first_lanes(words.cols - j);
    const bool both = 2 * i + 1 < words.rows;
    return pairs(_mm512_maskz_loadu_ps(lanes, first),
                 _mm512_maskz_loadu_ps(both ? lanes : 0, both ? first + words.stride : first));
  }
  const float* row = words.x + i * words.stride + 2 * j;
  const int64_t rest = words.cols - 2 * j;
  return (__m512i)_mm512_cvtne2ps_pbh(
      _mm512_maskz_loadu_ps(first_lanes(rest - kTile), rest > kTile ? row + kTile : row),
      _mm512_maskz_loadu_ps(first_lanes(rest), row));
}

/// Transposes 16 x 16 words: within groups of four rows, then the groups.
STABLEMASK_BF16_PART void transpose_words(__m512i (&x)[kTile]) {
  __m512i y[kTile];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    y[i] = _mm512_shuffle_i32x4(low, high, 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    y[i + 8] = _mm512_shuffle_i32x4(low, high, 0xdd);
    y[i + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

/// Rows [0, rows) and columns [0, columns), at most 16, of the tile at (i, j) transposed to `out`.
STABLEMASK_BF16_PART void pack_tile(const Words& words, int64_t i, int64_t j, int64_t rows,
                                    int64_t columns, bool whole, uint32_t* out, int64_t stride) {
  __m512i tile[kTile];
  if (whole) {
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) tile[k] = load_whole(words, i + k, j);
  } else {
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) tile[k] = load_part(words, i + std::min<int64_t>(k, rows - 1), j);
  }
  transpose_words(tile);
  const __mmask16 lanes = first_lanes(rows);
#pragma GCC unroll 16
  for (int k = 0; k < 16; ++k) {
    if (k < columns) _mm512_mask_storeu_epi32(out + k * stride, lanes, tile[k]);
  }
}

/// Word rows and columns that lack no number.
struct Whole {
  explicit Whole(const Words& words)
      : rows(words.down ? words.rows / 2 : words.rows),
        columns((words.down ? words.cols : words.cols / 2) / kTile * kTile) {}
  int64_t rows, columns;
};

STABLEMASK_BF16 void pack_by_instructions(const Words& words, uint32_t* out, int64_t stride) {
  const Whole whole(words);
  for (int64_t i = 0; i < words.height(); ++i) {
    int64_t j = 0;
    for (; i < whole.rows && j < whole.columns; j += kTile) {
      _mm512_storeu_si512(out + i * stride + j, load_whole(words, i, j));
    }
    for (; j < words.width(); j += kTile) {
      _mm512_mask_storeu_epi32(out + i * stride + j, first_lanes(words.width() - j),
                               load_part(words, i, j));
    }
  }
}

STABLEMASK_BF16 void pack_transposed_by_instructions(const Words& words, uint32_t* out,
                                                     int64_t stride) {
  const Whole whole(words);
  for (int64_t i = 0; i < words.height(); i += kTile) {
    for (int64_t j = 0; j < words.width(); j += kTile) {
      pack_tile(words, i, j, std::min(kTile, words.height() - i),
                std::min(kTile, words.width() - j), i + kTile <= whole.rows && j < whole.columns,
                out + j * stride + i, stride);
    }
  }
}

#endif

}  // namespace

void pack(const Words& words, uint32_t* out, int64_t stride, bool transposed) {
#if defined(__x86_64__)
  static const bool instructions = __builtin_cpu_supports("avx512bf16");
  if (instructions) {
    return transposed ? pack_transposed_by_instructions(words, out, stride)
                      : pack_by_instructions(words, out, stride);
  }
#endif
  pack_anywhere(words, out, stride, transposed);
}

}  // namespace stablemask::ops::cpu::bf16
