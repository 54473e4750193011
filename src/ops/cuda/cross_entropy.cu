// Softmax cross-entropy of a row x with target t, in place:
//   lse = log Σ_v e^{x_v},   loss = lse − x_t + z·lse²
//   x_v := scale · ( (1 + 2·z·lse) · e^{x_v − lse} − [v = t] )    (at t through expm1)
// A row with target −100 is not read; its loss and gradient are 0.
//
// Parallelisation: one block per row. A thread keeps a running (max, sum) over its packs and caches
// the packs in shared memory; after one reduction in fixed order it turns them into gradients. Two
// rows of 50,304 bf16 logits fit into a multiprocessor, so that one row's loads overlap with the
// other's arithmetic. Rows of odd length start at any element: packs are aligned to 16 bytes, and
// the few elements before and after them are processed singly. Memory traffic: the logits once in
// and once out (without gradient: once in). Rows too long for shared memory are read twice.
#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBatch = 4;  // packs in flight per thread
constexpr int64_t kIgnored = -100;

/// Partial Σ exp(x), represented as sum · exp(max).
struct ExpSum {
  float max = -INFINITY;
  float sum = 0.0f;
};

/// Value to subtract before exp; finite, because −inf − (−inf) of an empty sum would be NaN.
__device__ __forceinline__ float finite_base(float max) { return max == -INFINITY ? 0.0f : max; }

__device__ __forceinline__ ExpSum merge(const ExpSum& a, const ExpSum& b) {
  const float max = fmaxf(a.max, b.max);
  const float base = finite_base(max);
  return {max, a.sum * expf(a.max - base) + b.sum * expf(b.max - base)};
}

template <typename T, int n>
__device__ __forceinline__ void add(ExpSum& total, const Pack<T, n>& x) {
  float max = total.max;
#pragma unroll
  for (int k = 0; k < n; ++k) max = fmaxf(max, to_float(x.data[k]));
  const float base = finite_base(max);
  float sum = total.sum * exp_as<T>(total.max - base);
#pragma unroll
  for (int k = 0; k < n; ++k) sum += exp_as<T>(to_float(x.data[k]) - base);
  total = {max, sum};
}

/// Sum over the block, returned to every thread. On return every thread has read its logits.
__device__ ExpSum block_sum(ExpSum x) {
  constexpr int kWarps = kThreads / 32;
  __shared__ ExpSum warps[kWarps];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = merge(x, {__shfl_xor_sync(0xffffffffu, x.max, offset),
                  __shfl_xor_sync(0xffffffffu, x.sum, offset)});
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = warps[threadIdx.x % kWarps];
#pragma unroll
  for (int offset = kWarps / 2; offset > 0; offset /= 2) {
    x = merge(x, {__shfl_xor_sync(0xffffffffu, x.max, offset),
                  __shfl_xor_sync(0xffffffffu, x.sum, offset)});
  }
  return x;
}

/// A row as `head` single elements, `packs` aligned packs, and single elements again.
template <typename T>
struct Row {
  T* logits;
  T* cached;  ///< copy of the row in shared memory with the same alignment within a pack
  int head;
  int packs;
  int vocab;

  __device__ Row(T* row, T* shared, int64_t size) : logits(row), vocab(static_cast<int>(size)) {
    const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(T) % kFullPack<T>);
    head = min(skew == 0 ? 0 : kFullPack<T> - skew, vocab);
    packs = (vocab - head) / kFullPack<T>;
    cached = shared + skew;
  }
  __device__ int at(int pack) const { return head + pack * kFullPack<T>; }
  /// Calls f(index) for this thread's single elements.
  template <typename F>
  __device__ __forceinline__ void edges(F&& f) const {
    const int index = static_cast<int>(threadIdx.x);
    if (index < head) f(index);
    if (at(packs) + index < vocab) f(at(packs) + index);
  }
};

template <typename T, bool kCache>
__device__ ExpSum read_row(const Row<T>& row) {
  constexpr int kVec = kFullPack<T>;
  ExpSum total;
  for (int first = threadIdx.x; first < row.packs; first += kBatch * kThreads) {
    Pack<T, kVec> x[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = first + u * kThreads;
      if (i < row.packs) x[u] = load<kVec>(row.logits + row.at(i));
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = first + u * kThreads;
      if (i >= row.packs) continue;
      if constexpr (kCache) store<kVec>(row.cached + row.at(i), x[u]);
      add(total, x[u]);
    }
  }
  row.edges([&](int index) {
    const auto x = load<1>(row.logits + index);
    if constexpr (kCache) store<1>(row.cached + index, x);
    add(total, x);
  });
  return total;
}

/// logits := factor · exp(x − lse), x from shared memory or read again.
template <typename T, bool kCache>
__device__ void write_softmax(const Row<T>& row, float lse, float factor) {
  constexpr int kVec = kFullPack<T>;
  const T* from = kCache ? row.cached : row.logits;
#pragma unroll 2
  for (int i = threadIdx.x; i < row.packs; i += kThreads) {
    const auto x = load<kVec>(from + row.at(i));
    float grad[kVec];
#pragma unroll
    for (int k = 0; k < kVec; ++k) grad[k] = factor * exp_as<T>(to_float(x.data[k]) - lse);
    store<kVec>(row.logits + row.at(i), pack<T>(grad));
  }
  row.edges([&](int index) {
    row.logits[index] = from_float<T>(factor * exp_as<T>(to_float(from[index]) - lse));
  });
}

template <typename T>
__device__ void write_zeros(const Row<T>& row) {
  constexpr int kVec = kFullPack<T>;
  const float zeros[kVec] = {};
  for (int i = threadIdx.x; i < row.packs; i += kThreads) {
    store<kVec>(row.logits + row.at(i), pack<T>(zeros));
  }
  row.edges([&](int index) { row.logits[index] = from_float<T>(0.0f); });
}

template <typename T, bool kCache>
__global__ void __launch_bounds__(kThreads, 2) cross_entropy_kernel(const CrossEntropy p) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Row<T> row(static_cast<T*>(p.logits) + blockIdx.x * p.stride, reinterpret_cast<T*>(shared),
                   p.vocab);
  const int64_t target = p.targets[blockIdx.x];
  if (target == kIgnored) {
    if (threadIdx.x == 0) p.losses[blockIdx.x] = 0.0f;
    if (p.grad) write_zeros(row);
    return;
  }
  const bool known = target >= 0 && target < p.vocab;
  const float picked = known ? to_float(row.logits[target]) : __int_as_float(0x7fc00000);
  const ExpSum total = block_sum(read_row<T, kCache>(row));
  const float lse = total.max + logf(total.sum);
  if (threadIdx.x == 0) p.losses[blockIdx.x] = lse - picked + p.z_loss * lse * lse;
  if (!p.grad) return;
  const float scale = static_cast<float>(*p.scale);
  const float factor = scale * (1.0f + 2.0f * p.z_loss * lse) + (known ? 0.0f : picked);
  write_softmax<T, kCache>(row, lse, factor);
  __syncthreads();
  if (threadIdx.x == 0 && known) {
    const float nll = lse - picked;
    row.logits[target] = from_float<T>(scale * (expm1f(-nll) + 2.0f * p.z_loss * lse * expf(-nll)));
  }
}

template <typename T, bool kCache>
cudaError_t launch_rows(const CrossEntropy& p, int shared_bytes, cudaStream_t stream) {
  const auto kernel = cross_entropy_kernel<T, kCache>;
  if (shared_bytes > 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(p.rows), kThreads, shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(const CrossEntropy& p, cudaStream_t stream) {
  int room = 0;
  const cudaError_t error = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &room);
  if (error != cudaSuccess) return error;
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int64_t kSlack = 1024;  // static shared memory of the reduction
    const int64_t bytes = (ceil_div<int64_t>(p.vocab, kFullPack<T>) + 1) *
                          static_cast<int64_t>(sizeof(Pack<T, kFullPack<T>>));
    if (!p.grad || bytes + kSlack > room) return launch_rows<T, false>(p, 0, stream);
    return launch_rows<T, true>(p, static_cast<int>(bytes), stream);
  });
}

}  // namespace stablemask::ops::cuda
