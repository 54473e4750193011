#include "stablemask/ops/sampling.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "src/ops/sampling_rules.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/run.h"
#include "src/ops/cuda/sampling.h"
#endif

namespace stablemask::ops {
namespace {

namespace rules = sampling;

void check_each(const char* name, const at::Tensor& x, at::ScalarType type,
                const at::Tensor& logits) {
  TORCH_CHECK(x.defined(), "sample: ", name, " is undefined");
  TORCH_CHECK(x.device() == logits.device() && x.scalar_type() == type && x.is_contiguous() &&
                  x.dim() == 1 && x.size(0) == logits.size(0),
              "sample: ", name, " must be contiguous ", type, " [", logits.size(0), "] on ",
              logits.device(), ", got ", x.toString(), " ", x.sizes());
}

void check_sampling(const at::Tensor& logits, int64_t vocabulary, const Sampling& s) {
  TORCH_CHECK(logits.defined() && logits.dim() == 2 &&
                  (logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kBFloat16) &&
                  (logits.is_cpu() || logits.is_cuda()),
              "sample: logits must be fp32 or bf16 [B,V] on a CPU or GPU, got ", logits.toString(),
              " ", logits.defined() ? logits.sizes() : at::IntArrayRef());
  TORCH_CHECK(
      vocabulary >= 1 && vocabulary <= logits.size(1) && vocabulary <= rules::kLargestVocabulary,
      "sample: a vocabulary of ", vocabulary, ", but it must be from 1 to ",
      std::min(logits.size(1), rules::kLargestVocabulary));
  TORCH_CHECK(logits.size(0) == 0 || logits.size(1) == 1 || logits.stride(1) == 1,
              "sample: the logits of a row must be contiguous");
  check_each("temperature", s.temperature, at::kDouble, logits);
  check_each("top_k", s.top_k, at::kLong, logits);
  check_each("top_p", s.top_p, at::kDouble, logits);
  check_each("min_p", s.min_p, at::kDouble, logits);
  check_each("repetition_penalty", s.repetition_penalty, at::kDouble, logits);
  check_each("seed", s.seed, at::kLong, logits);
  check_each("drawn", s.drawn, at::kLong, logits);
  if (s.rows.defined()) check_each("rows", s.rows, at::kLong, logits);
  if (!s.seen.defined()) return;
  TORCH_CHECK(s.seen.device() == logits.device() && s.seen.scalar_type() == at::kByte &&
                  s.seen.is_contiguous() && s.seen.dim() == 2 && s.seen.size(1) == logits.size(1),
              "sample: seen must be contiguous uint8 [R,", logits.size(1), "] on ", logits.device(),
              ", got ", s.seen.toString(), " ", s.seen.sizes());
  TORCH_CHECK(s.rows.defined() || s.seen.size(0) >= logits.size(0), "sample: seen ", s.seen.sizes(),
              " has fewer rows than logits ", logits.sizes());
}

constexpr rules::Powers kPowers;

/// The settings of one sequence.
struct Settings {
  double temperature, top_p, min_p, penalty;
  int64_t top_k, seed, drawn;
  uint8_t* seen;  ///< null: no penalty
};

/// Draws from one row at a time. Ids are divided into bins by their logit, so that only the bin in
/// which a sum reaches its goal has to be sorted.
class RowSampler {
 public:
  template <typename Logit>
  int64_t draw(const Logit* logits, int64_t vocabulary, const Settings& settings) {
    logits_.resize(static_cast<size_t>(vocabulary));
    const bool penalty = settings.seen != nullptr && settings.penalty > 0;
    for (int64_t id = 0; id < vocabulary; ++id) {
      float x = static_cast<float>(logits[id]);
      if (!rules::finite(x)) return -1;
      if (penalty && settings.seen[id] != 0) x = rules::penalized(x, settings.penalty);
      logits_[static_cast<size_t>(id)] = x;
    }
    const auto largest = std::max_element(logits_.begin(), logits_.end());
    if (!(settings.temperature > 0)) return largest - logits_.begin();
    fill_bins(*largest, rules::steepness(settings.temperature),
              rules::share_of(settings.min_p, rules::kOne));
    return draw_from_bins(settings);
  }

 private:
  static constexpr size_t kBins = 1024;
  static constexpr uint16_t kNone = kBins;  ///< ids without mass

  struct Bin {
    uint64_t count, mass;
  };
  struct Chosen {
    int64_t id;
    uint64_t mass;  ///< of this id and all likelier ones
  };

  void fill_bins(float highest, double steep, uint64_t least) {
    highest_ = highest;
    steep_ = steep;
    const float lowest = *std::min_element(logits_.begin(), logits_.end());
    const double range = std::min(rules::halvings(lowest, highest, steep), rules::kHalvings);
    const double per_halving = range > 1e-280 ? kBins / range : 0.0;
    bins_.fill({});
    bin_of_.resize(logits_.size());
    total_ = {};
    likely_ = 0;
    for (size_t id = 0; id < logits_.size(); ++id) {
      const double z = rules::halvings(logits_[id], highest, steep);
      const uint64_t mass = rules::mass(z, kPowers.of);
      if (mass == 0) {
        bin_of_[id] = kNone;
        continue;
      }
      const size_t bin = std::min(static_cast<size_t>(z * per_halving), kBins - 1);
      bin_of_[id] = static_cast<uint16_t>(bin);
      bins_[bin].mass += mass;
      ++bins_[bin].count;
      total_.mass += mass;
      ++total_.count;
      if (mass >= least) likely_ += mass;
    }
  }

  /// Each step keeps a prefix of the order of likelihood, so its mass alone says what is kept.
  int64_t draw_from_bins(const Settings& settings) {
    uint64_t kept = total_.mass;
    if (settings.top_k > 0 && static_cast<uint64_t>(settings.top_k) < total_.count) {
      kept = first(static_cast<uint64_t>(settings.top_k), &Bin::count).mass;
    }
    if (settings.top_p < 1) {
      const uint64_t goal = std::max<uint64_t>(rules::share_of(settings.top_p, kept), 1);
      kept = first(goal, &Bin::mass).mass;
    }
    kept = std::min(kept, likely_);
    return first(rules::uniform_of(settings.seed, settings.drawn, kept) + 1, &Bin::mass).id;
  }

  /// The first id in order of likelihood at which the number or the mass of ids reaches `goal`.
  Chosen first(uint64_t goal, uint64_t Bin::*what) {
    Bin before{};
    size_t bin = 0;
    while (before.*what + bins_[bin].*what < goal) {
      before.count += bins_[bin].count;
      before.mass += bins_[bin].mass;
      ++bin;
    }
    members_.clear();
    for (size_t id = 0; id < bin_of_.size(); ++id) {
      if (bin_of_[id] == bin) {
        members_.push_back(rules::likelihood(logits_[id], static_cast<int64_t>(id)));
      }
    }
    std::sort(members_.begin(), members_.end(), std::greater<>());
    for (const uint64_t member : members_) {
      ++before.count;
      before.mass +=
          rules::mass(rules::halvings(rules::logit_of(member), highest_, steep_), kPowers.of);
      if (before.*what >= goal) return {rules::id_of(member), before.mass};
    }
    TORCH_INTERNAL_ASSERT(false, "sample: the sum of a bin is not that of its ids");
  }

  std::vector<float> logits_;
  std::vector<uint16_t> bin_of_;
  std::vector<uint64_t> members_;
  std::array<Bin, kBins> bins_{};
  float highest_ = 0;
  double steep_ = 0;
  Bin total_{};
  uint64_t likely_ = 0;  ///< mass of the ids that min_p keeps
};

template <typename Logit>
void sample_rows(const at::Tensor& logits, int64_t vocabulary, const Sampling& s,
                 const at::Tensor& ids) {
  const Logit* x = logits.const_data_ptr<Logit>();
  int64_t* drawn_ids = ids.data_ptr<int64_t>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    RowSampler sampler;
    for (int64_t b = begin; b < end; ++b) {
      const auto at = [b](const at::Tensor& of, auto type) {
        return of.const_data_ptr<decltype(type)>()[b];
      };
      Settings settings{at(s.temperature, 0.0), at(s.top_p, 0.0),
                        at(s.min_p, 0.0),       at(s.repetition_penalty, 0.0),
                        at(s.top_k, int64_t{}), at(s.seed, int64_t{}),
                        at(s.drawn, int64_t{}), nullptr};
      if (s.seen.defined()) {
        const int64_t row = s.rows.defined() ? at(s.rows, int64_t{}) : b;
        TORCH_CHECK(row >= 0 && row < s.seen.size(0), "sample: row ", row, " is not in seen ",
                    s.seen.sizes());
        settings.seen = s.seen.data_ptr<uint8_t>() + row * s.seen.size(1);
      }
      drawn_ids[b] = sampler.draw(x + b * logits.stride(0), vocabulary, settings);
      if (settings.seen != nullptr && drawn_ids[b] >= 0) settings.seen[drawn_ids[b]] = 1;
    }
  });
}

#ifdef STABLEMASK_HAS_CUDA
void sample_on_gpu(const at::Tensor& logits, int64_t vocabulary, const Sampling& s,
                   const at::Tensor& ids) {
  cuda::Sample p{};
  p.logits = logits.const_data_ptr();
  p.stride = logits.stride(0);
  p.batch = logits.size(0);
  p.vocabulary = vocabulary;
  p.temperature = s.temperature.const_data_ptr<double>();
  p.top_k = s.top_k.const_data_ptr<int64_t>();
  p.top_p = s.top_p.const_data_ptr<double>();
  p.min_p = s.min_p.const_data_ptr<double>();
  p.repetition_penalty = s.repetition_penalty.const_data_ptr<double>();
  p.seed = s.seed.const_data_ptr<int64_t>();
  p.drawn = s.drawn.const_data_ptr<int64_t>();
  if (s.rows.defined()) p.rows = s.rows.const_data_ptr<int64_t>();
  if (s.seen.defined()) {
    p.seen = s.seen.data_ptr<uint8_t>();
    p.seen_rows = s.seen.size(0);
    p.seen_columns = s.seen.size(1);
  }
  p.ids = ids.data_ptr<int64_t>();
  p.dtype = logits.scalar_type() == at::kFloat ? cuda::DType::kFloat32 : cuda::DType::kBFloat16;
  cuda::run("sample", p, logits);
}
#endif

}  // namespace

at::Tensor sample(const at::Tensor& logits, int64_t vocabulary, const Sampling& sampling) {
  check_sampling(logits, vocabulary, sampling);
  const at::Tensor ids = at::empty({logits.size(0)}, logits.options().dtype(at::kLong));
  if (logits.size(0) == 0) return ids;
#ifdef STABLEMASK_HAS_CUDA
  if (logits.is_cuda()) {
    sample_on_gpu(logits, vocabulary, sampling, ids);
    return ids;
  }
#endif
  if (logits.scalar_type() == at::kFloat) {
    sample_rows<float>(logits, vocabulary, sampling, ids);
  } else {
    sample_rows<c10::BFloat16>(logits, vocabulary, sampling, ids);
  }
  return ids;
}

}  // namespace stablemask::ops
