#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stablemask {

enum class Position { kRope, kAlibi, kNone };
enum class FfnKind { kSwiglu, kGelu };
enum class NormKind { kRms, kLayer };
enum class AttentionBackend { kAuto, kReference, kFlash };
enum class ScheduleKind { kCosine, kLinear, kWsd, kConstant };
enum class DeviceKind { kAuto, kCpu, kCuda };
enum class DtypeKind { kAuto, kFp32, kBf16 };
enum class NonFinitePolicy { kStop, kSkip };
enum class VerifyKind { kPayload, kHeaders };
enum class OptimizerKind { kAdamW };

/// One number for all heads, or one per head.
struct PerHead {
  std::vector<double> values;  ///< size 1 or H
};

/// gamma: the decay of the pseudo scores per position, per head.
struct GammaSpec {
  bool slopes = true;  ///< ALiBi's geometric slopes; then `value` is unused
  PerHead value;
};

/// N, the length after which a row has no pseudo slots left.
struct MaskLengthSpec {
  enum class Kind { kContext, kFixed, kInfinite, kSequence };
  Kind kind = Kind::kContext;  ///< kContext: the training context length; resolved to kFixed
  int64_t length = 0;          ///< kFixed only
};

struct StableMaskConfig {
  bool enabled = true;
  GammaSpec gamma;
  PerHead p_base{{0.0}};
  MaskLengthSpec mask_length;
  bool learnable = false;
};

struct ModelConfig {
  std::string preset;      ///< "", "71m", "160m", "400m", "1.4b": defaults for the five sizes below
  int64_t vocab_size = 0;  ///< 0: taken from the tokenizer
  int64_t layers = 6;
  int64_t channels = 512;
  int64_t heads = 8;
  int64_t kv_heads = 0;  ///< 0: equal to heads
  int64_t head_dim = 0;  ///< 0: channels / heads
  int64_t ffn_hidden = 1536;
  FfnKind ffn = FfnKind::kSwiglu;
  NormKind norm = NormKind::kRms;
  double norm_eps = 1e-5;
  bool qk_norm = false;
  bool tied_head = false;
  Position position = Position::kRope;
  double rope_theta = 10000.0;
  int64_t rope_dims = 0;  ///< 0: the whole head
  int64_t window = 0;     ///< keys a row may see, itself included; 0: all
  bool log_length_scale = false;
  double init_std = 0.02;
  AttentionBackend attention = AttentionBackend::kAuto;
  StableMaskConfig stable_mask;

  int64_t resolved_kv_heads() const { return kv_heads ? kv_heads : heads; }
  int64_t resolved_head_dim() const { return head_dim ? head_dim : channels / heads; }
  int64_t resolved_rope_dims() const { return rope_dims ? rope_dims : resolved_head_dim(); }
};

struct DataConfig {
  std::vector<std::string> train;  ///< token shards
  std::string valid;               ///< token shard
  std::string tokenizer;           ///< SentencePiece .model
  bool document_mask = false;
  int64_t prefetch = 4;                      ///< micro-batches prepared ahead of the training step
  VerifyKind verify = VerifyKind::kPayload;  ///< how much of each shard is checked at the start
};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  ///< 0: no clipping
};

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kCosine;
  int64_t warmup_steps = 200;
  double final_lr_ratio = 0.1;  ///< lr at the last step / peak lr
  int64_t decay_steps = 0;      ///< WSD: length of the final linear decay; 0: a fifth of the run
};

struct TrainConfig {
  std::string out = "runs/default";  ///< run folder
  DeviceKind device = DeviceKind::kAuto;
  DtypeKind dtype = DtypeKind::kAuto;  ///< auto: bf16 on CUDA, fp32 on CPU
  int64_t seed = 1337;
  int64_t context = 1024;   ///< T, tokens in a training sequence
  int64_t batch = 32;       ///< sequences per optimizer step
  int64_t micro_batch = 0;  ///< sequences per forward; 0: batch. Divides batch
  int64_t steps = 2000;
  int64_t log_every = 10;
  int64_t eval_every = 0;      ///< 0: at the end only
  int64_t save_every = 0;      ///< steps between checkpoints; 0: not by steps
  double save_minutes = 15.0;  ///< minutes of training between checkpoints; 0: not by time
  int64_t keep_last = 2;
  int64_t keep_every = 0;  ///< also keep checkpoints at multiples of this; 0: none
  bool deterministic = false;
  bool cuda_graph = true;                 ///< record the step once and replay it
  bool reference_ops = false;             ///< no fused kernel: ops/reference.h throughout
  bool activation_checkpointing = false;  ///< backward recomputes each block: less memory, slower
  NonFinitePolicy non_finite = NonFinitePolicy::kStop;
  int64_t non_finite_limit = 10;  ///< skip: consecutive steps that may be skipped
  double z_loss = 0.0;
  int64_t threads = 0;        ///< CPU threads; 0: all cores
  double time_limit_s = 0.0;  ///< 0: none; saves and ends like a signal, exit 0
  bool stop_on_save_error = true;
  std::string init_from;      ///< finetune: checkpoint folder
  int64_t freeze_layers = 0;  ///< finetune: embedding and the first n blocks stay as they are
};

struct EvalConfig {
  int64_t window = 0;  ///< L; 0: the training context
  int64_t stride = 0;  ///< S; 0: L (non-overlapping)
  int64_t batch = 0;   ///< windows per forward; 0: chosen
};

struct GenerateConfig {
  int64_t max_tokens = 128;
  double temperature = 1.0;  ///< 0: greedy
  int64_t top_k = 0;
  double top_p = 1.0;
  int64_t seed = 1;
};

/// Everything a run depends on. A config file holds only what differs from these defaults.
struct Config {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  EvalConfig eval;
  GenerateConfig generate;
};

/// One problem of a config, ready to print.
struct ConfigIssue {
  std::string pointer;  ///< JSON pointer, "/model/heads"
  int64_t line = 0;     ///< 1-based; 0 when the value came from --set or from a default
  int64_t column = 0;
  std::string message;  ///< value, allowed range, did-you-mean
};

/// Parses strict JSON, applies `overrides` ("path.to.field=value", typed by the field table) and
/// the model preset, validates, and resolves what can be resolved without other files (mask length,
/// micro batch, window). Throws ConfigError with every issue, one per line
/// (`FILE:LINE:COL: /pointer: message`).
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {});

/// As load_config, from text; `name` stands for the path in messages.
Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& overrides = {});

/// Every field with its value, as JSON that parse_config reads back to an equal config.
std::string dump_config(const Config& config);

/// JSON Schema (draft 2020-12) generated from the field table.
std::string config_schema();

/// Markdown table of every field: name, type, default, range, meaning.
std::string config_reference();

/// Fields that must not change on resume and differ, one line each: "/model/heads: 8 -> 12".
std::vector<std::string> frozen_differences(const Config& saved, const Config& now);

}  // namespace stablemask
