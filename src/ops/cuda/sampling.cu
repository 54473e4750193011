// ops::sample: draws an id from each row of logits. Masses, keys and bins:
// src/ops/sampling_rules.h.
//
// Every step keeps a prefix of the order of likelihood, so all that is needed is the mass of a
// prefix: its first id at which the number of ids (top_k) or their mass (top_p, the draw) reaches a
// goal.
//  1. Extremes: the largest logit with its lowest id, and the smallest logit.
//  2. Histogram: number and mass of the ids in 1024 bins, equal parts of the range of logits.
//  3. For each goal: the bin in which it is reached; its ids, of which there are few, are compared
//  with
//     each other. A bin with many ids is divided again first, by logit and id.
//
// Parallelisation: a cluster of up to 8 blocks per row, each with a range of ids; what a block
// finds the others read from its shared memory. Before Hopper a row has one block. Logits are read
// again from the caches in each step.
#include "src/ops/cuda/cluster.cuh"
#include "src/ops/cuda/common.cuh"
#include "src/ops/cuda/sampling.h"
#include "src/ops/sampling_rules.h"

namespace stablemask::ops::cuda {
namespace {

namespace rules = sampling;

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kBins = 2 * kThreads;    // two a thread
constexpr int kListed = kThreads / 2;  // ids that are compared with each other, two threads each
constexpr int kLargestCluster = 8;
constexpr unsigned kAll = 0xffffffffu;

__device__ const rules::Powers device_powers;

/// Ids by their number and mass.
struct Part {
  uint64_t mass;
  uint32_t count;
  __device__ uint64_t of(bool by_count) const { return by_count ? count : mass; }
};

__device__ __forceinline__ Part operator+(const Part& a, const Part& b) {
  return {a.mass + b.mass, a.count + b.count};
}

/// A thread's two neighbouring bins and all bins before them.
struct Bins {
  Part before, in[2];
};

struct Extremes {
  uint64_t best;    ///< likelihood; kNotFinite if a logit is not finite
  uint64_t lowest;  ///< the least likelihood
};
constexpr uint64_t kNotFinite = ~uint64_t{0};

struct Choice {
  int bin;
  Part before, in;
};

struct Chosen {
  uint64_t likelihood;
  uint64_t mass;  ///< of this id and all likelier ones
};

struct Shared {
  // Of this block's ids; masses in two halves, for which there are atomic additions.
  uint32_t mass_low[kBins], mass_high[kBins], count[kBins];
  uint64_t listed[2][kListed];  // likelihoods; two lists in turn, as others still read the last one
  int listed_count[2];
  double powers[rules::Powers::kSize];
  // Of each block of the cluster.
  Extremes extremes[kLargestCluster];
  uint64_t likely[kLargestCluster];
  // Of all ids.
  uint64_t members[kListed], member_mass[kListed];
  Extremes warp_extremes[kWarps];
  uint64_t warp_likely[kWarps];
  Part warp_part[kWarps];
  Choice choice;
  Chosen chosen;
};

__device__ __forceinline__ uint64_t max_of(uint64_t a, uint64_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint64_t min_of(uint64_t a, uint64_t b) { return a < b ? a : b; }

template <typename T>
class RowSampler {
 public:
  __device__ RowSampler(const Sample& p, Shared& shared) : p_(p), shared_(shared) {
    row_ = blockIdx.x / cluster_.size();
    logits_ = static_cast<const T*>(p.logits) + row_ * p.stride;
    const int vocabulary = static_cast<int>(p.vocabulary);
    const int part = (vocabulary + cluster_.size() - 1) / cluster_.size();
    begin_ = min(cluster_.rank() * part, vocabulary);
    end_ = min(begin_ + part, vocabulary);
    penalty_ = p.repetition_penalty[row_];
    if (p.seen == nullptr) return;
    const int64_t seen_row = p.rows == nullptr ? row_ : p.rows[row_];
    if (seen_row < 0 || seen_row >= p.seen_rows) return;
    seen_ = p.seen + seen_row * p.seen_columns;
    penalizes_ = penalty_ > 0 && penalty_ != 1;
  }

  __device__ void run() {
    clear_bins();
    if (threadIdx.x < 2) shared_.listed_count[threadIdx.x] = 0;
    if (threadIdx.x < rules::Powers::kSize) {
      shared_.powers[threadIdx.x] = device_powers.of[threadIdx.x];
    }
    cluster_.arrive();  // before a block writes to another one, that one must have begun
    const Extremes extremes = find_extremes();
    const double temperature = p_.temperature[row_];
    if (extremes.best == kNotFinite) return finish(-1);
    if (!(temperature > 0)) return finish(rules::id_of(extremes.best));
    set_scale(extremes, temperature);
    const uint64_t least = rules::share_of(p_.min_p[row_], rules::kOne);
    const uint64_t likely = fill_bins(least);
    const int64_t id = draw(likely);
    cluster_.arrive();
    finish(id);
    cluster_.wait();  // others may still read what this block listed
  }

 private:
  /// Calls f(logit, id) for this block's ids, after the penalty.
  template <typename F>
  __device__ __forceinline__ void for_each(F&& f) const {
    constexpr int kAhead = 8;  // loads in flight
    for (int first = begin_ + static_cast<int>(threadIdx.x); first < end_;
         first += kAhead * kThreads) {
      float x[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int id = first + k * kThreads;
        x[k] = id < end_ ? to_float(logits_[id]) : 0.0f;
      }
      if (penalizes_) {
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          const int id = first + k * kThreads;
          if (id < end_ && seen_[id] != 0 && rules::finite(x[k])) {
            x[k] = rules::penalized(x[k], penalty_);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int id = first + k * kThreads;
        if (id < end_) f(x[k], id);
      }
    }
  }

  __device__ void clear_bins() {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
      shared_.mass_low[bin] = shared_.mass_high[bin] = shared_.count[bin] = 0;
    }
  }

  __device__ void add(uint32_t bin, uint64_t mass) {
    const auto low = static_cast<uint32_t>(mass);
    const uint32_t before = atomicAdd(&shared_.mass_low[bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomicAdd(&shared_.mass_high[bin], high);
    atomicAdd(&shared_.count[bin], 1u);
  }

  /// Extremes of all blocks' `of`, in every thread. The first cluster-wide exchange: waits for the
  /// arrival of all blocks where `begun` is false.
  __device__ Extremes exchange(Extremes of, bool begun) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      of.best = max_of(of.best, __shfl_xor_sync(kAll, of.best, offset));
      of.lowest = min_of(of.lowest, __shfl_xor_sync(kAll, of.lowest, offset));
    }
    const int lane = threadIdx.x % 32;
    if (lane == 0) shared_.warp_extremes[threadIdx.x / 32] = of;
    __syncthreads();
    if (!begun) cluster_.wait();
    if (threadIdx.x < 32) {
      of = shared_.warp_extremes[lane % kWarps];
#pragma unroll
      for (int offset = kWarps / 2; offset > 0; offset /= 2) {
        of.best = max_of(of.best, __shfl_xor_sync(kAll, of.best, offset));
        of.lowest = min_of(of.lowest, __shfl_xor_sync(kAll, of.lowest, offset));
      }
      if (lane < cluster_.size()) cluster_.at(shared_.extremes, lane)[cluster_.rank()] = of;
    }
    cluster_.sync();
    of = shared_.extremes[0];
    for (int block = 1; block < cluster_.size(); ++block) {
      of.best = max_of(of.best, shared_.extremes[block].best);
      of.lowest = min_of(of.lowest, shared_.extremes[block].lowest);
    }
    return of;
  }

  __device__ Extremes find_extremes() {
    Extremes extremes{0, ~uint64_t{0}};
    for_each([&](float x, int id) {
      const uint64_t likelihood = rules::finite(x) ? rules::likelihood(x, id) : kNotFinite;
      extremes.best = max_of(extremes.best, likelihood);
      extremes.lowest = min_of(extremes.lowest, likelihood);
    });
    return exchange(extremes, /*begun=*/false);
  }

  /// Bins that cover the range of logits, or the part of it that has mass.
  __device__ void set_scale(const Extremes& extremes, double temperature) {
    highest_ = rules::logit_of(extremes.best);
    steep_ = rules::steepness(temperature);
    const double range = rules::halvings(rules::logit_of(extremes.lowest), highest_, steep_);
    const uint32_t last =
        bin_position(rules::fixed_halvings(range < rules::kHalvings ? range : rules::kHalvings));
    const uint64_t factor = (uint64_t{kBins} << 32) / (uint64_t{last} + 1);
    bin_factor_ = static_cast<uint32_t>(min_of(factor, 0xffffffffu));
  }

  /// Distance from the highest logit in 2^-26 halvings.
  __device__ static uint32_t bin_position(uint64_t fixed) {
    return static_cast<uint32_t>(fixed >> 18);
  }

  __device__ double distance(float x) const { return rules::halvings(x, highest_, steep_); }
  __device__ uint32_t bin_of(uint64_t fixed) const {
    return __umulhi(bin_position(fixed), bin_factor_);
  }
  __device__ uint64_t mass_of(uint64_t likelihood) const {
    return rules::mass(distance(rules::logit_of(likelihood)), shared_.powers);
  }

  /// Fills the bins and returns the mass of all ids that have at least `least`.
  __device__ uint64_t fill_bins(uint64_t least) {
    uint64_t likely = 0;
    for_each([&](float x, int) {
      const double z = distance(x);
      if (!(z < rules::kHalvings)) return;
      const uint64_t fixed = rules::fixed_halvings(z);
      const uint64_t mass = rules::mass_of_fixed(fixed, shared_.powers);
      if (mass == 0) return;
      add(bin_of(fixed), mass);
      if (mass >= least) likely += mass;
    });
    likely = warp_sum(likely);
    if (threadIdx.x % 32 == 0) shared_.warp_likely[threadIdx.x / 32] = likely;
    __syncthreads();
    if (threadIdx.x < 32) {
      likely = warp_sum(threadIdx.x < kWarps ? shared_.warp_likely[threadIdx.x] : uint64_t{0});
      if (threadIdx.x < cluster_.size()) {
        cluster_.at(shared_.likely, threadIdx.x)[cluster_.rank()] = likely;
      }
    }
    cluster_.sync();
    likely = 0;
    for (int block = 0; block < cluster_.size(); ++block) likely += shared_.likely[block];
    return likely;
  }

  /// The bins of all blocks, after a barrier of the cluster.
  __device__ Bins gather_bins() {
    const int bin = 2 * threadIdx.x;
    Bins bins{};
    for (int block = 0; block < cluster_.size(); ++block) {
      const auto pair = [&](uint32_t* from) {
        return *reinterpret_cast<const uint2*>(cluster_.at(from, block) + bin);
      };
      const uint2 low = pair(shared_.mass_low), high = pair(shared_.mass_high);
      const uint2 count = pair(shared_.count);
      bins.in[0] = bins.in[0] + Part{uint64_t{high.x} << 32 | low.x, count.x};
      bins.in[1] = bins.in[1] + Part{uint64_t{high.y} << 32 | low.y, count.y};
    }
    const Part own = bins.in[0] + bins.in[1];
    Part sum = own;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const Part left{__shfl_up_sync(kAll, sum.mass, offset),
                      __shfl_up_sync(kAll, sum.count, offset)};
      if (lane >= offset) sum = sum + left;
    }
    if (lane == 31) shared_.warp_part[warp] = sum;
    __syncthreads();
    bins.before = {sum.mass - own.mass, sum.count - own.count};
    for (int w = 0; w < warp; ++w) bins.before = bins.before + shared_.warp_part[w];
    total_ = {0, 0};
    for (int w = 0; w < kWarps; ++w) total_ = total_ + shared_.warp_part[w];
    return bins;
  }

  /// The bin in which the sum of everything before it, of `before` and of itself reaches the goal.
  __device__ Choice choose(const Bins& bins, Part before, uint64_t goal, bool by_count) {
    before = before + bins.before;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint64_t sum = before.of(by_count);
      if (sum < goal && goal <= sum + bins.in[k].of(by_count)) {
        shared_.choice = {static_cast<int>(2 * threadIdx.x) + k, before, bins.in[k]};
      }
      before = before + bins.in[k];
    }
    __syncthreads();
    return shared_.choice;
  }

  /// The first id in order of likelihood at which the number or the mass of ids reaches the goal.
  __device__ Chosen first(const Bins& bins, uint64_t goal, bool by_count) {
    const Choice choice = choose(bins, {0, 0}, goal, by_count);
    const auto bin = static_cast<uint32_t>(choice.bin);
    const auto is_in_bin = [&](float x) {
      const double z = distance(x);
      return z < rules::kHalvings && bin_of(rules::fixed_halvings(z)) == bin;
    };
    if (choice.in.count > kListed) return first_of_many(is_in_bin, choice.before, goal, by_count);
    for_each([&](float x, int id) {
      if (is_in_bin(x)) list(rules::likelihood(x, id));
    });
    return first_listed(choice.before, goal, by_count);
  }

  /// The same in a bin of many ids: divides their range of likelihoods until few are left.
  template <typename F>
  __device__ Chosen first_of_many(F is_in_bin, Part before, uint64_t goal, bool by_count) {
    Extremes range{0, ~uint64_t{0}};
    for_each([&](float x, int id) {
      if (!is_in_bin(x)) return;
      range.best = max_of(range.best, rules::likelihood(x, id));
      range.lowest = min_of(range.lowest, rules::likelihood(x, id));
    });
    range = exchange(range, /*begun=*/true);
    const Part all = total_;
    uint32_t count = 0;
    do {
      const int shift = max(0, 64 - __clzll(range.best - range.lowest) - 10);
      clear_bins();
      __syncthreads();
      for_each([&](float x, int id) {
        const uint64_t likelihood = rules::likelihood(x, id);
        if (likelihood < range.lowest || likelihood > range.best) return;
        add(static_cast<uint32_t>((range.best - likelihood) >> shift), mass_of(likelihood));
      });
      cluster_.sync();
      const Choice choice = choose(gather_bins(), before, goal, by_count);
      range.best -= static_cast<uint64_t>(choice.bin) << shift;
      range.lowest = max_of(range.lowest, range.best - ((uint64_t{1} << shift) - 1));
      before = choice.before;
      count = choice.in.count;
      cluster_.sync();  // no block reads the bins or the choice any more
    } while (count > kListed);
    total_ = all;
    for_each([&](float x, int id) {
      const uint64_t likelihood = rules::likelihood(x, id);
      if (likelihood >= range.lowest && likelihood <= range.best) list(likelihood);
    });
    return first_listed(before, goal, by_count);
  }

  __device__ void list(uint64_t likelihood) {
    shared_.listed[turn_][atomicAdd(&shared_.listed_count[turn_], 1)] = likelihood;
  }

  /// Copies the listed ids of all blocks and returns their number.
  __device__ int gather_listed() {
    cluster_.sync();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = lane < cluster_.size() ? cluster_.at(shared_.listed_count, lane)[turn_] : 0;
    const int own = __shfl_sync(kAll, sum, warp);
#pragma unroll
    for (int offset = 1; offset < kLargestCluster; offset *= 2) {
      const int left = __shfl_up_sync(kAll, sum, offset);
      if (lane >= offset) sum += left;
    }
    if (warp < cluster_.size()) {
      const int start = __shfl_sync(kAll, sum, warp) - own;
      const uint64_t* from = cluster_.at(shared_.listed[turn_], warp);
      for (int k = lane; k < own; k += 32) {
        shared_.members[start + k] = from[k];
        shared_.member_mass[start + k] = mass_of(from[k]);
      }
    }
    turn_ ^= 1;
    if (threadIdx.x == 0) shared_.listed_count[turn_] = 0;
    __syncthreads();
    return __shfl_sync(kAll, sum, cluster_.size() - 1);
  }

  /// The first listed id at which the sum, from `before` on, reaches the goal.
  __device__ Chosen first_listed(const Part& before, uint64_t goal, bool by_count) {
    const int count = gather_listed();
    const int own = threadIdx.x / 2, warp_first = threadIdx.x / 32 * 16;
    if (warp_first < count) {
      const bool is_id = own < count;
      const uint64_t likelihood = is_id ? shared_.members[own] : kNotFinite;
      Part sum{0, 0};  // of the ids up to this one
      for (int k = threadIdx.x % 2; k < count; k += 2) {
        if (shared_.members[k] >= likelihood) sum = sum + Part{shared_.member_mass[k], 1};
      }
      sum.mass += __shfl_xor_sync(kAll, sum.mass, 1);
      sum.count += __shfl_xor_sync(kAll, sum.count, 1);
      sum = sum + before;
      if (is_id && threadIdx.x % 2 == 0 && sum.of(by_count) >= goal) {
        const Part without{sum.mass - shared_.member_mass[own], sum.count - 1};
        if (without.of(by_count) < goal) shared_.chosen = {likelihood, sum.mass};
      }
    }
    __syncthreads();
    return shared_.chosen;
  }

  /// `likely`: mass of the ids that min_p keeps.
  __device__ int64_t draw(uint64_t likely) {
    const Bins bins = gather_bins();
    Chosen chosen{0, total_.mass};
    enum Step { kTopK, kTopP, kDraw };
#pragma unroll 1  // one copy of the code for all three steps
    for (int step = kTopK; step <= kDraw; ++step) {
      uint64_t goal = 0;
      if (step == kTopK) {
        const int64_t top_k = p_.top_k[row_];
        if (top_k <= 0 || top_k >= total_.count) continue;
        goal = static_cast<uint64_t>(top_k);
      } else if (step == kTopP) {
        const double top_p = p_.top_p[row_];
        if (!(top_p < 1)) continue;
        goal = max_of(rules::share_of(top_p, chosen.mass), 1);
      } else {
        const uint64_t kept = min_of(chosen.mass, likely);
        goal = rules::uniform_of(p_.seed[row_], p_.drawn[row_], kept) + 1;
      }
      chosen = first(bins, goal, /*by_count=*/step == kTopK);
    }
    return rules::id_of(chosen.likelihood);
  }

  __device__ void finish(int64_t id) {
    if (cluster_.rank() != 0 || threadIdx.x != 0) return;
    p_.ids[row_] = id;
    if (seen_ != nullptr && id >= 0) seen_[id] = 1;
  }

  const Sample& p_;
  Shared& shared_;
  Cluster cluster_;
  int64_t row_;
  const T* logits_;
  int begin_, end_;
  uint8_t* seen_ = nullptr;
  double penalty_;
  bool penalizes_ = false;
  float highest_ = 0;
  double steep_ = 0;
  uint32_t bin_factor_ = 0;
  Part total_{0, 0};
  int turn_ = 0;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) sample_kernel(const __grid_constant__ Sample p) {
  __shared__ Shared shared;
  RowSampler<T>(p, shared).run();
}

/// Blocks per row: as many as run at the same time, two on a multiprocessor, and have enough to do.
template <typename T>
cudaError_t cluster_size(const Sample& p, int* size) {
  constexpr int kFewestIds = 1024;
  *size = 1;
  cudaFuncAttributes code{};
  cudaError_t error = cudaFuncGetAttributes(&code, sample_kernel<T>);
  if (error != cudaSuccess || code.ptxVersion < 90) return error;
  int multiprocessors = 0;
  error = device_attribute(cudaDevAttrMultiProcessorCount, &multiprocessors);
  int64_t blocks = std::min<int64_t>(kLargestCluster, 2 * multiprocessors / p.batch);
  blocks = std::min<int64_t>(blocks, p.vocabulary / kFewestIds);
  while (2 * *size <= blocks) *size *= 2;
  return error;
}

}  // namespace

cudaError_t launch(const Sample& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    int size = 1;
    const cudaError_t error = cluster_size<T>(p, &size);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(p.batch * size));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = size > 1 ? 1 : 0;
    return cudaLaunchKernelEx(&config, sample_kernel<T>, p);
  });
}

}  // namespace stablemask::ops::cuda
