#pragma once

#include <cstdint>

#include "src/ops/rounding_rules.h"

/// Inner loops of the CPU kernels: contiguous fp32 rows [begin, end), single-threaded, no framework
/// types. Compiled for several instruction sets and selected at load time (cpu_rows.cpp). A row's
/// result depends on that row alone. Formulas: src/ops/kernel_list.inc.
namespace stablemask::ops::cpu::rows {

struct RmsNormForward {
  const float* x;         ///< [rows, cols]
  const float* residual;  ///< [rows, cols]; null: the sum is x
  const float* weight;    ///< [cols]
  float* sum;             ///< [rows, cols], written when residual is given
  float* y;               ///< [rows, cols]
  float* rstd;            ///< [rows]
  int64_t cols;
  float eps;
};
void rms_norm(const RmsNormForward& p, int64_t begin, int64_t end);

struct RmsNormBackward {
  const float* dy;      ///< [rows, cols]
  const float* dsum;    ///< [rows, cols] or null
  const float* x;       ///< [rows, cols]
  const float* weight;  ///< [cols]
  const float* rstd;    ///< [rows]
  float* dx;            ///< [rows, cols]
  int64_t cols;
};
/// `dw` [cols] is accumulated into.
void rms_norm_backward(const RmsNormBackward& p, float* dw, int64_t begin, int64_t end);

/// gate_up [rows, 2F] → out [rows, F].
void swiglu(const float* gate_up, float* out, int64_t features, int64_t begin, int64_t end);
void swiglu_backward(const float* dout, const float* gate_up, float* dgate_up, int64_t features,
                     int64_t begin, int64_t end);

/// Rotates the pairs (x_m, x_{m+half}) of `heads` heads, `stride` floats apart, by sign·angle, with
/// cos and sin [half] of the angles.
void rope(float* x, int64_t heads, int64_t stride, const float* cos, const float* sin, int64_t half,
          float sign);

/// out[n][r] = x[n]·weight[r] + residual[n][r] for n < rows. The result of a row of x has the same
/// bits whatever the number of rows.
struct Product {
  const float* x;         ///< [rows, cols]
  const float* weight;    ///< [outs, cols]
  const float* residual;  ///< [rows, outs]; null: 0
  float* out;             ///< [rows, outs]
  int64_t rows, cols, outs;
};
/// For the rows [begin, end) of the weight, each of which is read once, front to back.
void product(const Product& p, int64_t begin, int64_t end);

/// Loss of one row; with `grad` the logits become scale · d(loss)/d(logits).
float cross_entropy(float* logits, int64_t vocab, int64_t target, float scale, float z_loss,
                    bool grad);

/// x *= factor.
void scale(float* x, float factor, int64_t size);
/// y += x.
void add(const float* x, float* y, int64_t size);
double sum_of_squares(const float* x, int64_t size);
/// y += rate·(x − y).
void approach(const float* x, float rate, float* y, int64_t size);

/// Queries that share keys, and the state of each one's softmax over the keys so far.
struct Attend {
  const float* queries;  ///< [group, dim], times the scale of the scores
  const float* slopes;   ///< [group] of ALiBi; null: no bias
  int64_t group, dim;
  float* largest;  ///< [group], largest score, −inf at first
  float* sum;      ///< [group], Σ exp(score − largest), 0 at first
  float* out;      ///< [group, dim], Σ exp(score − largest)·value, 0 at first
};
/// Adds `count` neighbouring slots of a cache, `key_stride` and `value_stride` floats apart, the
/// first of which is `distance` positions before the query.
void attend(const Attend& p, const float* keys, int64_t key_stride, const float* values,
            int64_t value_stride, int64_t count, int64_t distance);

struct AdamW {
  float* weights;
  float* m;
  float* v;
  const float* grad;
  float grad_scale, beta1, beta2, eps;
  float decay;             ///< 1 − lr·weight_decay
  float step_size;         ///< lr / (1 − β1^t)
  float rsqrt_correction;  ///< 1 / sqrt(1 − β2^t)
};
void adamw(const AdamW& p, int64_t size);

/// bf16 to fp32.
void widen(const uint16_t* x, float* y, int64_t size);
/// To bf16 by rounding_rules.h; `first` is the index of the first element.
struct Moments {
  const float* m;
  const float* v;
  uint16_t* rounded_m;
  uint16_t* rounded_v;
};
void round(const Moments& p, const rounding::Key& key, int64_t first, int64_t size);

/// As ops::join_weights and ops::split_weights.
void join(const uint16_t* rounded, const int16_t* remainder, float* weights, int64_t size);
void split(const float* weights, uint16_t* rounded, int16_t* remainder, int64_t size);

}  // namespace stablemask::ops::cpu::rows
