#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

/// CUDA kernels as plain functions: a parameter struct of pointers and sizes, and `launch`, which
/// enqueues the kernel on a stream. No framework types, no allocation, no host synchronisation, so
/// every launch can be captured into a CUDA graph. Pointers are device memory; rows are contiguous
/// unless strides are given. Any alignment of the element type is accepted; 16-byte accesses are
/// used where pointers and sizes allow them. The returned error is that of the launch. Every result
/// is bitwise reproducible from run to run.

namespace stablemask::ops::cuda {

enum class DType { kFloat32, kBFloat16 };

/// s = x + residual (rounded to dtype), rstd = 1/sqrt(mean(s²) + eps), y = s · rstd · weight. Rows
/// of up to 8192 columns.
struct RmsNormForward {
  const void* x;         ///< [rows, cols]
  const void* residual;  ///< [rows, cols]; null: s = x
  const void* weight;    ///< [cols], weight_dtype
  void* sum;             ///< [rows, cols], written when residual is given
  void* y;               ///< [rows, cols]; null: not written
  float* rstd;           ///< [rows]
  int64_t rows;
  int64_t cols;
  float eps;
  DType dtype;
  DType weight_dtype;  ///< dtype, or fp32
};
cudaError_t launch(const RmsNormForward& p, cudaStream_t stream);

/// dx = rstd · (dy·w − x̂ · mean(dy·w·x̂)) + dsum, dw += Σ_rows dy · x̂, with x̂ = x · rstd.
struct RmsNormBackward {
  static constexpr int kPartials = 528;  ///< 4 blocks per multiprocessor of an H100
  const void* dy;                        ///< [rows, cols]
  const void* dsum;                      ///< [rows, cols]; null: 0
  const void* x;                         ///< [rows, cols]
  const void* weight;                    ///< [cols], weight_dtype
  const float* rstd;                     ///< [rows]
  void* dx;                              ///< [rows, cols]; may be dy or dsum
  float* dw;                             ///< [cols], accumulated into
  float* partials;                       ///< scratch [kPartials, cols]
  int64_t rows;
  int64_t cols;
  DType dtype;
  DType weight_dtype;
};
cudaError_t launch(const RmsNormBackward& p, cudaStream_t stream);

/// out = silu(gate) · up; gate_up [rows, 2·features], gate first.
struct SwigluForward {
  const void* gate_up;
  void* out;  ///< [rows, features]
  int64_t rows;
  int64_t features;
  DType dtype;
};
cudaError_t launch(const SwigluForward& p, cudaStream_t stream);

struct SwigluBackward {
  const void* dout;     ///< [rows, features]
  const void* gate_up;  ///< [rows, 2·features]
  void* dgate_up;       ///< [rows, 2·features]; may be gate_up
  int64_t rows;
  int64_t features;
  DType dtype;
};
cudaError_t launch(const SwigluBackward& p, cudaStream_t stream);

/// out = x·factor where ops/dropout_rules.h keeps element first + i, else 0.
struct DropoutArgs {
  const void* x;
  void* out;
  const int64_t* key;  ///< one number
  int64_t stream;
  int64_t first;
  int64_t count;
  uint32_t threshold;
  float factor;
  DType dtype;
};
cudaError_t launch(const DropoutArgs& p, cudaStream_t stream);

/// Rotates the pairs (x_m, x_{m+dims/2}) of the first `heads` heads in place.
struct Rope {
  void* packed;              ///< [tokens, packed_heads, head_dim]
  const int64_t* positions;  ///< of token n: positions[n % position_period]
  const float* table;        ///< [table_rows, dims]: cosines, then sines
  int64_t tokens;
  int64_t position_period;
  int64_t table_rows;  ///< tokens with a position outside the table become NaN
  int packed_heads;
  int head_dim;
  int heads;
  int dims;
  bool inverse;
  DType dtype;
};
cudaError_t launch(const Rope& p, cudaStream_t stream);

/// losses = lse − logit[target] + z_loss·lse²; with `grad` the logits are overwritten by their
/// gradient times *scale.
struct CrossEntropy {
  void* logits;  ///< [rows, vocab], `stride` elements from row to row
  const int64_t*
      targets;    ///< [rows]; −100: ignored; any other value outside the vocabulary gives NaN
  float* losses;  ///< [rows]
  int64_t rows;
  int64_t vocab;
  int64_t stride;
  const double* scale;  ///< one number; null without `grad`
  float z_loss;
  bool grad;
  DType dtype;
};
cudaError_t launch(const CrossEntropy& p, cudaStream_t stream);

/// dw[ids[n]] += dy[n]; ids outside the vocabulary are skipped.
struct EmbeddingBackward {
  const void* dy;      ///< [tokens, cols]
  const int64_t* ids;  ///< [tokens]
  float* dw;           ///< [vocab, cols], accumulated into
  void* scratch;       ///< scratch_bytes(p) bytes, on a 256-byte boundary
  int64_t tokens;
  int64_t vocab;
  int64_t cols;
  DType dtype;
};
cudaError_t scratch_bytes(const EmbeddingBackward& p, size_t* bytes);
cudaError_t launch(const EmbeddingBackward& p, cudaStream_t stream);

/// One AdamW update of flat buffers (formula: ops/optimizer.h). Values that change from update to
/// update are read from device memory, so that a captured graph can be replayed unchanged.
struct AdamW {
  void* weights;       ///< fp32, or bf16 with a remainder (ops/optimizer.h, SplitWeights)
  int16_t* remainder;  ///< null: the weights are fp32
  void* m;             ///< fp32 or bf16, as is v
  void* v;
  const float* grad;
  int64_t size;
  int64_t first;  ///< index of the first element among all; read for bf16 moments, as is the seed
  int64_t seed;
  bool bf16_moments;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  const double* control;  ///< lr, step from 1, grad_scale; grad_scale < 0: no update
};
cudaError_t launch(const AdamW& p, cudaStream_t stream);

/// result = Σ x² in fp64; bitwise the same on every GPU.
struct SumOfSquares {
  static constexpr int kPartials = 1024;
  const float* x;
  int64_t size;
  double* partials;  ///< scratch [kPartials]
  double* result;    ///< one number
};
cudaError_t launch(const SumOfSquares& p, cudaStream_t stream);

}  // namespace stablemask::ops::cuda
