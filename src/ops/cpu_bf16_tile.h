#pragma once

#if defined(__x86_64__)
// GCC 12 takes the undefined operands of its own intrinsics for variables without a value.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <cstdint>

/// Tiles of matrices in AVX-512 registers and their products with bf16 operands.
namespace stablemask::ops::cpu::bf16 {

#define STABLEMASK_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define STABLEMASK_BF16_PART STABLEMASK_BF16 __attribute__((always_inline)) inline

constexpr int64_t kLane = 16;  ///< fp32 numbers of a register

/// The first `count` of 16 lanes: none below 1, all from 16 on.
STABLEMASK_BF16_PART __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, kLane)) - 1u);
}

/// Operands in words (cpu_bf16_pack.h): word k of a row holds the numbers 2k and 2k+1 of the summed
/// dimension. Word (row, k) of a left one is words[row·row_step + k·step], word (k, column) of a
/// right one is words[k·step + column].
struct LeftWords {
  const uint32_t* words;
  int64_t row_step, step;
};
struct RightWords {
  const uint32_t* words;
  int64_t step;
};

/// R rows of 16·V numbers.
template <int R, int V>
struct Tile {
  __m512 x[R][V];
};

template <int R, int V>
STABLEMASK_BF16_PART void clear(Tile<R, V>& tile) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) tile.x[r][v] = _mm512_setzero_ps();
  }
}

/// tile += a·b over `depth` words.
template <int R, int V>
STABLEMASK_BF16_PART void add_product(Tile<R, V>& tile, const LeftWords& a, const RightWords& b,
                                      int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    __m512i right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) right[v] = _mm512_loadu_si512(b.words + k * b.step + v * kLane);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const __m512i left =
          _mm512_set1_epi32(static_cast<int>(a.words[r * a.row_step + k * a.step]));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        tile.x[r][v] = _mm512_dpbf16_ps(tile.x[r][v], (__m512bh)left, (__m512bh)right[v]);
      }
    }
  }
}

/// out = or += a·b for R rows and 16·V columns.
template <int R, int V>
STABLEMASK_BF16_PART void tile_product(float* out, int64_t stride, const LeftWords& a,
                                       const RightWords& b, int64_t depth, bool adds) {
  Tile<R, V> tile;
  if (adds) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) tile.x[r][v] = _mm512_loadu_ps(out + r * stride + v * kLane);
    }
  } else {
    clear(tile);
  }
  add_product(tile, a, b, depth);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + r * stride + v * kLane, tile.x[r][v]);
  }
}

/// Tiles of R x 16·V over all rows, a multiple of R.
template <int R, int V>
STABLEMASK_BF16_PART void column_product(float* out, int64_t stride, int64_t rows,
                                         const LeftWords& a, const RightWords& b, int64_t depth,
                                         bool adds) {
  for (int64_t r = 0; r < rows; r += R) {
    tile_product<R, V>(out + r * stride, stride, {a.words + r * a.row_step, a.row_step, a.step}, b,
                       depth, adds);
  }
}

/// out = or, with `adds`, += a·b: rows a multiple of 8, columns of 16, both of out and b.
STABLEMASK_BF16 inline void product(float* out, int64_t stride, int64_t rows, int64_t columns,
                                    const LeftWords& a, const RightWords& b, int64_t depth,
                                    bool adds) {
  int64_t c = 0;
  for (; c + 4 * kLane <= columns; c += 4 * kLane) {
    column_product<4, 4>(out + c, stride, rows, a, {b.words + c, b.step}, depth, adds);
  }
  if (c + 2 * kLane <= columns) {
    column_product<8, 2>(out + c, stride, rows, a, {b.words + c, b.step}, depth, adds);
    c += 2 * kLane;
  }
  if (c < columns) {
    column_product<8, 1>(out + c, stride, rows, a, {b.words + c, b.step}, depth, adds);
  }
}

/// 2^x to 3·10⁻⁶ of its value for x ≤ 127, 0 below −1000; NaN for NaN. 2^x = 2^n · 2^r with
/// |r| ≤ ½ and the polynomial of degree 4 that is 1 at 0 and has the least largest error there.
STABLEMASK_BF16_PART __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-1000.0f), x);  // NaN, the second argument, stays
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 series = _mm512_set1_ps(0.009582853234670086f);
  series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(0.055906425942073616f));
  series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(0.24024098615759965f));
  series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(0.6931241932597682f));
  series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(series, n);
}

/// Words of two rows of numbers, the first one in the low halves.
STABLEMASK_BF16_PART __m512i pairs(__m512 first, __m512 second) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i order = _mm512_add_epi32(_mm512_or_si512(lanes, _mm512_slli_epi32(lanes, 16)),
                                         _mm512_set1_epi32(16 << 16));
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/// 16 numbers as 8 words.
STABLEMASK_BF16_PART void store_rounded(uint32_t* words, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), (__m256i)_mm512_cvtneps_pbh(x));
}

/// x as bf16.
STABLEMASK_BF16_PART __m512 rounded_lanes(__m512 x) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}

}  // namespace stablemask::ops::cpu::bf16
#endif
