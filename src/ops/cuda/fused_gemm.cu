// GEMMs with a fused epilogue: SwiGLU on the up-projection of the feed-forward layer, the SwiGLU
// gradient on the input gradient of the down-projection, rotary embedding on the attention
// projection; and products of matrices with their transposes, of which only the upper triangle is
// computed. The mainloop is in fused_gemm.cuh, the epilogues are here. They take the GEMM's
// result rounded to bf16 and use the formulas of the separate kernels (swiglu.cu, rope.cu).
//
// Memory traffic beside the operands, in elements per element of the GEMM's result: SwiGLU writes
// 1.5, its gradient reads 2 and writes 2, rotary embedding writes 1; all overlap with the mainloop.
#include "src/ops/cuda/fused_gemm.h"

#include "src/ops/cuda/fp8.cuh"
#include "src/ops/cuda/fused_gemm_launch.cuh"
#include "src/ops/cuda/swiglu.cuh"

namespace stablemask::ops::cuda {
namespace {

using namespace fused_gemm;

/// Calls f(index, gate, up) on the pairs of one half of the warp's two buffers and writes the
/// changed pairs back. Processes a few fragments at a time to leave the registers to the
/// accumulators.
template <int half, typename F>
__device__ __forceinline__ void for_each_pair(const WarpScratch& scratch, const F& f) {
#pragma unroll
  for (int j = 4 * half; j < 4 * half + 4; j += 2) {
    uint32_t gate[4], up[4];
    load_fragments(gate, fragment(scratch.buffer(0), j));
    load_fragments(up, fragment(scratch.buffer(1), j));
#pragma unroll
    for (int i = 0; i < 4; ++i) f(2 * j + i, gate[i], up[i]);
    store_fragments(fragment(scratch.buffer(0), j), gate);
    store_fragments(fragment(scratch.buffer(1), j), up);
  }
}

/// silu(gate)·up of two gates and ups.
__device__ __forceinline__ uint32_t gated(uint32_t gates, uint32_t ups) {
  const float2 g = unpack2(gates), u = unpack2(ups);
  return pack2(swiglu_of<bf16>(g.x, u.x), swiglu_of<bf16>(g.y, u.y));
}

/// Stores gate and up, the halves of the tile's columns, and silu(gate)·up.
struct SwigluEpilogue {
  using LaneState = NoState;
  static constexpr bool kFp8 = false;
  static constexpr int kColumns = 128;
  static constexpr bool kMnMajorB = false, kOwnTiles = false;
  /// Per 64 columns: store gate and up, then compute two halves of the output.
  static constexpr int kSlices = 6;
  CUtensorMap gate, up, out;

  __device__ void begin(const WarpScratch&, LaneState&, TileOrigin) const {}

  template <int slice>
  __device__ void run(const ResultTile& tile, TileOrigin at, const WarpScratch& scratch, LaneState&,
                      const TileOrigin*) const {
    constexpr int kHalf = slice / 3, kStep = slice % 3;
    const int column = at.column + 64 * kHalf;
    if constexpr (kStep == 0) {
      wait_for_stores<0>();
      fill_buffer(scratch.buffer(0), [&](int i) { return tile.pairs[16 * kHalf + i]; });
      fill_buffer(scratch.buffer(1), [&](int i) { return tile.pairs[32 + 16 * kHalf + i]; });
      store_buffers([&] {
        tma_store(gate, column, at.row, scratch.buffer(0));
        tma_store(up, column, at.row, scratch.buffer(1));
      });
    } else {
      if constexpr (kStep == 1) wait_for_stores<0>();
      for_each_pair<kStep - 1>(
          scratch, [](int, uint32_t& gates, uint32_t& ups) { gates = gated(gates, ups); });
      if constexpr (kStep == 2) {
        store_buffers([&] { tma_store(out, column, at.row, scratch.buffer(0)); });
      }
    }
  }
};

/// As SwigluEpilogue, but silu(gate)·up is quantised: its FP8 numbers and the transposed twin.
struct SwigluFp8Epilogue {
  /// Numbers of the first half of 64 columns, per 8 columns: two of row l/4 and two of row l/4 + 8.
  struct LaneState {
    uint32_t first[4];
    uint32_t bits;  ///< of the largest size
    float scale;
  };
  static constexpr bool kFp8 = true;
  static constexpr int kColumns = 128;
  static constexpr bool kMnMajorB = false, kOwnTiles = false;
  static constexpr int kSlices = 6;  // as SwigluEpilogue
  CUtensorMap gate, up, values, twin;
  const float* scale;
  float* maximum;

  __device__ void begin(const WarpScratch&, LaneState& state, TileOrigin) const {
    state.bits = 0;
    state.scale = *scale;
  }

  template <int slice>
  __device__ void run(const ResultTile& tile, TileOrigin at, const WarpScratch& scratch,
                      LaneState& state, const TileOrigin*) const {
    constexpr int kHalf = slice / 3, kStep = slice % 3;
    const int column = at.column + 64 * kHalf;
    if constexpr (kStep == 0) {
      wait_for_stores<0>();
      fill_buffer(scratch.buffer(0), [&](int i) { return tile.pairs[16 * kHalf + i]; });
      fill_buffer(scratch.buffer(1), [&](int i) { return tile.pairs[32 + 16 * kHalf + i]; });
      store_buffers([&] {
        tma_store(gate, column, at.row, scratch.buffer(0));
        tma_store(up, column, at.row, scratch.buffer(1));
      });
    } else if constexpr (kStep == 1) {
      quantize<0>(state.first, scratch, state);
    } else {
      uint32_t second[4];
      quantize<1>(second, scratch, state);
      wait_for_stores<0>();  // of gate and up; and every lane has read them
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const uint32_t numbers = j < 4 ? state.first[j] : second[j - 4];
        store_fp8_fragment(scratch.buffer(0), j, numbers);
        store_fp8_transposed(scratch.buffer(1), j, numbers);
      }
      store_buffers([&] {
        tma_store(values, column, at.row, scratch.buffer(0));
        tma_store(twin, at.row, column, scratch.buffer(1));
      });
      if constexpr (kHalf == 1) raise_maximum(maximum, state.bits);
    }
  }

  /// silu(gate)·up of 32 columns of the buffers, in FP8.
  template <int half>
  __device__ static void quantize(uint32_t (&numbers)[4], const WarpScratch& scratch,
                                  LaneState& state) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t gates[4], ups[4], halves[4];
      load_fragments(gates, fragment(scratch.buffer(0), 4 * half + j));
      load_fragments(ups, fragment(scratch.buffer(1), 4 * half + j));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2(gated(gates[i], ups[i]));
        halves[i] = to_fp8_pair(pair, state.scale, __NV_E4M3, state.bits);
      }
      numbers[j] = halves[0] | halves[1] << 16;
      numbers[j + 1] = halves[2] | halves[3] << 16;
    }
  }
};

/// The tile is the gradient of silu(gate)·up; reads gate and up, stores their gradients and, with
/// kOutput, silu(gate)·up.
template <bool kOutput>
struct SwigluGradEpilogue {
  using LaneState = NoState;
  static constexpr bool kFp8 = false;
  static constexpr int kColumns = 256;
  static constexpr bool kMnMajorB = true, kOwnTiles = false;
  /// Per 64 columns: compute, store the output, load the next.
  static constexpr int kSteps = kOutput ? 3 : 2, kSlices = 4 * kSteps;
  CUtensorMap gate, up, dgate, dup, out;

  __device__ void begin(const WarpScratch& scratch, LaneState&, TileOrigin at) const {
    load_gate_up(scratch, at, 0);
  }

  template <int slice>
  __device__ void run(ResultTile& tile, TileOrigin at, const WarpScratch& scratch, LaneState&,
                      const TileOrigin* next) const {
    constexpr int kPart = slice / kSteps, kStep = slice % kSteps;
    if constexpr (kStep == 0) {
      barrier_wait(scratch.barrier, kPart % 2);
      const auto f = [&](int i, uint32_t& gates, uint32_t& ups) {
        uint32_t& pair = tile.pairs[16 * kPart + i];
        const uint32_t dout = pair;
        if constexpr (kOutput) pair = gated(gates, ups);
        gradient(dout, gates, ups);
      };
      for_each_pair<0>(scratch, f);
      for_each_pair<1>(scratch, f);
      store_buffers([&] {
        tma_store(dgate, at.column + 64 * kPart, at.row, scratch.buffer(0));
        tma_store(dup, at.column + 64 * kPart, at.row, scratch.buffer(1));
      });
    } else if constexpr (kOutput && kStep == 1) {
      wait_for_stores<0>();
      fill_buffer(scratch.buffer(0), [&](int i) { return tile.pairs[16 * kPart + i]; });
      store_buffers([&] { tma_store(out, at.column + 64 * kPart, at.row, scratch.buffer(0)); });
    } else if constexpr (kPart < 3) {
      load_gate_up(scratch, at, kPart + 1);
    } else if (next != nullptr) {
      load_gate_up(scratch, *next, 0);
    }
  }

  /// Loads gate and up of 64 columns into the warp's buffers after their last store has read them.
  __device__ void load_gate_up(const WarpScratch& scratch, TileOrigin at, int part) const {
    if (!first_lane()) return;
    tma_store_wait_read<0>();
    barrier_arrive_expect_bytes(scratch.barrier, 2 * kBufferBytes);
    tma_load<true>(scratch.buffer(0), gate, at.column + 64 * part, at.row, scratch.barrier);
    tma_load<true>(scratch.buffer(1), up, at.column + 64 * part, at.row, scratch.barrier);
  }

  /// Replaces two gates and ups by their gradients.
  __device__ static void gradient(uint32_t dout_pair, uint32_t& gate_pair, uint32_t& up_pair) {
    const float2 d = unpack2(dout_pair), g = unpack2(gate_pair), u = unpack2(up_pair);
    const SwigluGradient x = swiglu_gradient_of<bf16>(d.x, g.x, u.x);
    const SwigluGradient y = swiglu_gradient_of<bf16>(d.y, g.y, u.y);
    gate_pair = pack2(x.gate, y.gate);
    up_pair = pack2(x.up, y.up);
  }
};

/// Rotates the heads of the first `rotated` columns, then stores the tile.
template <int kHeadDim, bool kOfFp8>
struct RopeEpilogue {
  /// Offsets in the table of the angles of the lane's two rows; −1: the position is not in the
  /// table.
  struct LaneState {
    int64_t angles[2];
  };
  static constexpr bool kFp8 = kOfFp8;
  static constexpr int kColumns = 256;
  static constexpr bool kMnMajorB = false, kOwnTiles = false;
  /// Four rotate a quarter of each head's angles, four store 64 columns.
  static constexpr int kSlices = 8;
  CUtensorMap out;
  const int64_t* positions;
  const float* table;
  int64_t position_period, table_rows;
  int tokens, rotated;

  __device__ void begin(const WarpScratch&, LaneState& state, TileOrigin at) const {
    look_up(state, at);
  }

  template <int slice>
  __device__ void run(ResultTile& tile, TileOrigin at, const WarpScratch& scratch, LaneState& state,
                      const TileOrigin* next) const {
    if constexpr (slice < 4) {
      if (at.column < rotated) rotate<slice>(tile, at, state);
    } else {
      constexpr int kPart = slice - 4;
      const uint32_t buffer = scratch.buffer(kPart % 2);
      wait_for_stores<1>();
      fill_buffer(buffer, [&](int i) { return tile.pairs[16 * kPart + i]; });
      store_buffers([&] { tma_store(out, at.column + 64 * kPart, at.row, buffer); });
      if (kPart == 3 && next != nullptr) look_up(state, *next);
    }
  }

  __device__ void look_up(LaneState& state, TileOrigin at) const {
#pragma unroll
    for (int second = 0; second < 2; ++second) {  // row + 8
      const int row = at.row + threadIdx.x % 32 / 4 + 8 * second;
      const int64_t position = row < tokens ? positions[row % position_period] : 0;
      const bool known = position >= 0 && position < table_rows;
      state.angles[second] = known ? position * kHeadDim : -1;
    }
  }

  template <int quarter>
  __device__ void rotate(ResultTile& tile, TileOrigin at, const LaneState& state) const {
    constexpr int kGroups = kHeadDim / 64;  // of 8 angles
    float2 cosines[2][kGroups], sines[2][kGroups];
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const bool known = state.angles[second] >= 0;
      const float* angles = table + (known ? state.angles[second] : 0) + threadIdx.x % 4 * 2;
      const float sign = known ? 1.0f : __int_as_float(0x7fc00000);
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int m = 8 * (quarter * kGroups + i);
        cosines[second][i] = *reinterpret_cast<const float2*>(angles + m);
        const float2 sine = *reinterpret_cast<const float2*>(angles + kHeadDim / 2 + m);
        sines[second][i] = {sign * sine.x, sign * sine.y};
      }
    }
#pragma unroll
    for (int head = 0; head < kTileColumns / kHeadDim; ++head) {
      if (at.column + head * kHeadDim >= rotated) break;
#pragma unroll
      for (int i = 0; i < 2 * kGroups; ++i) {
        const int group = head * kHeadDim / 8 + quarter * kGroups + i / 2;
        uint32_t& x = tile.pairs[2 * group + i % 2];
        turn(x, tile.pairs[2 * group + i % 2 + kHeadDim / 8], cosines[i % 2][i / 2],
             sines[i % 2][i / 2]);
      }
    }
  }

  __device__ static void turn(uint32_t& x_pair, uint32_t& y_pair, float2 cosine, float2 sine) {
    const float2 x = unpack2(x_pair), y = unpack2(y_pair);
    x_pair = pack2(x.x * cosine.x - y.x * sine.x, x.y * cosine.y - y.y * sine.y);
    y_pair = pack2(y.x * cosine.x + x.x * sine.x, y.y * cosine.y + x.y * sine.y);
  }
};

/// Stores a tile of the upper triangle of symmetric matrices and its mirror image below the
/// diagonal. The product is taken as that of all matrices' rows with all of them, of which the
/// tiles inside one matrix are computed.
struct SymmetricEpilogue {
  using LaneState = NoState;
  static constexpr bool kFp8 = false;
  static constexpr int kColumns = 256;
  static constexpr bool kMnMajorB = false, kOwnTiles = true;
  /// Four store 64 columns each, four their mirror images.
  static constexpr int kSlices = 8;
  CUtensorMap out;
  bf16* data;
  int rows;  ///< of a matrix, a multiple of kColumns
  float factor, diagonal;

  /// Tiles of a matrix: the upper triangle row by row.
  __host__ __device__ static int tiles_of(int rows) {
    const int side = rows / kColumns;
    return side * (side + 1) / 2;
  }

  __device__ TileOrigin tile_at(int tile, int rank) const {
    const int first = tile / tiles_of(rows) * rows;
    int row = 0, column = tile % tiles_of(rows);
    for (int width = rows / kColumns; column >= width; --width) column -= width, ++row;
    return {first + row * kColumns + rank * kTileRows, first + (row + column) * kColumns};
  }

  __device__ void finish(float (&sums)[128], TileOrigin at) const {
    const int lane = threadIdx.x % 32;
    const bool meets_diagonal = at.row / kColumns == at.column / kColumns;
    const int row = at.row - at.column + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 128; ++i) {
      sums[i] *= factor;
      const bool is_diagonal = row + i / 2 % 2 * 8 == column + i / 4 * 8 + i % 2;
      if (meets_diagonal && is_diagonal) sums[i] += diagonal;
    }
  }

  __device__ void begin(const WarpScratch&, LaneState&, TileOrigin) const {}

  template <int slice>
  __device__ void run(const ResultTile& tile, TileOrigin at, const WarpScratch& scratch, LaneState&,
                      const TileOrigin*) const {
    const int first = at.row / rows * rows;
    if constexpr (slice < 4) {
      const uint32_t buffer = scratch.buffer(slice % 2);
      wait_for_stores<1>();
      fill_buffer(buffer, [&](int i) { return tile.pairs[16 * slice + i]; });
      store_buffers([&] { tma_store(out, at.column - first + 64 * slice, at.row, buffer); });
    } else if (at.row / kColumns != at.column / kColumns) {
      constexpr int kPart = slice - 4;
      const int lane = threadIdx.x % 32;
      bf16* const to =
          data + int64_t{at.column + 64 * kPart + lane / 4} * rows + at.row - first + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const uint32_t turned = transposed_fragment(tile.pairs[16 * kPart + i]);
        *reinterpret_cast<uint32_t*>(to + int64_t{i / 2 * 8} * rows + i % 2 * 8) = turned;
      }
    }
  }
};

template <int kHeadDim, bool kOfFp8>
cudaError_t launch_rope(const RopeProjection& p, cudaStream_t stream) {
  GemmParams<RopeEpilogue<kHeadDim, kOfFp8>> gemm{};
  const int64_t columns = int64_t{p.packed_heads} * kHeadDim;
  if (!encode_tensor_map(&gemm.epilogue.out, p.packed, p.tokens, columns, columns, kWarpRows)) {
    return cudaErrorInvalidValue;
  }
  gemm.a_inverse = p.x_inverse;
  gemm.b_inverse = p.weight_inverse;
  gemm.epilogue.positions = p.positions;
  gemm.epilogue.table = p.table;
  gemm.epilogue.position_period = p.position_period;
  gemm.epilogue.table_rows = p.table_rows;
  gemm.epilogue.tokens = static_cast<int>(p.tokens);
  gemm.epilogue.rotated = p.heads * kHeadDim;
  return launch_gemm(gemm, {p.tokens, columns, /*mn_major=*/false}, p.first, p.second, stream);
}

template <int kHeadDim>
cudaError_t launch_rope(const RopeProjection& p, cudaStream_t stream) {
  return p.x_inverse != nullptr ? launch_rope<kHeadDim, true>(p, stream)
                                : launch_rope<kHeadDim, false>(p, stream);
}

/// Maps a [rows, 2·features] matrix as its two halves.
bool encode_halves(CUtensorMap* gate, CUtensorMap* up, const void* matrix, int64_t rows,
                   int64_t features) {
  const auto* first = static_cast<const bf16*>(matrix);
  return encode_tensor_map(gate, first, rows, features, 2 * features, kWarpRows) &&
         encode_tensor_map(up, first + features, rows, features, 2 * features, kWarpRows);
}

template <bool kOutput>
cudaError_t launch_backward(const SwigluProjectionBackward& p, cudaStream_t stream) {
  GemmParams<SwigluGradEpilogue<kOutput>> gemm{};
  auto& [gate, up, dgate, dup, out] = gemm.epilogue;
  const int64_t f = p.features;
  if (!encode_halves(&gate, &up, p.gate_up, p.rows, f) ||
      !encode_halves(&dgate, &dup, p.dgate_up, p.rows, f) ||
      (kOutput && !encode_tensor_map(&out, p.out, p.rows, f, f, kWarpRows))) {
    return cudaErrorInvalidValue;
  }
  return launch_gemm(gemm, {p.rows, f, /*mn_major=*/true}, p.first, p.second, stream);
}

constexpr int kSymmetricTile = SymmetricEpilogue::kColumns;

}  // namespace

bool fused_gemm_runs_here() {
#ifdef STABLEMASK_SM_90A
  int major = 0, minor = 0;
  return device_attribute(cudaDevAttrComputeCapabilityMajor, &major) == cudaSuccess &&
         device_attribute(cudaDevAttrComputeCapabilityMinor, &minor) == cudaSuccess && major == 9 &&
         minor == 0;
#else
  return false;
#endif
}

bool symmetric_product_runs_here(int64_t rows, int64_t inner) {
  return rows % kSymmetricTile == 0 && inner % 8 == 0 && fused_gemm_runs_here();
}

cudaError_t launch(const SymmetricProduct& p, cudaStream_t stream) {
  GemmParams<SymmetricEpilogue> gemm{};
  const int64_t rows = p.matrices * p.rows;
  const Factors factors{p.x, p.x, p.inner, p.inner, p.inner};
  if (p.rows % kSymmetricTile != 0 ||
      !encode_operands(gemm.first, factors, {rows, rows, /*mn_major=*/false}, kBf16Map) ||
      !encode_tensor_map(&gemm.epilogue.out, p.out, rows, p.rows, p.rows, kWarpRows)) {
    return cudaErrorInvalidValue;
  }
  gemm.epilogue.data = static_cast<bf16*>(p.out);
  gemm.epilogue.rows = static_cast<int>(p.rows);
  gemm.epilogue.factor = p.factor;
  gemm.epilogue.diagonal = p.diagonal;
  gemm.row_tiles = static_cast<int>(p.matrices) * SymmetricEpilogue::tiles_of(gemm.epilogue.rows);
  gemm.column_tiles = 1;
  gemm.k_blocks = gemm.first_k_blocks = static_cast<int>(ceil_div<int64_t>(p.inner, kBlockK));
  return launch_tiles(gemm, stream);
}

cudaError_t launch(const SwigluProjection& p, cudaStream_t stream) {
  GemmParams<SwigluEpilogue> gemm{};
  const int64_t f = p.features;
  if (!encode_halves(&gemm.epilogue.gate, &gemm.epilogue.up, p.gate_up, p.rows, f) ||
      !encode_tensor_map(&gemm.epilogue.out, p.out, p.rows, f, f, kWarpRows)) {
    return cudaErrorInvalidValue;
  }
  const GemmShape shape{p.rows, f, /*mn_major=*/false, /*halves=*/true};
  return launch_gemm(gemm, shape, p.first, p.second, stream);
}

cudaError_t launch(const SwigluFp8Projection& p, cudaStream_t stream) {
  GemmParams<SwigluFp8Epilogue> gemm{};
  const int64_t f = p.features;
  if (!encode_halves(&gemm.epilogue.gate, &gemm.epilogue.up, p.gate_up, p.rows, f) ||
      !encode_tensor_map(&gemm.epilogue.values, p.values, p.rows, f, f, kWarpRows, kFp8ValuesMap) ||
      !encode_tensor_map(&gemm.epilogue.twin, p.twin, f, p.rows, p.rows, 64, kFp8TwinMap)) {
    return cudaErrorInvalidValue;
  }
  gemm.a_inverse = p.x_inverse;
  gemm.b_inverse = p.weight_inverse;
  gemm.epilogue.scale = p.scale;
  gemm.epilogue.maximum = p.maximum;
  const GemmShape shape{p.rows, f, /*mn_major=*/false, /*halves=*/true};
  return launch_gemm(gemm, shape, p.factors, {}, stream);
}

cudaError_t launch(const SwigluProjectionBackward& p, cudaStream_t stream) {
  return p.out == nullptr ? launch_backward<false>(p, stream) : launch_backward<true>(p, stream);
}

cudaError_t launch(const RopeProjection& p, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64:
      return launch_rope<64>(p, stream);
    case 128:
      return launch_rope<128>(p, stream);
    case 256:
      return launch_rope<256>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stablemask::ops::cuda
