#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "src/nn/declare.h"
#include "stablemask/base/sha256.h"
#include "stablemask/nn/model.h"

namespace stablemask::nn {
namespace {

/// Values made but not yet taken are at most so many parameters a thread.
constexpr size_t kMadeAhead = 2;

/// Seed of a parameter, from the run's seed and the parameter's name only.
uint64_t parameter_seed(uint64_t seed, const std::string& name) {
  const std::string key = std::to_string(seed) + ":" + name;
  return std::stoull(sha256_hex(key.data(), key.size()).substr(0, 16), nullptr, 16);
}

/// Fills `values`, fp32 of the parameter's shape.
void fill(const at::Tensor& values, const Parameter& declared, const ModelConfig& config,
          uint64_t seed) {
  const auto generator = [&] {
    return at::make_generator<at::CPUGeneratorImpl>(parameter_seed(seed, declared.name));
  };
  switch (declared.init) {
    case Init::kOnes:
      values.fill_(1.0);
      return;
    case Init::kZeros:
      values.zero_();
      return;
    case Init::kConfig:
      return;
    case Init::kNormal:
      values.normal_(0.0, config.init_std, generator());
      return;
    case Init::kResidualNormal:
      values.normal_(0.0, config.init_std / std::sqrt(2.0 * static_cast<double>(config.layers)),
                     generator());
      return;
    case Init::kFanInUniform:
      const double bound = 1.0 / std::sqrt(static_cast<double>(declared.shape[1]));
      values.uniform_(-bound, bound, generator());
      return;
  }
}

/// Makes the values of a list of parameters, the largest first, in threads of its own. A
/// parameter's numbers come one after another from its own generator, so a thread takes a whole
/// parameter, in the list's order. Memory is used again: to have it from the system takes as long
/// as to fill it.
class ValueMakers {
 public:
  struct Made {
    const Parameter* declared = nullptr;
    at::Tensor memory;  ///< fp32 [n], n ≥ the parameter's elements

    at::Tensor values() const {
      return memory.narrow(0, 0, declared->numel()).view(declared->shape);
    }
  };

  ValueMakers(const std::vector<Parameter>& list, const ModelConfig& config, uint64_t seed)
      : list_(list), config_(config), seed_(seed) {
    const size_t count = std::min<size_t>(at::get_num_threads(), list.size());
    ahead_ = kMadeAhead * count;
    for (size_t i = 0; i < count; ++i) start_thread();
  }
  ~ValueMakers() {
    const std::lock_guard<std::mutex> lock(mutex_);
    next_ = list_.size();
    taken_ = next_;
    changed_.notify_all();
  }
  ValueMakers(const ValueMakers&) = delete;
  ValueMakers& operator=(const ValueMakers&) = delete;

  /// The next parameter that is done; at most once for each of the list. Throws what the making of
  /// one has thrown.
  Made next() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !made_.empty() || failure_; });
    if (failure_) std::rethrow_exception(failure_);
    Made made = std::move(made_.front());
    made_.pop_front();
    return made;
  }

  /// To be called with every result of next() when its values are no longer needed.
  void taken(Made made) {
    const std::lock_guard<std::mutex> lock(mutex_);
    spare_.push_back(std::move(made.memory));
    ++taken_;
    changed_.notify_all();
  }

 private:
  /// Without effect where the system refuses another thread and there is one already.
  void start_thread() {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      if (threads_.empty()) throw;
    }
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return next_ >= list_.size() || next_ < taken_ + ahead_; });
      if (next_ >= list_.size()) return;
      Made made{&list_[next_++], {}};
      if (!spare_.empty()) {  // of a parameter that is at least as large
        made.memory = std::move(spare_.back());
        spare_.pop_back();
      }
      lock.unlock();
      std::exception_ptr failure;
      try {
        make(made);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      if (failure) failure_ = failure;
      made_.push_back(std::move(made));
      changed_.notify_all();
    }
  }

  void make(Made& made) const {
    const at::NoGradGuard no_grad;
    if (!made.memory.defined()) made.memory = at::empty({made.declared->numel()}, at::kFloat);
    fill(made.values(), *made.declared, config_, seed_);
  }

  const std::vector<Parameter>& list_;
  const ModelConfig& config_;
  const uint64_t seed_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t next_ = 0, taken_ = 0;  ///< of the list, given to a thread; given to the caller
  size_t ahead_ = 0;             ///< at most so many between the two
  std::deque<Made> made_;
  std::vector<at::Tensor> spare_;
  std::exception_ptr failure_;
  std::vector<std::jthread> threads_;
};

}  // namespace

void initial_weights(const ModelConfig& config, uint64_t seed, InitScope scope,
                     const std::function<void(const std::string&, const at::Tensor&)>& take) {
  std::vector<Parameter> list = parameters(config);
  std::erase_if(list, [&](const Parameter& one) {
    return one.init == Init::kConfig ||
           (scope == InitScope::kAdapters && one.role != Role::kAdapter);
  });
  // The largest first also so that no thread is left alone with one at the end.
  std::stable_sort(list.begin(), list.end(),
                   [](const Parameter& a, const Parameter& b) { return a.numel() > b.numel(); });
  ValueMakers makers(list, config, seed);
  for (size_t i = 0; i < list.size(); ++i) {
    ValueMakers::Made made = makers.next();
    take(made.declared->name, made.values());
    makers.taken(std::move(made));
  }
}

void initialise(const at::Tensor& parameter, const Parameter& declared, const ModelConfig& config,
                uint64_t seed) {
  if (declared.init == Init::kConfig) return;
  const at::NoGradGuard no_grad;
  const at::Tensor values = at::empty(declared.shape, at::kFloat);
  fill(values, declared, config, seed);
  parameter.copy_(values);
}

void TransformerImpl::init_weights(uint64_t seed, InitScope scope) {
  const at::NoGradGuard no_grad;
  auto registered = named_parameters();
  initial_weights(config_, seed, scope, [&](const std::string& name, const at::Tensor& values) {
    registered[name].copy_(values);
  });
  ready_ = ready_ || scope == InitScope::kAll;
}

}  // namespace stablemask::nn
