#include "src/ops/cpu_rows.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "src/ops/cpu_simd.h"

// Every function is compiled once per instruction set. `omp simd reduction` lets the compiler
// reorder the additions of reductions, and nothing else.
namespace stablemask::ops::cpu::rows {
namespace {

/// e^x to about one unit in the last place for x ≤ 88, 0 below −87, NaN for NaN; free of branches
/// and calls, so that loops over it vectorise. x = n·log 2 + r with |r| ≤ log(2)/2, then a Taylor
/// series.
inline float exponential(float x) {
  constexpr float kLowest = -87.0f, kHighest = 88.0f;
  constexpr float kRounder = 12582912.0f;  // 1.5·2^23: adding it leaves n in the low mantissa bits
  constexpr float kLog2High = 0.693359375f, kLog2Low = -2.12194440e-4f;
  float clamped = x < kLowest ? kLowest : x;
  clamped = clamped > kHighest ? kHighest : clamped;
  const float shifted = clamped * 1.44269504088896f + kRounder;
  const float n = shifted - kRounder;
  const float r = (clamped - n * kLog2High) - n * kLog2Low;
  float series = 1.0f / 5040.0f;
  series = series * r + 1.0f / 720.0f;
  series = series * r + 1.0f / 120.0f;
  series = series * r + 1.0f / 24.0f;
  series = series * r + 1.0f / 6.0f;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;
  const float value = std::bit_cast<float>(std::bit_cast<uint32_t>(series) + exponent);
  return x < kLowest ? 0.0f : value;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/// scores[k] = query·key k, four keys at a time: one pass over the query for all four.
STABLEMASK_SIMD_PART void dot_products(const float* query, const float* keys, int64_t stride,
                                       int64_t dim, int64_t count, float* scores) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const float* key = keys + k * stride;
    float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
#pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t i = 0; i < dim; ++i) {
      a += query[i] * key[i];
      b += query[i] * key[stride + i];
      c += query[i] * key[2 * stride + i];
      d += query[i] * key[3 * stride + i];
    }
    scores[k] = a;
    scores[k + 1] = b;
    scores[k + 2] = c;
    scores[k + 3] = d;
  }
  for (; k < count; ++k) {
    const float* key = keys + k * stride;
    float a = 0.0f;
#pragma omp simd reduction(+ : a)
    for (int64_t i = 0; i < dim; ++i) a += query[i] * key[i];
    scores[k] = a;
  }
}

/// out = kept·out + Σ weights[k]·value k, four values at a time: a quarter of the traffic of out.
STABLEMASK_SIMD_PART void add_weighted(const float* values, int64_t stride, int64_t dim,
                                       int64_t count, const float* weights, float kept,
                                       float* out) {
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) out[i] *= kept;
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const float* value = values + k * stride;
    const float a = weights[k], b = weights[k + 1], c = weights[k + 2], d = weights[k + 3];
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      out[i] += (a * value[i] + b * value[stride + i]) +
                (c * value[2 * stride + i] + d * value[3 * stride + i]);
    }
  }
  for (; k < count; ++k) {
    const float* value = values + k * stride;
    const float a = weights[k];
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) out[i] += a * value[i];
  }
}

}  // namespace

STABLEMASK_SIMD void rms_norm(const RmsNormForward& p, int64_t begin, int64_t end) {
  const int64_t cols = p.cols;
  const float* weight = p.weight;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = p.x + row * cols;
    float* y = p.y + row * cols;
    float squares = 0.0f;
    if (p.residual != nullptr) {
      const float* residual = p.residual + row * cols;
      float* sum = p.sum + row * cols;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < cols; ++c) {
        const float s = residual[c] + x[c];
        sum[c] = s;
        squares += s * s;
      }
      x = sum;
    } else {
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < cols; ++c) squares += x[c] * x[c];
    }
    const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(cols) + p.eps);
    p.rstd[row] = rstd;
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) y[c] = x[c] * rstd * weight[c];
  }
}

STABLEMASK_SIMD void rms_norm_backward(const RmsNormBackward& p, float* dw, int64_t begin,
                                       int64_t end) {
  const int64_t cols = p.cols;
  const float* weight = p.weight;
  for (int64_t row = begin; row < end; ++row) {
    const float* dy = p.dy + row * cols;
    const float* x = p.x + row * cols;
    float* dx = p.dx + row * cols;
    const float rstd = p.rstd[row];
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < cols; ++c) dot += dy[c] * weight[c] * x[c];
    const float slope = dot * rstd * rstd / static_cast<float>(cols);
    if (p.dsum != nullptr) {
      const float* dsum = p.dsum + row * cols;
#pragma omp simd
      for (int64_t c = 0; c < cols; ++c) {
        dw[c] += dy[c] * x[c] * rstd;
        dx[c] = rstd * (dy[c] * weight[c] - x[c] * slope) + dsum[c];
      }
    } else {
#pragma omp simd
      for (int64_t c = 0; c < cols; ++c) {
        dw[c] += dy[c] * x[c] * rstd;
        dx[c] = rstd * (dy[c] * weight[c] - x[c] * slope);
      }
    }
  }
}

STABLEMASK_SIMD void swiglu(const float* gate_up, float* out, int64_t features, int64_t begin,
                            int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = gate_up + row * 2 * features;
    const float* up = gate + features;
    float* y = out + row * features;
#pragma omp simd
    for (int64_t f = 0; f < features; ++f) y[f] = gate[f] * sigmoid(gate[f]) * up[f];
  }
}

STABLEMASK_SIMD void swiglu_backward(const float* dout, const float* gate_up, float* dgate_up,
                                     int64_t features, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* dy = dout + row * features;
    const float* gate = gate_up + row * 2 * features;
    const float* up = gate + features;
    float* dgate = dgate_up + row * 2 * features;
    float* dup = dgate + features;
#pragma omp simd
    for (int64_t f = 0; f < features; ++f) {
      const float s = sigmoid(gate[f]), silu = gate[f] * s;
      dgate[f] = dy[f] * up[f] * (s + silu * (1.0f - s));
      dup[f] = dy[f] * silu;
    }
  }
}

STABLEMASK_SIMD void rope(float* x, int64_t heads, int64_t stride, const float* cos,
                          const float* sin, int64_t half, float sign) {
  for (int64_t h = 0; h < heads; ++h) {
    float* a = x + h * stride;
    float* b = a + half;
#pragma omp simd
    for (int64_t m = 0; m < half; ++m) {
      const float s = sign * sin[m], first = a[m], second = b[m];
      a[m] = first * cos[m] - second * s;
      b[m] = second * cos[m] + first * s;
    }
  }
}

namespace {

/// 16 numbers, in as many registers as the instruction set needs.
using Lanes = float __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

__attribute__((always_inline)) inline void load(const float* from, Lanes& to) {
  std::memcpy(&to, from, sizeof to);
}

/// Dot products of `w` with N rows of p.x from number `first` on, to column r of the result. Two
/// sums of 16 lanes each whatever N, so that their order is the same.
template <int N>
__attribute__((always_inline)) inline void dot_products(const Product& p, const float* w,
                                                        int64_t first, int64_t r) {
  const float* x = p.x + first * p.cols;
  Lanes even[N] = {}, odd[N] = {};
  int64_t c = 0;
  for (; c + 2 * kLanes <= p.cols; c += 2 * kLanes) {
    Lanes w_even, w_odd, x_even, x_odd;
    load(w + c, w_even);
    load(w + c + kLanes, w_odd);
    for (int n = 0; n < N; ++n) {
      load(x + n * p.cols + c, x_even);
      load(x + n * p.cols + c + kLanes, x_odd);
      even[n] += w_even * x_even;
      odd[n] += w_odd * x_odd;
    }
  }
  for (int n = 0; n < N; ++n) {
    float lanes[kLanes];
    even[n] += odd[n];
    std::memcpy(lanes, &even[n], sizeof lanes);
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    float sum = lanes[0];
    for (int64_t i = c; i < p.cols; ++i) sum += w[i] * x[n * p.cols + i];
    const int64_t at = (first + n) * p.outs + r;
    p.out[at] = p.residual != nullptr ? p.residual[at] + sum : sum;
  }
}

}  // namespace

// One row of the weight at a time: the processor's prefetcher follows a single stream best.
STABLEMASK_SIMD void product(const Product& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* w = p.weight + r * p.cols;
    int64_t n = 0;
    for (; n + 4 <= p.rows; n += 4) dot_products<4>(p, w, n, r);
    for (; n < p.rows; ++n) dot_products<1>(p, w, n, r);
  }
}

STABLEMASK_SIMD float cross_entropy(float* logits, int64_t vocab, int64_t target, float scale,
                                    float z_loss, bool grad) {
  float highest = logits[0];
#pragma omp simd reduction(max : highest)
  for (int64_t v = 0; v < vocab; ++v) highest = logits[v] > highest ? logits[v] : highest;
  const float picked = logits[target];
  float sum = 0.0f;
  if (!grad) {
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < vocab; ++v) sum += exponential(logits[v] - highest);
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < vocab; ++v) {
      const float e = exponential(logits[v] - highest);
      logits[v] = e;
      sum += e;
    }
  }
  const float lse = highest + std::log(sum);
  if (grad) {
    const float factor = scale * (1.0f + 2.0f * z_loss * lse) / sum;
#pragma omp simd
    for (int64_t v = 0; v < vocab; ++v) logits[v] *= factor;
    logits[target] -= scale;
  }
  return lse - picked + z_loss * lse * lse;
}

STABLEMASK_SIMD void scale(float* x, float factor, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) x[i] *= factor;
}

STABLEMASK_SIMD void add(const float* x, float* y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] += x[i];
}

STABLEMASK_SIMD double sum_of_squares(const float* x, int64_t size) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

STABLEMASK_SIMD void approach(const float* x, float rate, float* y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] += rate * (x[i] - y[i]);
}

STABLEMASK_SIMD void adamw(const AdamW& p, int64_t size) {
  float *weights = p.weights, *m = p.m, *v = p.v;
  const float* grad = p.grad;
  const AdamW a = p;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = grad[i] * a.grad_scale;
    m[i] = a.beta1 * m[i] + (1.0f - a.beta1) * g;
    v[i] = a.beta2 * v[i] + (1.0f - a.beta2) * g * g;
    const float denominator = std::sqrt(v[i]) * a.rsqrt_correction + a.eps;
    weights[i] = a.decay * weights[i] - a.step_size * m[i] / denominator;
  }
}

STABLEMASK_SIMD void widen(const uint16_t* x, float* y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] = std::bit_cast<float>(uint32_t{x[i]} << 16);
}

STABLEMASK_SIMD void round(const Moments& p, const rounding::Key& key, int64_t first,
                           int64_t size) {
  const Moments a = p;
  const rounding::Key of_all = key;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t random = rounding::bits_of(of_all, static_cast<uint64_t>(first + i));
    a.rounded_m[i] = rounding::bf16_of(a.m[i], random & 0xffffu);
    a.rounded_v[i] = rounding::bf16_of(a.v[i], random >> 16);
  }
}

STABLEMASK_SIMD void attend(const Attend& p, const float* keys, int64_t key_stride,
                            const float* values, int64_t value_stride, int64_t count,
                            int64_t distance) {
  constexpr int64_t kBlock = 32;  // slots whose keys and values stay in the first-level cache
  const int64_t dim = p.dim;
  float scores[kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t slots = count - first < kBlock ? count - first : kBlock;
    for (int64_t g = 0; g < p.group; ++g) {
      dot_products(p.queries + g * dim, keys + first * key_stride, key_stride, dim, slots, scores);
      const float slope = p.slopes != nullptr ? p.slopes[g] : 0.0f;
      float largest = p.largest[g];
      for (int64_t k = 0; k < slots; ++k) {
        scores[k] -= slope * static_cast<float>(distance - first - k);
        largest = scores[k] > largest ? scores[k] : largest;
      }
      const float kept = exponential(p.largest[g] - largest);
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < slots; ++k) {
        scores[k] = exponential(scores[k] - largest);
        sum += scores[k];
      }
      p.largest[g] = largest;
      p.sum[g] = p.sum[g] * kept + sum;
      add_weighted(values + first * value_stride, value_stride, dim, slots, scores, kept,
                   p.out + g * dim);
    }
  }
}

STABLEMASK_SIMD void join(const uint16_t* rounded, const int16_t* remainder, float* weights,
                          int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits =
        (uint32_t{rounded[i]} << 16) + static_cast<uint32_t>(int32_t{remainder[i]});
    weights[i] = std::bit_cast<float>(bits);
  }
}

STABLEMASK_SIMD void split(const float* weights, uint16_t* rounded, int16_t* remainder,
                           int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const bool nan = weights[i] != weights[i];
    const uint32_t bits = nan ? 0x7fc00000u : std::bit_cast<uint32_t>(weights[i]);
    rounded[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    remainder[i] = static_cast<int16_t>(bits & 0xffffu);
  }
}

}  // namespace stablemask::ops::cpu::rows
