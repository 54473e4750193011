#include "src/ops/cpu_bf16_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "src/ops/cpu_bf16_pack.h"
#include "src/ops/cpu_bf16_tile.h"

namespace stablemask::ops::cpu::bf16 {
namespace {

constexpr int64_t kForwardRows = 16;  ///< rows whose weights are kept for the product with v
constexpr int64_t kBackwardRows = 32, kBackwardKeys = 64;  ///< a tile of weights of the backward

int64_t up_to(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

/// Sizes of the packed operands: rows and columns of 0 follow the numbers.
struct Sizes {
  Sizes(int64_t length, int64_t dim)
      : rows(up_to(length, kAttentionRows)), columns(up_to(dim, 16)), depth((dim + 1) / 2) {}
  int64_t rows, columns;  ///< T and D, rounded up
  int64_t depth;          ///< words of D numbers

  int64_t by_dim() const { return rows * depth; }        ///< words of pairs along D
  int64_t by_row() const { return rows / 2 * columns; }  ///< words of pairs along T
};

/// Takes pieces of a workspace in turn, each aligned to 64 bytes. Without one it only counts.
class Pieces {
 public:
  explicit Pieces(uint32_t* work) : work_(work) {}
  uint32_t* words(int64_t count) {
    uint32_t* piece = work_ == nullptr ? nullptr : work_ + used_;
    used_ += up_to(count, 16);
    return piece;
  }
  float* floats(int64_t count) { return reinterpret_cast<float*>(words(count)); }
  int64_t used() const { return used_; }

 private:
  uint32_t* work_;
  int64_t used_ = 0;
};

struct ForwardWork {
  ForwardWork(const Sizes& sizes, Pieces& pieces)
      : q(pieces.words(sizes.by_dim())),
        k(pieces.words(sizes.by_dim())),
        v(pieces.words(sizes.by_row())),
        weights(pieces.words(kForwardRows * sizes.rows / 2)),
        scores(pieces.floats(4 * sizes.rows)),
        out(pieces.floats(kForwardRows * sizes.columns)),
        top(pieces.floats(kForwardRows)),
        sum(pieces.floats(kForwardRows)) {}

  uint32_t* q;        ///< [rows][depth]
  uint32_t* k;        ///< [depth][rows]
  uint32_t* v;        ///< [rows/2][columns]
  uint32_t* weights;  ///< exp(score − top) of a block, [kForwardRows][rows/2]
  float* scores;      ///< · log2 e, [4][rows]
  float* out;         ///< Σ weight · v, [kForwardRows][columns]
  float *top, *sum;   ///< of the block's rows: largest score · log2 e, sum of the weights
};

struct BackwardWork {
  BackwardWork(const Sizes& sizes, Pieces& pieces)
      : q(pieces.words(sizes.by_dim())),
        dout(pieces.words(sizes.by_dim())),
        k(pieces.words(sizes.by_dim())),
        v(pieces.words(sizes.by_dim())),
        k_pairs(pieces.words(sizes.by_row())),
        q_pairs(pieces.words(sizes.by_row())),
        dout_pairs(pieces.words(sizes.by_row())),
        dk(pieces.floats(sizes.rows * sizes.columns)),
        dv(pieces.floats(sizes.rows * sizes.columns)),
        dq(pieces.floats(kBackwardRows * sizes.columns)),
        weights(pieces.words(kBackwardRows / 2 * kBackwardKeys)),
        dscores(pieces.words(kBackwardRows / 2 * kBackwardKeys)),
        dscores_by_key(pieces.words(kBackwardRows * kBackwardKeys / 2)),
        lse(pieces.floats(sizes.rows)),
        delta(pieces.floats(sizes.rows)) {}

  uint32_t *q, *dout;                        ///< [rows][depth]
  uint32_t *k, *v;                           ///< [depth][rows]
  uint32_t *k_pairs, *q_pairs, *dout_pairs;  ///< [rows/2][columns]
  float *dk, *dv;                            ///< [rows][columns]
  float* dq;                                 ///< [kBackwardRows][columns]
  uint32_t *weights, *dscores;               ///< of a tile, [kBackwardRows/2][kBackwardKeys]
  uint32_t* dscores_by_key;                  ///< [kBackwardRows][kBackwardKeys/2]
  float* lse;                                ///< · log2 e
  float* delta;                              ///< Σ dout · out of each row
};

}  // namespace

int64_t attention_forward_words(int64_t length, int64_t dim) {
  Pieces pieces(nullptr);
  const ForwardWork work(Sizes(length, dim), pieces);
  return pieces.used();
}

int64_t attention_backward_words(int64_t length, int64_t dim) {
  Pieces pieces(nullptr);
  const BackwardWork work(Sizes(length, dim), pieces);
  return pieces.used();
}

#if defined(__x86_64__)
namespace {

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

/// Of head h, in the unit of the scores below.
float slope_of(const AttentionGroup& g, int64_t h) {
  return g.slopes == nullptr ? 0.0f : g.slopes[h] * kLog2E;
}

/// The scores of a block of rows: what they need beside the products, in units of log 2.
struct Scores {
  int64_t row;  ///< the block's first one
  float scale, slope;
  const int32_t* first;  ///< of AttentionGroup
  int64_t length;

  /// The first key that row i sees; rows that fill up the last block see what the last one sees.
  int64_t first_of(int64_t i) const {
    return first == nullptr ? 0 : first[std::min(i, length - 1)];
  }
  /// Whether rows [i, i + 4) do not all see keys [key, end).
  bool hides(int64_t i, int64_t key, int64_t end) const {
    return end > i + 1 || key < first_of(i + 3);
  }
};

STABLEMASK_BF16_PART __m512i key_lanes(int64_t key) {
  return _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(key)),
                          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

STABLEMASK_BF16_PART __mmask16 visible_keys(const Scores& s, int64_t i, int64_t key) {
  const __m512i keys = key_lanes(key);
  return _mm512_cmple_epi32_mask(keys, _mm512_set1_epi32(static_cast<int>(i))) &
         _mm512_cmpge_epi32_mask(keys, _mm512_set1_epi32(static_cast<int>(s.first_of(i))));
}

/// slope · (j − row) of 16 keys j. The rest of ALiBi's bias, −slope · (i − row), is one number for
/// a row.
STABLEMASK_BF16_PART __m512 key_bias(const Scores& s, int64_t key) {
  return _mm512_mul_ps(_mm512_set1_ps(s.slope), _mm512_cvtepi32_ps(key_lanes(key - s.row)));
}

/// Scores of rows [i, i + 4) and 16·V keys from `key` on to out, rows `stride` apart, −∞ where
/// hidden; raises `top`, largest numbers of each row.
template <int V>
STABLEMASK_BF16_PART void score_tile(const Scores& s, const ForwardWork& work, const Sizes& sizes,
                                     int64_t i, int64_t key, float* out, Tile<4, 1>& top) {
  Tile<4, V> tile;
  clear(tile);
  add_product(tile, {work.q + i * sizes.depth, sizes.depth, 1}, {work.k + key, sizes.rows},
              sizes.depth);
  const bool hides = s.hides(i, key, key + V * kLane);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const __m512 bias = key_bias(s, key + v * kLane);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      __m512 x = _mm512_fmadd_ps(tile.x[r][v], _mm512_set1_ps(s.scale), bias);
      if (hides) {
        x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), visible_keys(s, i + r, key + v * kLane),
                               x);
      }
      top.x[r][0] = _mm512_max_ps(top.x[r][0], x);
      _mm512_store_ps(out + r * sizes.rows + v * kLane, x);
    }
  }
}

/// weights = bf16(2^(score − top)), 16 keys at a time; their sum before rounding.
STABLEMASK_BF16_PART float weigh(const float* scores, int64_t keys, float top, uint32_t* weights) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < keys; j += kLane) {
    const __m512 x = power_of_two(_mm512_sub_ps(_mm512_load_ps(scores + j), _mm512_set1_ps(top)));
    sum = _mm512_add_ps(sum, x);
    store_rounded(weights + j / 2, x);
  }
  return _mm512_reduce_add_ps(sum);
}

/// Weights, largest scores and sums of the block's rows over keys [begin, end).
STABLEMASK_BF16 void weigh_block(const Scores& s, const ForwardWork& work, const Sizes& sizes,
                                 int64_t begin, int64_t end) {
  for (int64_t r = 0; r < kForwardRows; r += 4) {
    Tile<4, 1> top;
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) top.x[n][0] = _mm512_set1_ps(-INFINITY);
    int64_t key = begin;
    for (; key + 4 * kLane <= end; key += 4 * kLane) {
      score_tile<4>(s, work, sizes, s.row + r, key, work.scores + key - begin, top);
    }
    for (; key < end; key += kLane) {
      score_tile<1>(s, work, sizes, s.row + r, key, work.scores + key - begin, top);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const float largest = _mm512_reduce_max_ps(top.x[n][0]);
      work.top[r + n] = largest;
      work.sum[r + n] = weigh(work.scores + n * sizes.rows, end - begin, largest,
                              work.weights + (r + n) * sizes.rows / 2);
    }
  }
}

/// The row's log-sum-exp with the pseudo mass; its output is `factor` · work.out.
struct RowResult {
  float lse, factor;
};

RowResult row_result(float top, float sum, float log_mass) {
  const float mass = log_mass * kLog2E;
  if (mass == INFINITY) return {INFINITY, 0.0f};
  if (!(mass > top)) {
    const float total = sum + (mass == -INFINITY ? 0.0f : std::exp2(mass - top));
    return {(top + std::log2(total)) * kLn2, 1.0f / total};
  }
  const float kept = std::exp2(top - mass), total = sum * kept + 1.0f;
  return {(mass + std::log2(total)) * kLn2, kept / total};
}

/// out[0 … dim) = factor · x.
STABLEMASK_BF16_PART void store_scaled(float* out, const float* x, int64_t dim, float factor) {
  for (int64_t d = 0; d < dim; d += kLane) {
    const __mmask16 lanes = first_lanes(dim - d);
    _mm512_mask_storeu_ps(out + d, lanes,
                          _mm512_mul_ps(_mm512_load_ps(x + d), _mm512_set1_ps(factor)));
  }
}

/// Rows [begin, end) of query head h.
STABLEMASK_BF16 void attend_head(const AttentionGroup& g, int64_t h, int64_t begin, int64_t end,
                                 float* out, float* lse, const ForwardWork& work) {
  const Sizes sizes(g.length, g.dim);
  const float slope = slope_of(g, h);
  pack({g.q + h * g.dim + begin * g.stride, end - begin, g.dim, g.stride, false},
       work.q + begin * sizes.depth, sizes.depth, false);
  for (int64_t row = begin; row < end; row += kForwardRows) {
    const Scores s{row, g.scale * kLog2E, slope, g.first, g.length};
    const int64_t first_key = s.first_of(row) / kLane * kLane,
                  keys = row + kForwardRows - first_key;
    weigh_block(s, work, sizes, first_key, first_key + keys);
    product(work.out, sizes.columns, kForwardRows, sizes.columns, {work.weights, sizes.rows / 2, 1},
            {work.v + first_key / 2 * sizes.columns, sizes.columns}, keys / 2, /*adds=*/false);
    for (int64_t i = row; i < std::min(row + kForwardRows, end); ++i) {
      const float mass = g.log_mass == nullptr ? -INFINITY : g.log_mass[h * g.length + i];
      const float top = work.top[i - row] - slope * static_cast<float>(i - row);
      const RowResult result = row_result(top, work.sum[i - row], mass);
      lse[h * g.length + i] = result.lse;
      store_scaled(out + i * g.out_stride + h * g.dim, work.out + (i - row) * sizes.columns, g.dim,
                   result.factor);
    }
  }
}

/// Weights and gradients of the scores of rows [i, i + 4) and 16·V keys from `key` on, at row r and
/// column c of the tile.
template <int V>
STABLEMASK_BF16_PART void gradient_tile(const Scores& s, const BackwardWork& work,
                                        const Sizes& sizes, int64_t r, int64_t key, int64_t c) {
  const int64_t i = s.row + r;
  Tile<4, V> weight, dweight;
  clear(weight);
  clear(dweight);
  const int64_t depth = sizes.depth;
  for (int64_t k = 0; k < depth; ++k) {
    const LeftWords q{work.q + i * depth + k, depth, 1}, dout{work.dout + i * depth + k, depth, 1};
    add_product(weight, q, {work.k + k * sizes.rows + key, sizes.rows}, 1);
    add_product(dweight, dout, {work.v + k * sizes.rows + key, sizes.rows}, 1);
  }
  const bool hides = s.hides(i, key, key + V * kLane);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const __m512 bias = key_bias(s, key + v * kLane);
    __m512 p[4], ds[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const __m512 x = _mm512_fmadd_ps(weight.x[n][v], _mm512_set1_ps(s.scale), bias);
      p[n] = power_of_two(_mm512_sub_ps(x, _mm512_set1_ps(work.lse[i + n])));
      if (hides) p[n] = _mm512_maskz_mov_ps(visible_keys(s, i + n, key + v * kLane), p[n]);
      ds[n] =
          _mm512_mul_ps(p[n], _mm512_sub_ps(dweight.x[n][v], _mm512_set1_ps(work.delta[i + n])));
      store_rounded(work.dscores_by_key + ((r + n) * kBackwardKeys + c + v * kLane) / 2, ds[n]);
    }
#pragma GCC unroll 2
    for (int n = 0; n < 4; n += 2) {
      const int64_t at = (r + n) / 2 * kBackwardKeys + c + v * kLane;
      _mm512_store_si512(work.weights + at, pairs(p[n], p[n + 1]));
      _mm512_store_si512(work.dscores + at, pairs(ds[n], ds[n + 1]));
    }
  }
}

/// The tile of the block's rows and `keys` keys from `key` on.
STABLEMASK_BF16 void gradient_block(const Scores& s, const BackwardWork& work, const Sizes& sizes,
                                    int64_t key, int64_t keys) {
  for (int64_t r = 0; r < kBackwardRows; r += 4) {
    int64_t c = 0;
    for (; c + 2 * kLane <= keys; c += 2 * kLane) gradient_tile<2>(s, work, sizes, r, key + c, c);
    if (c < keys) gradient_tile<1>(s, work, sizes, r, key + c, c);
  }
}

/// lse and delta of head h.
STABLEMASK_BF16 void prepare_rows(const AttentionGroup& g, const AttentionGradient& gradient,
                                  int64_t h, const BackwardWork& work) {
  const int64_t rows = Sizes(g.length, g.dim).rows;
  const float slope = slope_of(g, h);
  for (int64_t i = 0; i < g.length; ++i) {
    const float* dout = gradient.dout + i * g.out_stride + h * g.dim;
    const float* out = gradient.out + i * g.out_stride + h * g.dim;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < g.dim; d += kLane) {
      const __mmask16 lanes = first_lanes(g.dim - d);
      sum = _mm512_fmadd_ps(rounded_lanes(_mm512_maskz_loadu_ps(lanes, dout + d)),
                            _mm512_maskz_loadu_ps(lanes, out + d), sum);
    }
    work.delta[i] = _mm512_reduce_add_ps(sum);
    // The scores count from the block's first row.
    work.lse[i] =
        gradient.lse[h * g.length + i] * kLog2E + slope * static_cast<float>(i % kBackwardRows);
  }
  for (int64_t i = g.length; i < rows; ++i) {
    work.delta[i] = 0.0f;
    work.lse[i] = INFINITY;
  }
}

/// Adds head h's part of the gradients of k and v; writes that of q.
STABLEMASK_BF16 void head_gradient(const AttentionGroup& g, const AttentionGradient& gradient,
                                   int64_t h, const AttentionPart& part, const BackwardWork& work) {
  const Sizes sizes(g.length, g.dim);
  const int64_t columns = sizes.columns;
  const float slope = slope_of(g, h);
  for (int64_t row = 0; row < g.length; row += kBackwardRows) {
    const Scores s{row, g.scale * kLog2E, slope, g.first, g.length};
    const bool queries = row >= part.row && row < part.end_row;
    const int64_t first_key = s.first_of(row) / kBackwardKeys * kBackwardKeys;
    for (int64_t key = first_key; key < row + kBackwardRows; key += kBackwardKeys) {
      const bool keys_too = key >= part.key && key < part.end_key;
      if (!queries && !keys_too) continue;
      const int64_t keys = std::min(kBackwardKeys, row + kBackwardRows - key);
      gradient_block(s, work, sizes, key, keys);
      if (keys_too) {
        const int64_t at = row / 2 * columns;
        product(work.dv + key * columns, columns, keys, columns, {work.weights, 1, kBackwardKeys},
                {work.dout_pairs + at, columns}, kBackwardRows / 2, /*adds=*/true);
        product(work.dk + key * columns, columns, keys, columns, {work.dscores, 1, kBackwardKeys},
                {work.q_pairs + at, columns}, kBackwardRows / 2, /*adds=*/true);
      }
      if (queries) {
        product(work.dq, columns, kBackwardRows, columns,
                {work.dscores_by_key, kBackwardKeys / 2, 1},
                {work.k_pairs + key / 2 * columns, columns}, keys / 2, key > first_key);
      }
    }
    if (!queries) continue;
    for (int64_t i = row; i < std::min(row + kBackwardRows, g.length); ++i) {
      store_scaled(gradient.dq + i * g.stride + h * g.dim, work.dq + (i - row) * columns, g.dim,
                   g.scale);
    }
  }
}

STABLEMASK_BF16 void store_rows(float* out, int64_t stride, const float* x, const AttentionGroup& g,
                                const AttentionPart& part, float factor) {
  const int64_t columns = Sizes(g.length, g.dim).columns;
  for (int64_t i = part.key; i < std::min(part.end_key, g.length); ++i) {
    store_scaled(out + i * stride, x + i * columns, g.dim, factor);
  }
}

}  // namespace

void attend(const AttentionGroup& g, int64_t begin, int64_t end, float* out, float* lse,
            uint32_t* work) {
  const Sizes sizes(g.length, g.dim);
  Pieces pieces(work);
  const ForwardWork parts(sizes, pieces);
  pack({g.k, end, g.dim, g.stride, false}, parts.k, sizes.rows, /*transposed=*/true);
  pack({g.v, end, g.dim, g.stride, true}, parts.v, sizes.columns, /*transposed=*/false);
  for (int64_t h = 0; h < g.heads; ++h) attend_head(g, h, begin, end, out, lse, parts);
}

void attend_backward(const AttentionGroup& g, const AttentionGradient& gradient,
                     const AttentionPart& part, uint32_t* work) {
  const Sizes sizes(g.length, g.dim);
  Pieces pieces(work);
  const BackwardWork parts(sizes, pieces);
  const auto by_dim = [&](const float* x, int64_t stride, uint32_t* out, bool transposed) {
    pack({x, g.length, g.dim, stride, false}, out, transposed ? sizes.rows : sizes.depth,
         transposed);
  };
  const auto by_row = [&](const float* x, int64_t stride, uint32_t* out) {
    pack({x, g.length, g.dim, stride, true}, out, sizes.columns, /*transposed=*/false);
  };
  by_dim(g.k, g.stride, parts.k, true);
  by_dim(g.v, g.stride, parts.v, true);
  by_row(g.k, g.stride, parts.k_pairs);
  std::fill_n(parts.dk, sizes.rows * sizes.columns, 0.0f);
  std::fill_n(parts.dv, sizes.rows * sizes.columns, 0.0f);
  for (int64_t h = 0; h < g.heads; ++h) {
    const float *q = g.q + h * g.dim, *dout = gradient.dout + h * g.dim;
    by_dim(q, g.stride, parts.q, false);
    by_dim(dout, g.out_stride, parts.dout, false);
    by_row(q, g.stride, parts.q_pairs);
    by_row(dout, g.out_stride, parts.dout_pairs);
    prepare_rows(g, gradient, h, parts);
    head_gradient(g, gradient, h, part, parts);
  }
  store_rows(gradient.dk, g.stride, parts.dk, g, part, g.scale);
  store_rows(gradient.dv, g.stride, parts.dv, g, part, 1.0f);
}
#else
// Without cpu_has_bf16 nothing calls them.
void attend(const AttentionGroup&, int64_t, int64_t, float*, float*, uint32_t*) { std::abort(); }
void attend_backward(const AttentionGroup&, const AttentionGradient&, const AttentionPart&,
                     uint32_t*) {
  std::abort();
}
#endif

}  // namespace stablemask::ops::cpu::bf16
