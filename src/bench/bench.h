#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/dist/group.h"

/// Benchmarks of `stablemask bench`. Each prints a table row by row and returns its figures.
namespace stablemask::bench {

struct Report {
  nlohmann::ordered_json json;
  bool right = true;  ///< false: a result differed from the reference and was not timed
};

/// The CUDA kernels of ops/ whose "KERNEL, SHAPE" contains every piece of `only`, at the shapes of
/// the 160M and the 1.4B model, with GB/s. Throws ConfigError without a GPU.
Report run_ops(const std::vector<std::string>& only);

/// Attention forward and backward, plain and with StableMask and ALiBi, compared with LibTorch's
/// cuDNN operator and with eager operators. Throws ConfigError without a GPU.
Report run_attention();

/// The processes that run a benchmark together, and this one's number among those of its machine.
struct Processes {
  std::shared_ptr<dist::Group> group = dist::single_process_group();
  int64_t local_rank = 0;
};

struct StepOptions {
  Config config;  ///< model with its vocabulary, train, optimizer; data is not read
  int64_t timed_steps = 30;
  bool kernels = false;            ///< also report GPU time by part of the step
  Processes processes;             ///< see require_equal_shares
  std::string trace;               ///< also write a trace of some steps here, "": none
  std::optional<Config> compared;  ///< a second configuration, timed after the first
};

/// Optimizer steps on random tokens, on any device. The JSON of a compared configuration is the
/// field "compared" of the first one's; "compared_overhead" is its additional time per step as a
/// fraction. With several processes every one gets the same figures: a step takes as long as in the
/// slowest process, memory is the largest; process 0 prints. Throws OutOfMemoryError,
/// NonFiniteError, PeerLostError, and Stopped in all processes when one was asked to stop.
Report run_step(const StepOptions& options);

struct GenerateOptions {
  Config config;          ///< model with its vocabulary, train.device, threads; generate: settings
  int64_t batch = 1;      ///< texts at a time
  int64_t prompt = 128;   ///< tokens of each prompt, at least 1
  int64_t tokens = 1024;  ///< generated after each, at least 2
  bool plain = false;     ///< no CUDA graphs
};

/// Generation by a model of random weights. Its first tokens are compared with a forward pass
/// before anything is timed. Throws OutOfMemoryError, NonFiniteError, Stopped.
Report run_generate(const GenerateOptions& options);

struct CollectivesOptions {
  Processes processes;
  TrainConfig train;  ///< device, threads
  int64_t largest_bytes = int64_t{1} << 30;
};

/// All-reduce, reduce-scatter and all-gather of fp32 buffers of 64 KiB to largest_bytes between the
/// processes, with the bus bandwidth. Throws ConfigError for a single process; otherwise as
/// run_step.
Report run_collectives(const CollectivesOptions& options);

}  // namespace stablemask::bench
