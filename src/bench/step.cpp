#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "src/bench/bench.h"
#include "src/bench/kernel_times.h"
#include "src/bench/model_names.h"
#include "src/bench/start_together.h"
#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/infer/load.h"
#include "stablemask/infer/shared_algorithms.h"
#include "stablemask/nn/model.h"
#include "stablemask/ops/algorithms.h"
#include "stablemask/ops/device.h"
#include "stablemask/ops/memory.h"
#include "stablemask/optim/flat_parameters.h"
#include "stablemask/optim/optimizer.h"
#include "stablemask/report/peak_flops.h"
#include "stablemask/train/step.h"
#include "stablemask/train/torch_settings.h"

namespace stablemask::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

/// Enough for the step to be captured into a CUDA graph and replayed once.
constexpr int kWarmUpSteps = 5;

/// Seconds since the process started, including the loading of shared libraries.
double seconds_of_process() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  // starttime is field 22. Field 2, the program's name in parentheses, may contain spaces.
  std::istringstream fields(text.substr(text.rfind(')') + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double ticks = 0;
  fields >> ticks;
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) -
         ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

/// Micro-batches of uniformly random tokens; every position has a target. Of several processes each
/// takes those whose number, modulo the number of processes, is its rank, as in training.
class RandomBatches {
 public:
  RandomBatches(const Config& config, const dist::Group& group)
      : rows_(config.train.resolved_micro_batch(group.size())),
        columns_(config.train.context),
        count_(config.train.batch / rows_),
        rank_(group.rank()),
        size_(group.size()),
        token_(0, config.model.vocab_size - 1),
        random_(static_cast<uint64_t>(config.train.seed)) {}

  /// A step's micro-batches of this process.
  std::vector<Batch> next() {
    std::vector<Batch> own;
    for (int64_t number = 0; number < count_; ++number) {
      Batch batch;
      batch.rows = rows_;
      batch.columns = columns_;
      batch.valid_targets = rows_ * columns_;
      for (std::vector<int64_t>* values : {&batch.tokens, &batch.targets}) {
        values->resize(batch.valid_targets);
        for (int64_t& value : *values) value = token_(random_);
      }
      if (number % size_ == rank_) own.push_back(std::move(batch));
    }
    return own;
  }

 private:
  int64_t rows_, columns_, count_, rank_, size_;
  std::uniform_int_distribution<int64_t> token_;
  std::mt19937_64 random_;
};

/// Stages from the process's start to the end of the first step, in seconds each.
struct Start {
  double loading = 0;  ///< of libraries, until the benchmark begins
  double device = 0;
  double weights = 0;  ///< initial weights, on the device, and the optimizer
  double step = 0;
  double algorithms = 0;  ///< the part of `step` in which GEMM's algorithms were chosen by timing
  int64_t gemms = 0;      ///< for so many GEMMs
};

struct Memory {
  int64_t allocated = 0, reserved = 0;
};

Memory peak_memory(at::Device device) {
  if (device.is_cpu()) return {ops::peak_memory_bytes(device), ops::peak_memory_bytes(device)};
  const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  constexpr size_t kAllPools = 0;
  return {stats.allocated_bytes[kAllPools].peak, stats.reserved_bytes[kAllPools].peak};
}

class StepBench {
 public:
  StepBench(const Config& config, const Processes& processes)
      : config_(config),
        group_(processes.group),
        start_{.loading = seconds_of_process()},
        device_(select_device(config.train.device, processes.local_rank)),
        batches_(config, *group_) {
    const double selected = seconds_of_process();
    program_ = made_program(config, device_, group_);
    start_.device = selected - start_.loading;
    start_.weights = seconds_of_process() - selected;
  }

  void warm_up() {
    const double made = seconds_of_process();
    const ops::AlgorithmTrials before = ops::algorithm_trials();
    step();
    start_seconds_ = seconds_of_process();
    const ops::AlgorithmTrials after = ops::algorithm_trials();
    start_.step = start_seconds_ - made;
    start_.algorithms = after.seconds - before.seconds;
    start_.gemms = after.gemms - before.gemms;
    // Excludes the first step, which tunes GEMM algorithms and allocates memory for it. Includes
    // the graph's capture, which allocates the memory that all replays use.
    if (device_.is_cuda()) {
      at::getDeviceAllocator(device_.type())->resetPeakStats(device_.index());
    }
    for (int i = 1; i < kWarmUpSteps; ++i) step();
  }

  void time(int64_t steps) {
    for (int64_t i = 0; i < steps; ++i) seconds_.push_back(step());
    const Memory memory = peak_memory(device_);
    seconds_ = largest(seconds_);
    const std::vector<double> others =
        largest({start_seconds_, static_cast<double>(memory.allocated),
                 static_cast<double>(memory.reserved)});
    start_seconds_ = others[0];
    memory_ = {static_cast<int64_t>(others[1]), static_cast<int64_t>(others[2])};
    std::vector<double> sorted = seconds_;
    std::nth_element(sorted.begin(), sorted.begin() + steps / 2, sorted.end());
    median_ = sorted[steps / 2];
    for (const double seconds : seconds_) timed_seconds_ += seconds;
  }

  /// GPU milliseconds per step of each part of the step, from LibTorch's profiler.
  Json kernels() {
    constexpr int kSteps = 5;
    Json parts = Json::array();
    const auto times = kernel_times([&] {
      for (int i = 0; i < kSteps; ++i) step();
    });
    for (const KernelTime& time : times) {
      parts.push_back({{"part", time.part},
                       {"ms", time.milliseconds / kSteps},
                       {"launches", time.launches / kSteps},
                       {"longest", time.kernel}});
    }
    return parts;
  }

  /// Writes what CPU and GPU do during some steps to a file that trace viewers read.
  void trace(const std::string& file) {
    constexpr int kSteps = 3;
    save_trace(file, [&] {
      for (int i = 0; i < kSteps; ++i) step();
    });
  }

  Json json() const;

 private:
  static std::unique_ptr<StepProgram> made_program(const Config& config, at::Device device,
                                                   const std::shared_ptr<dist::Group>& group) {
    nn::Transformer model(config.model);
    const stablemask::StepOptions options = step_options(config);
    auto flat = std::make_shared<FlatParameters>(
        model, device, select_dtype(config.train.dtype, device), config.train.freeze_layers,
        share_of(*group, config.train.shard));
    init_weights(model, *flat, static_cast<uint64_t>(config.train.seed));
    use_precision(model, config.train);
    std::shared_ptr<Optimizer> optimizer =
        make_optimizer(config.optimizer, flat, options.kernels, config.train.seed);
    std::shared_ptr<WeightAverage> average;
    if (config.train.ema_decay > 0) {
      average = std::make_shared<WeightAverage>(config.train.ema_decay, flat, options.kernels);
    }
    return std::make_unique<StepProgram>(model, flat, optimizer, options, group, average);
  }

  /// The elementwise maximum over all processes.
  std::vector<double> largest(const std::vector<double>& values) {
    const at::Tensor numbers = at::tensor(values, at::kDouble).to(device_);
    group_->all_reduce(numbers, dist::Reduce::kMax);
    const at::Tensor host = group_->read(numbers);
    return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
  }

  /// Runs a step. Returns the seconds from tokens in host memory to the loss in host memory.
  double step() {
    const std::vector<Batch> batches = batches_.next();
    start_together(*group_);
    const auto start = Clock::now();
    const auto update = static_cast<int64_t>(losses_.size()) + 1;
    StepProgram::Result result;
    {
      RECORD_USER_SCOPE(kStepScope);
      result = program_->run(batches, config_.optimizer.lr, update);
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    losses_.push_back(result.loss);
    if (!result.updated) {
      throw NonFiniteError(format("bench step: step %lld: loss %g, gradient norm %g",
                                  static_cast<long long>(update), result.loss, result.grad_norm));
    }
    return seconds;
  }

  const Config config_;
  const std::shared_ptr<dist::Group> group_;
  Start start_;  ///< of this process
  const at::Device device_;
  std::unique_ptr<StepProgram> program_;
  RandomBatches batches_;
  std::vector<double> losses_, seconds_;
  double start_seconds_ = 0, median_ = 0, timed_seconds_ = 0;
  Memory memory_;
};

Json StepBench::json() const {
  const TrainConfig& train = config_.train;
  const auto tokens = static_cast<double>(train.batch * train.context);
  const double rate = tokens / median_, timed = tokens * static_cast<double>(seconds_.size());
  const double flops = nn::flops_per_token(config_.model, train.context);
  const auto processes = static_cast<double>(group_->size());
  const std::optional<double> peak = peak_flops(ops::device_name(device_));
  return {{"program", "stablemask"},
          {"device", ops::device_name(device_)},
          {"model", config_.model.preset},
          {"mask", mask_name(config_.model.stable_mask)},
          {"learnable", config_.model.stable_mask.learnable},
          {"position", position_name(config_.model.position)},
          {"parameters", nn::parameter_count(config_.model)},
          {"vocabulary", config_.model.vocab_size},
          {"batch", train.batch},
          {"micro_batch", train.resolved_micro_batch(group_->size())},
          {"context", train.context},
          {"threads", at::get_num_threads()},
          {"processes", group_->size()},
          {"shard", train.shard == ShardKind::kOptimizer ? "optimizer" : "none"},
          {"reduce_dtype", train.reduce_dtype == ReduceDtype::kBf16 ? "bf16" : "fp32"},
          {"cuda_graph", program_->uses_graph()},
          {"deterministic", train.deterministic},
          {"timed_steps", seconds_.size()},
          {"timed_tokens", timed},
          {"timed_seconds", timed_seconds_},
          {"step_ms", 1e3 * median_},
          {"tokens_per_second", rate},
          {"tokens_per_second_mean", timed / timed_seconds_},
          {"mfu", peak ? Json(flops * rate / (*peak * processes)) : Json(nullptr)},
          {"peak_memory_bytes", memory_.allocated},
          {"peak_reserved_bytes", memory_.reserved},
          {"start_seconds", start_seconds_},
          {"start",
           {{"loading_seconds", start_.loading},
            {"device_seconds", start_.device},
            {"weights_seconds", start_.weights},
            {"step_seconds", start_.step},
            {"algorithm_seconds", start_.algorithms},
            {"algorithms", start_.gemms}}},
          {"losses", losses_}};
}

void print_start(double seconds, const Json& stages) {
  const auto part = [&](const char* key) { return stages[key].get<double>(); };
  std::printf(
      "start        %.2f s from the process's start to the end of the first step: loading "
      "%.2f, device %.2f, weights %.2f, step %.2f",
      seconds, part("loading_seconds"), part("device_seconds"), part("weights_seconds"),
      part("step_seconds"));
  const auto chosen = stages["algorithms"].get<int64_t>();
  if (chosen > 0) {
    std::printf(", of which %.2f to choose %lld algorithms", part("algorithm_seconds"),
                static_cast<long long>(chosen));
  }
  std::printf("\n");
}

void print(const Json& json) {
  const auto count = [&](const char* key) { return json[key].get<int64_t>(); };
  const auto number = [&](const char* key) { return json[key].get<double>(); };
  const auto text = [&](const char* key) { return json[key].get<std::string>(); };
  const auto gib = [&](const char* key) { return number(key) / (1 << 30); };
  std::printf("model        %s, %s%s, %s, %s parameters\n", text("model").c_str(),
              text("mask").c_str(), json["learnable"].get<bool>() ? " (learnable)" : "",
              text("position").c_str(), with_commas(count("parameters")).c_str());
  std::printf("device       %s%s\n", text("device").c_str(),
              json["cuda_graph"].get<bool>() ? ", step as one CUDA graph" : "");
  if (count("processes") > 1) {
    std::printf("processes    %lld; shard %s, gradients reduced in %s\n",
                static_cast<long long>(count("processes")), text("shard").c_str(),
                text("reduce_dtype").c_str());
  }
  std::printf("step         %.2f ms, median of %lld: %lld x %lld tokens\n", number("step_ms"),
              static_cast<long long>(count("timed_steps")), static_cast<long long>(count("batch")),
              static_cast<long long>(count("context")));
  std::printf("speed        %.0f tokens/s by the median, %.0f by the mean\n",
              number("tokens_per_second"), number("tokens_per_second_mean"));
  if (!json["mfu"].is_null()) std::printf("MFU          %.1f %%\n", 100 * number("mfu"));
  std::printf("peak memory  %.2f GiB, %.2f reserved\n", gib("peak_memory_bytes"),
              gib("peak_reserved_bytes"));
  print_start(number("start_seconds"), json["start"]);
  std::printf("loss         %.4f first, %.4f last\n", json["losses"].front().get<double>(),
              json["losses"].back().get<double>());
}

void print_kernels(const Json& parts) {
  std::printf("\n%-24s %9s %9s   %s\n", "part of the step", "ms", "launches", "longest kernel");
  for (const Json& part : parts) {
    std::printf("%-24s %9.3f %9lld   %s\n", part["part"].get<std::string>().c_str(),
                part["ms"].get<double>(), static_cast<long long>(part["launches"].get<int64_t>()),
                part["longest"].get<std::string>().c_str());
  }
}

Json timed_step(const Config& config, const StepOptions& options) {
  Json result = ops::with_memory_hint("lower --micro-batch or --context", [&] {
    StepBench bench(config, options.processes);
    bench.warm_up();
    bench.time(options.timed_steps);
    Json json = bench.json();
    if (options.kernels) json["kernels"] = bench.kernels();
    if (!options.trace.empty()) bench.trace(options.trace);
    return json;
  });
  if (options.processes.group->rank() != 0) return result;
  print(result);
  if (options.kernels) print_kernels(result["kernels"]);
  return result;
}

}  // namespace

Report run_step(const StepOptions& options) {
  configure_torch(options.config.train);
  const SharedAlgorithms algorithms(options.processes.group);
  Report report;
  report.json = timed_step(options.config, options);
  if (!options.compared) return report;
  const bool prints = options.processes.group->rank() == 0;
  if (prints) std::printf("\n");
  Json compared = timed_step(*options.compared, options);
  const double overhead =
      compared["step_ms"].get<double>() / report.json["step_ms"].get<double>() - 1.0;
  if (prints) {
    std::printf("\noverhead     %+.2f %% time per step of the second configuration\n",
                100.0 * overhead);
  }
  report.json["compared"] = std::move(compared);
  report.json["compared_overhead"] = overhead;
  return report;
}

}  // namespace stablemask::bench
