#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

/// Sections "train", "optimizer" and "schedule".
namespace stablemask {

enum class ScheduleKind { kCosine, kLinear, kWsd, kConstant };
enum class DeviceKind { kAuto, kCpu, kCuda };
enum class DtypeKind { kAuto, kFp32, kBf16 };
enum class Precision { kDtype, kBf16, kFp8 };
enum class Fp8Gradients { kE5M2, kE4M3 };
enum class NonFinitePolicy { kStop, kSkip };
enum class OptimizerKind { kAdamW, kMuon };
enum class ShardKind { kNone, kOptimizer };
enum class ReduceDtype { kFp32, kBf16 };
enum class StateDtype { kFp32, kBf16 };

struct TrainConfig {
  std::string out = "runs/default";  ///< run folder
  DeviceKind device = DeviceKind::kAuto;
  DtypeKind dtype = DtypeKind::kAuto;       ///< kAuto: bf16 on CUDA, fp32 on the CPU
  Precision precision = Precision::kDtype;  ///< of products with weights; kDtype: as dtype says
  Fp8Gradients fp8_gradients = Fp8Gradients::kE5M2;  ///< kFp8: format of the gradients
  int64_t seed = 1337;
  int64_t context = 1024;   ///< T, tokens per training sequence
  int64_t batch = 32;       ///< sequences per optimizer step
  int64_t micro_batch = 0;  ///< sequences per forward pass of a process, see resolved_micro_batch
  int64_t steps = 2000;     ///< optimizer steps; replaced where one of the next two is not 0
  double epochs = 0.0;  ///< length of the run in passes over the training data, see resolve_steps
  double tokens = 0.0;  ///< length in tokens, batch · context a step
  int64_t log_every = 10;         ///< steps; so are the next two
  int64_t eval_every = 0;         ///< 0: after the last step only
  int64_t save_every = 0;         ///< 0: not by steps
  double save_minutes = 15.0;     ///< minutes of training between checkpoints; 0: not by time
  int64_t keep_last = 2;          ///< checkpoints
  int64_t keep_every = 0;         ///< also keep the checkpoints of multiples of this step; 0: none
  bool keep_best = false;         ///< also keep the checkpoint of the lowest validation loss
  int64_t patience = 0;           ///< validations without improvement that end the run; 0: none do
  double ema_decay = 0.0;         ///< of the average of the weights; 0: there is none
  int64_t mask_warmup_steps = 0;  ///< steps in which the pseudo mass grows from 0 to the model's
  bool deterministic = false;
  bool cuda_graph = true;
  bool reference_ops = false;  ///< unfused reference implementations of every op
  bool activation_checkpointing = false;
  NonFinitePolicy non_finite = NonFinitePolicy::kStop;
  int64_t non_finite_limit = 10;  ///< kSkip: most consecutive skipped steps
  double z_loss = 0.0;
  int64_t threads = 0;        ///< CPU threads; 0: one per core
  double time_limit_s = 0.0;  ///< seconds; 0: no limit
  bool stop_on_save_error = true;
  bool tensorboard = false;                 ///< also write TensorBoard event files
  std::vector<std::string> sample_prompts;  ///< prompts continued after every validation
  ShardKind shard = ShardKind::kOptimizer;  ///< with several processes: what each has a part of
  ReduceDtype reduce_dtype = ReduceDtype::kFp32;  ///< of the gradients' sum over processes
  double peer_timeout_s = 600.0;                  ///< longest wait for another process
  std::string init_from;                          ///< finetune: checkpoint or run folder
  int64_t freeze_layers = 0;  ///< finetune: freeze the embedding and the first n blocks

  /// With 0 each of `processes` processes takes its share of the batch in one pass. See
  /// require_equal_shares.
  int64_t resolved_micro_batch(int64_t processes) const {
    return micro_batch ? micro_batch : batch / processes;
  }
  /// A ramp that fits into the run, which ends with the model's own mask.
  int64_t resolved_mask_warmup_steps() const { return std::min(mask_warmup_steps, steps); }
};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamW;
  StateDtype state = StateDtype::kFp32;  ///< number format of AdamW's moments
  double lr = 1e-3;                      ///< peak learning rate
  double momentum = 0.95;                ///< kMuon
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  ///< 0: no clipping
};

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kCosine;
  int64_t warmup_steps = 200;
  double final_lr_ratio = 0.1;  ///< learning rate of the last step / peak
  int64_t decay_steps = 0;      ///< kWsd: length of the decay; 0: steps / 5

  /// Warm-up and WSD decay that fit into a run of `steps` steps. The config keeps the stated
  /// values, so that a run that is resumed with more steps uses them in full.
  int64_t resolved_warmup_steps(int64_t steps) const { return std::min(warmup_steps, steps); }
  int64_t resolved_decay_steps(int64_t steps) const {
    return std::min(decay_steps ? decay_steps : steps / 5, steps - resolved_warmup_steps(steps));
  }
};

}  // namespace stablemask
