// Quantisation to FP8 with the transposed twin:  values = clip(x · scale), twin = valuesᵀ.
//
// Parallelisation: a block takes tiles of 128 x 128 numbers, one for each output of its Source. A
// thread computes 16 neighbouring numbers of a row at a time, stores their 16 bytes and keeps them
// in shared memory; then it reads 16 rows of four columns from there, transposes them in registers
// and stores 16 bytes of four rows of the twin: eight lanes write 128 bytes of each. Chunks of 16
// columns are permuted by the tile's 16-row group, so that neither access has bank conflicts.
// Memory traffic: every input once, one byte per number and output.
#include "src/ops/cuda/quantize.h"

#include "src/ops/cuda/common.cuh"
#include "src/ops/cuda/fp8.cuh"
#include "src/ops/cuda/swiglu.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kTile = 128;  // rows and columns of a tile
constexpr int kChunk = 16;  // numbers of a 16-byte access
constexpr int kGroups = kTile / kChunk;
constexpr int kThreads = 256;
constexpr int kRowsAtOnce = kThreads / kGroups;

/// 16 numbers of a row.
struct Chunk {
  float x[kChunk];
};

template <typename T>
__device__ __forceinline__ Chunk load_chunk(const T* from) {
  Chunk chunk;
#pragma unroll
  for (int part = 0; part < kChunk / kFullPack<T>; ++part) {
    const auto numbers = load<kFullPack<T>>(from + part * kFullPack<T>);
#pragma unroll
    for (int k = 0; k < kFullPack<T>; ++k) {
      chunk.x[part * kFullPack<T> + k] = to_float(numbers.data[k]);
    }
  }
  return chunk;
}

/// As after a store and a load in T.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// A Source computes the numbers to quantise: kOutputs chunks at (row, column) of a matrix
// [rows, columns], of which output i belongs to column + i · columns of the result.

template <typename T>
struct PlainSource {
  static constexpr int kOutputs = 1;
  const T* x;
  int64_t rows, columns;

  __device__ void load(int64_t row, int64_t column, Chunk (&out)[1]) const {
    out[0] = load_chunk(x + row * columns + column);
  }
};

template <typename T, typename W>
struct RmsNormSource {
  static constexpr int kOutputs = 1;
  const T* x;
  const W* weight;
  const float* rstd;
  int64_t rows, columns;

  __device__ void load(int64_t row, int64_t column, Chunk (&out)[1]) const {
    const Chunk numbers = load_chunk(x + row * columns + column);
    const Chunk weights = load_chunk(weight + column);
    const float factor = rstd[row];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      out[0].x[k] = rounded<T>(numbers.x[k] * factor * weights.x[k]);
    }
  }
};

template <typename T>
struct SwigluSource {
  static constexpr int kOutputs = 1;
  const T* gate_up;
  int64_t rows, columns;

  __device__ void load(int64_t row, int64_t column, Chunk (&out)[1]) const {
    const T* at = gate_up + row * 2 * columns + column;
    const Chunk gate = load_chunk(at), up = load_chunk(at + columns);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) out[0].x[k] = rounded<T>(swiglu_of<T>(gate.x[k], up.x[k]));
  }
};

template <typename T>
struct SwigluBackwardSource {
  static constexpr int kOutputs = 2;
  const T* dout;
  const T* gate_up;
  int64_t rows, columns;

  __device__ void load(int64_t row, int64_t column, Chunk (&out)[2]) const {
    const T* at = gate_up + row * 2 * columns + column;
    const Chunk gate = load_chunk(at), up = load_chunk(at + columns);
    const Chunk d = load_chunk(dout + row * columns + column);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const SwigluGradient gradient = swiglu_gradient_of<T>(d.x[k], gate.x[k], up.x[k]);
      out[0].x[k] = rounded<T>(gradient.gate);
      out[1].x[k] = rounded<T>(gradient.up);
    }
  }
};

template <typename T>
struct RopeBackwardSource {
  static constexpr int kOutputs = 1;
  Rope rope;
  int64_t rows, columns;

  __device__ void load(int64_t row, int64_t column, Chunk (&out)[1]) const {
    const T* at = static_cast<const T*>(rope.packed) + row * columns + column;
    out[0] = load_chunk(at);
    const int head = static_cast<int>(column) / rope.head_dim;
    const int m = static_cast<int>(column) - head * rope.head_dim, half = rope.dims / 2;
    if (head >= rope.heads || m >= rope.dims) return;
    const bool first = m < half;
    const Chunk other = load_chunk(first ? at + half : at - half);
    const int64_t position = rope.positions[row % rope.position_period];
    const bool known = position >= 0 && position < rope.table_rows;
    const float* angles = rope.table + (known ? position : 0) * rope.dims + (first ? m : m - half);
    const Chunk cosine = load_chunk(angles), sine = load_chunk(angles + half);
    const float sign = known ? -1.0f : __int_as_float(0x7fc00000);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float s = sign * sine.x[k];
      const float x = first ? out[0].x[k] * cosine.x[k] - other.x[k] * s
                            : out[0].x[k] * cosine.x[k] + other.x[k] * s;
      out[0].x[k] = rounded<T>(x);
    }
  }
};

/// 16 numbers as FP8; `bits` as of to_fp8_pair.
__device__ __forceinline__ uint4 to_fp8(const Chunk& chunk, float scale, bool e5m2,
                                        uint32_t& bits) {
  const auto format = e5m2 ? __NV_E5M2 : __NV_E4M3;
  uint32_t words[4];
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const float* x = chunk.x + 4 * word;
    const uint32_t low = to_fp8_pair({x[0], x[1]}, scale, format, bits);
    words[word] = low | to_fp8_pair({x[2], x[3]}, scale, format, bits) << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

/// Four columns of 16 rows, one word per row, become four rows of 16 numbers.
__device__ __forceinline__ void transpose_words(const uint32_t (&rows)[16], uint32_t (&out)[4][4]) {
#pragma unroll
  for (int quarter = 0; quarter < 4; ++quarter) {
    const uint32_t* r = rows + 4 * quarter;
    const uint32_t low01 = __byte_perm(r[0], r[1], 0x5140),
                   high01 = __byte_perm(r[0], r[1], 0x7362);
    const uint32_t low23 = __byte_perm(r[2], r[3], 0x5140),
                   high23 = __byte_perm(r[2], r[3], 0x7362);
    out[0][quarter] = __byte_perm(low01, low23, 0x5410);
    out[1][quarter] = __byte_perm(low01, low23, 0x7632);
    out[2][quarter] = __byte_perm(high01, high23, 0x5410);
    out[3][quarter] = __byte_perm(high01, high23, 0x7632);
  }
}

/// Where chunk `group` of a tile's row lies in shared memory, in units of 16 bytes.
__device__ __forceinline__ int place_of(int row, int group) {
  return row * kGroups + (group ^ (row / kChunk));
}

/// Writes the tile's part of the twin, whose first row is the tile's first column.
__device__ __forceinline__ void store_twin(const uint4* tile, uint8_t* twin, int64_t rows,
                                           int64_t columns, int64_t first_row,
                                           int64_t first_column) {
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
  const int row_group = lane % kGroups, quad = lane / kGroups;
  const int64_t column = first_column + group * kChunk + quad * 4;
  const int64_t row = first_row + row_group * kChunk;
  if (row >= rows || column >= columns) return;
  uint32_t words[16], turned[4][4];
#pragma unroll
  for (int k = 0; k < 16; ++k) {
    words[k] =
        reinterpret_cast<const uint32_t*>(tile + place_of(row_group * kChunk + k, group))[quad];
  }
  transpose_words(words, turned);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    *reinterpret_cast<uint4*>(twin + (column + k) * rows + row) = {turned[k][0], turned[k][1],
                                                                   turned[k][2], turned[k][3]};
  }
}

template <typename Source>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const Source source, const QuantizeTo to) {
  constexpr int kOutputs = Source::kOutputs;
  __shared__ uint4 tiles[kOutputs][kTile * kGroups];
  const int64_t first_row = int64_t{blockIdx.y} * kTile, first_column = int64_t{blockIdx.x} * kTile;
  const int group = threadIdx.x % kGroups;
  const int64_t column = first_column + group * kChunk;
  const float scale = *to.scale;
  auto* values = static_cast<uint8_t*>(to.values);
  auto* twin = static_cast<uint8_t*>(to.twin);
  uint32_t bits = 0;
#pragma unroll
  for (int turn = 0; turn < kTile / kRowsAtOnce; ++turn) {
    const int local = static_cast<int>(threadIdx.x) / kGroups + turn * kRowsAtOnce;
    const int64_t row = first_row + local;
    if (row >= source.rows || column >= source.columns) continue;
    Chunk chunks[kOutputs];
    source.load(row, column, chunks);
#pragma unroll
    for (int output = 0; output < kOutputs; ++output) {
      const uint4 packed = to_fp8(chunks[output], scale, to.e5m2, bits);
      if (values != nullptr) {
        const int64_t at = (row * kOutputs + output) * source.columns + column;
        *reinterpret_cast<uint4*>(values + at) = packed;
      }
      tiles[output][place_of(local, group)] = packed;
    }
  }
  if (twin != nullptr) {
    __syncthreads();
#pragma unroll
    for (int output = 0; output < kOutputs; ++output) {
      store_twin(tiles[output], twin + output * source.columns * source.rows, source.rows,
                 source.columns, first_row, first_column);
    }
  }
  raise_maximum(to.maximum, bits);
}

template <typename Source>
cudaError_t launch_tiles(const Source& source, const QuantizeTo& to, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(source.columns, kTile)),
                  static_cast<unsigned>(ceil_div<int64_t>(source.rows, kTile)));
  quantize_kernel<<<grid, kThreads, 0, stream>>>(source, to);
  return cudaGetLastError();
}

/// As fp8::plain::scales_for.
__device__ float scale_for(float maximum, float limit) {
  constexpr int kExponents = 60;
  int maximum_exponent = 0, limit_exponent = 0;
  const float maximum_part = frexpf(maximum, &maximum_exponent);
  const float limit_part = frexpf(limit, &limit_exponent);
  const int exponent = limit_exponent - maximum_exponent - (maximum_part > limit_part ? 1 : 0);
  return __int_as_float((min(max(exponent, -kExponents), kExponents) + 127) << 23);
}

__global__ void update_scales_kernel(const UpdateScales p) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const float maximum = p.maxima[i];
  p.maxima[i] = 0.0f;
  if (!(maximum > 0.0f) || isinf(maximum)) return;
  if (maximum * p.scales[i] > p.limits[i]) ++p.saturations[i];
  float* history = p.history + i * p.length;
  float highest = maximum;
  for (int64_t k = p.length - 1; k > 0; --k) {
    history[k] = history[k - 1];
    highest = fmaxf(highest, history[k]);
  }
  history[0] = maximum;
  const float scale = scale_for(highest * p.margin, p.limits[i]);
  p.scales[i] = scale;
  p.inverses[i * p.inverse_stride] = 1.0f / scale;
}

}  // namespace

cudaError_t launch(const Quantize& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch_tiles(PlainSource<T>{static_cast<const T*>(p.x), p.rows, p.columns}, p.to,
                        stream);
  });
}

cudaError_t launch(const QuantizeRmsNorm& p, cudaStream_t stream) {
  return with_types(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using T = typename decltype(type)::type;
    using W = typename decltype(weight_type)::type;
    return launch_tiles(
        RmsNormSource<T, W>{static_cast<const T*>(p.x), static_cast<const W*>(p.weight), p.rstd,
                            p.rows, p.columns},
        p.to, stream);
  });
}

cudaError_t launch(const QuantizeSwiglu& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch_tiles(SwigluSource<T>{static_cast<const T*>(p.gate_up), p.rows, p.features}, p.to,
                        stream);
  });
}

cudaError_t launch(const QuantizeSwigluBackward& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch_tiles(
        SwigluBackwardSource<T>{static_cast<const T*>(p.dout), static_cast<const T*>(p.gate_up),
                                p.rows, p.features},
        p.to, stream);
  });
}

cudaError_t launch(const QuantizeRopeBackward& p, cudaStream_t stream) {
  return with_type(p.rope.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t columns = int64_t{p.rope.packed_heads} * p.rope.head_dim;
    return launch_tiles(RopeBackwardSource<T>{p.rope, p.rope.tokens, columns}, p.to, stream);
  });
}

cudaError_t launch(const UpdateScales& p, cudaStream_t stream) {
  constexpr int kBlock = 64;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.count, kBlock));
  update_scales_kernel<<<blocks, kBlock, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace stablemask::ops::cuda
