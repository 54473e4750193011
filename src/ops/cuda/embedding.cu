// Gradient of an embedding: dw[ids[n]] += dy[n], in a fixed order without atomics.
//
// The ids come sorted, so that all tokens of one id form a run. Parallelisation: a block adds up
// kChunk consecutive sorted tokens, one thread per pack of columns. A run that lies within its
// chunk goes straight into dw. A run that crosses a border leaves one partial sum per chunk: slot 0
// if it came in from the chunk before, slot 1 if it begins here. A second kernel lets the chunk
// where such a run begins collect its partial sums in order. Memory traffic: dy once in, the
// touched rows of dw in and out, two rows of scratch at most per chunk.
#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kChunk = EmbeddingBackward::kChunk;

template <int kVec>
__device__ __forceinline__ void add_to(float* row, const float (&x)[kVec]) {
  Pack<float, kVec> sum = load<kVec>(row);
#pragma unroll
  for (int k = 0; k < kVec; ++k) sum.data[k] += x[k];
  store<kVec>(row, sum);
}

template <typename T, int kVec>
__global__ void embedding_chunks_kernel(const EmbeddingBackward p) {
  __shared__ int32_t ids[kChunk + 2];  // the chunk's, with one neighbour on each side
  __shared__ int64_t rows[kChunk];
  const int64_t first = int64_t{blockIdx.x} * kChunk;
  const int count = static_cast<int>(min(int64_t{kChunk}, p.tokens - first));
  for (int i = threadIdx.x; i < count + 2; i += blockDim.x) {
    const int64_t n = first + i - 1;
    ids[i] = n >= 0 && n < p.tokens ? p.sorted_ids[n] : -1;
    if (i < count) rows[i] = p.order[first + i];
  }
  __syncthreads();
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (column >= p.cols) return;

  float* partials = p.partials + int64_t{blockIdx.x} * 2 * p.cols + column;
  bool came_in = ids[0] == ids[1];
  float sum[kVec] = {};
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const auto dy = load<kVec>(static_cast<const T*>(p.dy) + rows[i] * p.cols + column);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] += to_float(dy.data[k]);
    const int32_t id = ids[i + 1];
    const bool goes_on = id == ids[i + 2];
    if (goes_on && i + 1 < count) continue;
    if (came_in || goes_on) {
      store<kVec>(partials + (came_in ? 0 : p.cols), pack<float>(sum));
    } else if (id >= 0 && id < p.vocab) {
      add_to(p.dw + id * p.cols + column, sum);
    }
    came_in = false;
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] = 0.0f;
  }
}

template <int kVec>
__global__ void embedding_runs_kernel(const EmbeddingBackward p) {
  const int64_t end = (int64_t{blockIdx.x} + 1) * kChunk;  // the border this block looks at
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (end >= p.tokens || column >= p.cols) return;
  const int32_t id = p.sorted_ids[end - 1];
  const bool crosses = p.sorted_ids[end] == id;
  const bool begins_here = end == kChunk || p.sorted_ids[end - kChunk - 1] != id;
  if (!crosses || !begins_here || id < 0 || id >= p.vocab) return;

  const float* partials = p.partials + column;
  const auto begun = load<kVec>(partials + (2 * int64_t{blockIdx.x} + 1) * p.cols);
  float sum[kVec];
#pragma unroll
  for (int k = 0; k < kVec; ++k) sum[k] = begun.data[k];
  for (int64_t at = end; at < p.tokens && p.sorted_ids[at] == id; at += kChunk) {
    const auto next = load<kVec>(partials + at / kChunk * 2 * p.cols);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] += next.data[k];
  }
  add_to(p.dw + id * p.cols + column, sum);
}

}  // namespace

cudaError_t launch(const EmbeddingBackward& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool whole = aligned(p.dy, p.dw, p.partials) && p.cols % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      constexpr int kVec = decltype(vec)::value;
      const int64_t packs = p.cols / kVec;
      const int threads = block_size(packs, 256);
      const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.tokens, kChunk)),
                      static_cast<unsigned>(ceil_div<int64_t>(packs, threads)));
      embedding_chunks_kernel<T, kVec><<<grid, threads, 0, stream>>>(p);
      const cudaError_t error = cudaGetLastError();
      if (error != cudaSuccess) return error;
      embedding_runs_kernel<kVec><<<grid, threads, 0, stream>>>(p);
      return cudaGetLastError();
    });
  });
}

}  // namespace stablemask::ops::cuda
