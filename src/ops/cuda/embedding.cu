// Gradient of an embedding: dw[ids[n]] += dy[n], in a fixed order without atomics.
//
// The tokens are sorted by id (stable radix sort on the bits that the vocabulary needs), so that
// all tokens of one id form a run. Parallelisation: a block sums kChunk consecutive sorted tokens,
// one thread per pack of columns. A run inside one chunk is added to dw directly. A run that
// crosses a chunk boundary leaves one partial sum per chunk: in slot 0 if it began in an earlier
// chunk, in slot 1 if it begins here. In a second kernel the chunk where such a run begins adds up
// its partial sums in order. Memory traffic: dy once in, the touched rows of dw in and out, at most
// two rows of scratch per chunk.
#include <cub/device/device_radix_sort.cuh>

#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kChunk = 32;

/// Parts of the scratch memory. Ids are sorted as 32-bit numbers; ids outside the vocabulary are
/// replaced by `vocab` and sort last.
struct Scratch {
  uint32_t* ids = nullptr;
  uint32_t* sorted_ids = nullptr;
  int32_t* rows = nullptr;
  int32_t* order = nullptr;   ///< row of dy of each sorted id
  float* partials = nullptr;  ///< [chunks, 2, cols]
  void* sort = nullptr;
  size_t sort_bytes = 0;
  size_t bytes = 0;  ///< of all parts
};

int id_bits(int64_t vocab) {
  int bits = 1;
  while (vocab >> bits != 0) ++bits;
  return bits;
}

cudaError_t sort_ids(Scratch& s, const EmbeddingBackward& p, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(s.sort, s.sort_bytes, s.ids, s.sorted_ids, s.rows, s.order,
                                         static_cast<int>(p.tokens), 0, id_bits(p.vocab), stream);
}

/// Assigns the parts to p.scratch. With a null scratch only the sizes are valid.
cudaError_t lay_out(const EmbeddingBackward& p, Scratch* s) {
  const cudaError_t error = sort_ids(*s, p, nullptr);
  const auto take = [&](auto*& part, size_t bytes) {
    auto* at = static_cast<unsigned char*>(p.scratch) + s->bytes;
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(at);
    s->bytes += ceil_div<size_t>(bytes, 256) * 256;
  };
  const auto tokens = static_cast<size_t>(p.tokens);
  const auto chunks = ceil_div<size_t>(tokens, kChunk);
  take(s->ids, tokens * sizeof(uint32_t));
  take(s->sorted_ids, tokens * sizeof(uint32_t));
  take(s->rows, tokens * sizeof(int32_t));
  take(s->order, tokens * sizeof(int32_t));
  take(s->partials, chunks * 2 * static_cast<size_t>(p.cols) * sizeof(float));
  take(s->sort, s->sort_bytes);
  return error;
}

__global__ void number_tokens_kernel(const EmbeddingBackward p, const Scratch s) {
  const int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (n >= p.tokens) return;
  const int64_t id = p.ids[n];
  s.ids[n] = static_cast<uint32_t>(id >= 0 && id < p.vocab ? id : p.vocab);
  s.rows[n] = static_cast<int32_t>(n);
}

template <int kVec>
__device__ __forceinline__ void add_to(float* row, const float (&x)[kVec]) {
  Pack<float, kVec> sum = load<kVec>(row);
#pragma unroll
  for (int k = 0; k < kVec; ++k) sum.data[k] += x[k];
  store<kVec>(row, sum);
}

template <typename T, int kVec>
__global__ void embedding_chunks_kernel(const EmbeddingBackward p, const Scratch s) {
  constexpr uint32_t kNone = 0xffffffffu;
  __shared__ uint32_t ids[kChunk + 2];  // of the chunk, and one neighbour on each side
  __shared__ int64_t rows[kChunk];
  const int64_t first = int64_t{blockIdx.x} * kChunk;
  const int count = static_cast<int>(min(int64_t{kChunk}, p.tokens - first));
  for (int i = threadIdx.x; i < count + 2; i += blockDim.x) {
    const int64_t n = first + i - 1;
    ids[i] = n >= 0 && n < p.tokens ? s.sorted_ids[n] : kNone;
    if (i < count) rows[i] = s.order[first + i];
  }
  __syncthreads();
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (column >= p.cols) return;

  float* partials = s.partials + int64_t{blockIdx.x} * 2 * p.cols + column;
  bool came_in = ids[0] == ids[1];
  float sum[kVec] = {};
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const auto dy = load<kVec>(static_cast<const T*>(p.dy) + rows[i] * p.cols + column);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] += to_float(dy.data[k]);
    const uint32_t id = ids[i + 1];
    const bool goes_on = id == ids[i + 2];
    if (goes_on && i + 1 < count) continue;
    if (came_in || goes_on) {
      store<kVec>(partials + (came_in ? 0 : p.cols), pack<float>(sum));
    } else if (id < p.vocab) {
      add_to(p.dw + int64_t{id} * p.cols + column, sum);
    }
    came_in = false;
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] = 0.0f;
  }
}

template <int kVec>
__global__ void embedding_runs_kernel(const EmbeddingBackward p, const Scratch s) {
  const int64_t end = (int64_t{blockIdx.x} + 1) * kChunk;  // boundary after this block's chunk
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (end >= p.tokens || column >= p.cols) return;
  const uint32_t id = s.sorted_ids[end - 1];
  const bool crosses = s.sorted_ids[end] == id;
  const bool begins_here = end == kChunk || s.sorted_ids[end - kChunk - 1] != id;
  if (!crosses || !begins_here || id >= p.vocab) return;

  const float* partials = s.partials + column;
  const auto begun = load<kVec>(partials + (2 * int64_t{blockIdx.x} + 1) * p.cols);
  float sum[kVec];
#pragma unroll
  for (int k = 0; k < kVec; ++k) sum[k] = begun.data[k];
  for (int64_t at = end; at < p.tokens && s.sorted_ids[at] == id; at += kChunk) {
    const auto next = load<kVec>(partials + at / kChunk * 2 * p.cols);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] += next.data[k];
  }
  add_to(p.dw + int64_t{id} * p.cols + column, sum);
}

}  // namespace

cudaError_t scratch_bytes(const EmbeddingBackward& p, size_t* bytes) {
  Scratch s;
  const cudaError_t error = lay_out(p, &s);
  *bytes = s.bytes;
  return error;
}

cudaError_t launch(const EmbeddingBackward& p, cudaStream_t stream) {
  constexpr int kThreads = 256;
  if (p.tokens > INT32_MAX || p.vocab > INT32_MAX) return cudaErrorInvalidValue;
  Scratch s;
  cudaError_t error = lay_out(p, &s);
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.tokens, kThreads));
  number_tokens_kernel<<<blocks, kThreads, 0, stream>>>(p, s);
  error = cudaGetLastError();
  if (error == cudaSuccess) error = sort_ids(s, p, stream);
  if (error != cudaSuccess) return error;
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool whole = aligned(p.dy, p.dw) && p.cols % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      constexpr int kVec = decltype(vec)::value;
      const int64_t packs = p.cols / kVec;
      const int threads = block_size(packs, kThreads);
      const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.tokens, kChunk)),
                      static_cast<unsigned>(ceil_div<int64_t>(packs, threads)));
      embedding_chunks_kernel<T, kVec><<<grid, threads, 0, stream>>>(p, s);
      const cudaError_t launched = cudaGetLastError();
      if (launched != cudaSuccess) return launched;
      embedding_runs_kernel<kVec><<<grid, threads, 0, stream>>>(p, s);
      return cudaGetLastError();
    });
  });
}

}  // namespace stablemask::ops::cuda
