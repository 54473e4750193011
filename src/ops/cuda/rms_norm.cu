// RMSNorm with the residual addition before it, s = x + residual rounded to the activations' type:
//   y = s · r · w,   r = 1/sqrt(mean(s²) + eps)
//   dx = r · (dy·w − s · r² · mean(dy·w·s)) + dsum,   dw += Σ_rows dy · s · r
//
// Parallelisation: a group of 8 to 256 threads processes a row and keeps it in registers, so that
// it is read once. In the backward each block iterates over rows and accumulates its part of dw in
// registers; the parts go to scratch [kPartials, cols], which a second kernel sums. The rows of a
// block and the order of every sum depend on the shape alone. Memory traffic per element: forward 4
// (x, residual in; sum, y out), without residual 2; backward 4 (dy, x, dsum in; dx out), without
// dsum 3. The scratch is 1/64 of one tensor at 32,768 rows.
#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;

/// kGroup threads share a row; each holds up to kItems packs of it.
template <int kGroup, int kItems>
struct RowThreads {
  static constexpr int group = kGroup;
  static constexpr int items = kItems;
  static constexpr int rows = kThreads / kGroup;  ///< rows per block at a time
};

/// Sum over the group, returned to each of its threads. All threads of the block must call it, with
/// `turn` alternating between 0 and 1: double buffering, as slow threads may still read the last
/// one.
template <int kGroup>
__device__ __forceinline__ float group_sum(float x, int turn) {
#pragma unroll
  for (int offset = (kGroup < 32 ? kGroup : 32) / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  if constexpr (kGroup > 32) {
    __shared__ float warps[2][kThreads / 32];
    if (threadIdx.x % 32 == 0) warps[turn][threadIdx.x / 32] = x;
    __syncthreads();
    const int first = threadIdx.x / kGroup * (kGroup / 32);
    x = 0.0f;
#pragma unroll
    for (int w = 0; w < kGroup / 32; ++w) x += warps[turn][first + w];
  }
  return x;
}

/// This thread's packs of a row: lane, lane + group, …
template <typename L, int kVec, typename T>
__device__ __forceinline__ void load_row(const T* row, int packs, Pack<T, kVec> (&to)[L::items]) {
  const int lane = threadIdx.x % L::group;
#pragma unroll
  for (int k = 0; k < L::items; ++k) {
    const int i = lane + k * L::group;
    if (i < packs) to[k] = load<kVec>(row + i * kVec);
  }
}

template <typename T, typename W, int kVec, typename L>
__global__ void __launch_bounds__(kThreads) rms_norm_forward_kernel(const RmsNormForward p) {
  const int lane = threadIdx.x % L::group;
  const int64_t row = int64_t{blockIdx.x} * L::rows + threadIdx.x / L::group;
  const int packs = row < p.rows ? static_cast<int>(p.cols / kVec) : 0;
  const int64_t at = row * p.cols;

  Pack<T, kVec> x[L::items];
  load_row<L, kVec>(static_cast<const T*>(p.x) + at, packs, x);
  if (p.residual != nullptr) {
    Pack<T, kVec> residual[L::items];
    load_row<L, kVec>(static_cast<const T*>(p.residual) + at, packs, residual);
#pragma unroll
    for (int k = 0; k < L::items; ++k) {
      const int i = lane + k * L::group;
      if (i >= packs) continue;
      float sum[kVec];
#pragma unroll
      for (int j = 0; j < kVec; ++j)
        sum[j] = to_float(x[k].data[j]) + to_float(residual[k].data[j]);
      x[k] = pack<T>(sum);
      store<kVec>(static_cast<T*>(p.sum) + at + i * kVec, x[k]);
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < L::items; ++k) {
    if (lane + k * L::group >= packs) continue;
#pragma unroll
    for (int j = 0; j < kVec; ++j) squares += to_float(x[k].data[j]) * to_float(x[k].data[j]);
  }
  const float mean = group_sum<L::group>(squares, 0) / static_cast<float>(p.cols);
  const float rstd = rsqrtf(mean + p.eps);
  if (lane == 0 && row < p.rows) p.rstd[row] = rstd;
  if (p.y == nullptr) return;
#pragma unroll
  for (int k = 0; k < L::items; ++k) {
    const int i = lane + k * L::group;
    if (i >= packs) continue;
    const auto weight = load<kVec>(static_cast<const W*>(p.weight) + i * kVec);
    float y[kVec];
#pragma unroll
    for (int j = 0; j < kVec; ++j) y[j] = to_float(x[k].data[j]) * rstd * to_float(weight.data[j]);
    store<kVec>(static_cast<T*>(p.y) + at + i * kVec, pack<T>(y));
  }
}

/// Adds the groups' parts of dw in order and writes the block's part.
template <int kVec, typename L>
__device__ void write_partial(float (&dw)[L::items][kVec], float* partial, int packs) {
  constexpr bool kShared = L::rows > 1;
  __shared__ Pack<float, kVec> totals[kShared ? L::group * L::items : 1];
  const int lane = threadIdx.x % L::group;
  for (int turn = 0; turn < L::rows; ++turn) {
    if (threadIdx.x / L::group == turn) {
#pragma unroll
      for (int k = 0; k < L::items; ++k) {
        const int i = lane + k * L::group;
        if (i >= packs) continue;
        Pack<float, kVec> total = pack<float>(dw[k]);
        if (kShared && turn > 0) {
#pragma unroll
          for (int j = 0; j < kVec; ++j) total.data[j] += totals[i].data[j];
        }
        if (turn == L::rows - 1) {
          store<kVec>(partial + i * kVec, total);
        } else {
          totals[i] = total;
        }
      }
    }
    __syncthreads();
  }
}

template <typename T, typename W, int kVec, typename L>
__global__ void __launch_bounds__(kThreads) rms_norm_backward_kernel(const RmsNormBackward p) {
  const int lane = threadIdx.x % L::group;
  const int all_packs = static_cast<int>(p.cols / kVec);
  Pack<W, kVec> weight[L::items];
  load_row<L, kVec>(static_cast<const W*>(p.weight), all_packs, weight);
  float dw[L::items][kVec] = {};

  int turn = 0;
  for (int64_t base = int64_t{blockIdx.x} * L::rows; base < p.rows;
       base += int64_t{gridDim.x} * L::rows, turn ^= 1) {
    const int64_t row = base + threadIdx.x / L::group;
    const int packs = row < p.rows ? all_packs : 0;
    const int64_t at = row * p.cols;
    const float rstd = row < p.rows ? p.rstd[row] : 0.0f;
    Pack<T, kVec> x[L::items];
    Pack<T, kVec> dy[L::items];
    Pack<T, kVec> dsum[L::items] = {};
    load_row<L, kVec>(static_cast<const T*>(p.x) + at, packs, x);
    load_row<L, kVec>(static_cast<const T*>(p.dy) + at, packs, dy);
    if (p.dsum != nullptr) load_row<L, kVec>(static_cast<const T*>(p.dsum) + at, packs, dsum);
    float dot = 0.0f;
#pragma unroll
    for (int k = 0; k < L::items; ++k) {
      if (lane + k * L::group >= packs) continue;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        dot += to_float(dy[k].data[j]) * to_float(weight[k].data[j]) * to_float(x[k].data[j]);
      }
    }
    const float mean = group_sum<L::group>(dot, turn) * rstd * rstd / static_cast<float>(p.cols);
#pragma unroll
    for (int k = 0; k < L::items; ++k) {
      const int i = lane + k * L::group;
      if (i >= packs) continue;
      float dx[kVec];
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float s = to_float(x[k].data[j]);
        const float d = to_float(dy[k].data[j]);
        dx[j] = rstd * (d * to_float(weight[k].data[j]) - s * mean) + to_float(dsum[k].data[j]);
        dw[k][j] += d * s * rstd;
      }
      store<kVec>(static_cast<T*>(p.dx) + at + i * kVec, pack<T>(dx));
    }
  }
  write_partial<kVec, L>(dw, p.partials + blockIdx.x * p.cols, all_packs);
}

constexpr int kSumColumns = 32;
constexpr int kSumRows = 16;

/// dw[c] += Σ_r partials[r][c].
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    add_partials_kernel(const float* partials, int rows, int64_t cols, float* dw) {
  __shared__ float sums[kSumRows][kSumColumns];
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + threadIdx.x;
  float sum = 0.0f;
  if (column < cols) {
#pragma unroll 4
    for (int row = threadIdx.y; row < rows; row += kSumRows) sum += partials[row * cols + column];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= cols) return;
  float total = 0.0f;
#pragma unroll
  for (int row = 0; row < kSumRows; ++row) total += sums[row][threadIdx.x];
  dw[column] += total;
}

/// Calls f(RowThreads) with the narrowest group that holds a row of `packs`.
template <int kVec, typename F>
cudaError_t with_row_threads(int64_t packs, F&& f) {
  if constexpr (kVec == 1) {
    if (packs <= 128) return f(RowThreads<32, 4>{});
    if (packs <= 8192) return f(RowThreads<256, 32>{});
  } else {
    if (packs <= 8) return f(RowThreads<8, 1>{});
    if (packs <= 16) return f(RowThreads<16, 1>{});
    if (packs <= 32) return f(RowThreads<32, 1>{});
    if (packs <= 64) return f(RowThreads<64, 1>{});
    if (packs <= 128) return f(RowThreads<128, 1>{});
    if (packs <= 256) return f(RowThreads<256, 1>{});
    if (packs <= 512) return f(RowThreads<256, 2>{});
    if (packs <= 2048) return f(RowThreads<256, 8>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch(const RmsNormForward& p, cudaStream_t stream) {
  return with_types(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using T = typename decltype(type)::type;
    using W = typename decltype(weight_type)::type;
    const bool whole = aligned(p.x, p.residual, p.weight, p.sum, p.y) && p.cols % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      constexpr int kVec = decltype(vec)::value;
      return with_row_threads<kVec>(p.cols / kVec, [&](auto row_threads) {
        using L = decltype(row_threads);
        const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.rows, L::rows));
        rms_norm_forward_kernel<T, W, kVec, L><<<blocks, kThreads, 0, stream>>>(p);
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t launch(const RmsNormBackward& p, cudaStream_t stream) {
  return with_types(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using T = typename decltype(type)::type;
    using W = typename decltype(weight_type)::type;
    const bool whole =
        aligned(p.dy, p.dsum, p.x, p.weight, p.dx, p.partials) && p.cols % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      constexpr int kVec = decltype(vec)::value;
      return with_row_threads<kVec>(p.cols / kVec, [&](auto row_threads) {
        using L = decltype(row_threads);
        const int blocks = static_cast<int>(
            std::min<int64_t>(RmsNormBackward::kPartials, ceil_div<int64_t>(p.rows, L::rows)));
        rms_norm_backward_kernel<T, W, kVec, L><<<blocks, kThreads, 0, stream>>>(p);
        const cudaError_t error = cudaGetLastError();
        if (error != cudaSuccess) return error;
        const auto tiles = static_cast<unsigned>(ceil_div<int64_t>(p.cols, kSumColumns));
        add_partials_kernel<<<tiles, dim3(kSumColumns, kSumRows), 0, stream>>>(p.partials, blocks,
                                                                               p.cols, p.dw);
        return cudaGetLastError();
      });
    });
  });
}

}  // namespace stablemask::ops::cuda
