#include "src/config/config_rules.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "stablemask/base/error.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Kind = MaskLengthSpec::Kind;
using Rules = std::vector<Contradiction>;

long long ll(int64_t value) { return value; }

constexpr int64_t kLargestSteps = 1000000000000;  // of the field table

void check_heads(const ModelConfig& model, Rules& found) {
  if (model.heads % model.resolved_kv_heads() != 0) {
    found.push_back(
        {{"/model/kv_heads", "/model/heads"},
         format("%lld does not divide model.heads, %lld", ll(model.kv_heads), ll(model.heads))});
  }
  if (model.head_dim == 0 && model.channels % model.heads != 0) {
    found.push_back(
        {{"/model/channels", "/model/heads", "/model/head_dim"},
         format("%lld is not a multiple of model.heads, %lld; change one of them or set "
                "model.head_dim",
                ll(model.channels), ll(model.heads))});
  }
}

/// Every row of a window needs a position of the table.
void check_learned_positions(const Config& config, Rules& found) {
  const ModelConfig& model = config.model;
  const bool learned = model.position == Position::kLearned;
  if (!learned && model.learned_positions != 0) {
    found.push_back({{"/model/learned_positions", "/model/position"},
                     "is used by model.position \"learned\" only; remove it"});
  }
  if (!learned) return;
  const int64_t context = config.train.context;
  const int64_t positions = model.learned_positions ? model.learned_positions : context;
  const auto require = [&](int64_t rows, const char* pointer) {
    if (rows <= positions) return;
    found.push_back({{pointer, "/model/learned_positions"},
                     format("%lld is more than the %lld positions of model.position \"learned\"; "
                            "lower it",
                            ll(rows), ll(positions))});
  };
  require(context, "/train/context");
  require(config.eval.window, "/eval/window");
}

void check_position(const ModelConfig& model, Rules& found) {
  if (model.position != Position::kRope) {
    if (model.rope_dims != 0) {
      found.push_back({{"/model/rope_dims", "/model/position"},
                       "is used by model.position \"rope\" only; remove it"});
    }
    return;
  }
  if (model.rope_scaling.kind == RopeScaling::Kind::kYarn && model.rope_theta <= 1) {
    found.push_back({{"/model/rope_theta", "/model/rope_scaling"},
                     "must be above 1 with model.rope_scaling of kind \"yarn\""});
  }
  const bool whole_head = model.rope_dims == 0;
  if (whole_head && model.head_dim == 0 && model.channels % model.heads != 0) return;
  const int64_t head_dim = model.resolved_head_dim();
  const std::vector<std::string> head_dim_pointers =
      model.head_dim ? std::vector<std::string>{"/model/head_dim"}
                     : std::vector<std::string>{"/model/channels", "/model/heads"};
  if (!whole_head && model.rope_dims > head_dim) {
    std::vector<std::string> pointers = head_dim_pointers;
    pointers.insert(pointers.begin(), "/model/rope_dims");
    found.push_back({std::move(pointers), format("%lld is more than the head dimension, %lld",
                                                 ll(model.rope_dims), ll(head_dim))});
  } else if (!whole_head && model.rope_dims % 2 != 0) {
    found.push_back(
        {{"/model/rope_dims"},
         format("%lld is odd; rotary embedding rotates pairs of dimensions", ll(model.rope_dims))});
  } else if (whole_head && head_dim % 2 != 0) {
    found.push_back({head_dim_pointers,
                     format("the head dimension, %lld, is odd; rotary embedding rotates pairs of "
                            "dimensions: make it even or set an even model.rope_dims",
                            ll(head_dim))});
  }
}

/// A list has one number, one per head, or none (gamma "slopes").
void check_per_head(const PerHead& numbers, int64_t heads, const char* pointer, Rules& found) {
  const size_t size = numbers.values.size();
  if (size <= 1 || size == static_cast<size_t>(heads)) return;
  found.push_back(
      {{pointer, "/model/heads"},
       format("%zu numbers for %lld heads; give one number, or one per head", size, ll(heads))});
}

void check_stable_mask(const Config& config, Rules& found) {
  const StableMaskConfig& mask = config.model.stable_mask;
  check_per_head(mask.gamma.value, config.model.heads, "/model/stable_mask/gamma", found);
  check_per_head(mask.p_base, config.model.heads, "/model/stable_mask/p_base", found);
  if (!mask.enabled) return;
  const std::vector<double>& gamma = mask.gamma.value.values;
  const bool some_zero =
      mask.gamma.kind == GammaSpec::Kind::kValue && std::ranges::find(gamma, 0.0) != gamma.end();
  if (some_zero && mask.mask_length.kind == Kind::kInfinite) {
    found.push_back({{"/model/stable_mask/gamma", "/model/stable_mask/mask_length"},
                     "0 with mask_length \"infinite\" gives infinite pseudo mass; use a "
                     "larger gamma or a finite mask_length"});
  }
  const bool finite =
      mask.mask_length.kind != Kind::kInfinite && mask.mask_length.kind != Kind::kSequence;
  if (some_zero && finite && mask.beyond == BeyondMask::kInfinite && !mask.learnable) {
    found.push_back({{"/model/stable_mask/gamma", "/model/stable_mask/beyond"},
                     "0 gives rows beyond the mask length infinite pseudo mass; use a "
                     "larger gamma or set model.stable_mask.beyond to \"none\""});
  }
  if (some_zero && mask.learnable) {
    found.push_back({{"/model/stable_mask/gamma", "/model/stable_mask/learnable"},
                     "0 cannot be trained; start a learnable gamma above 0"});
  }
  if (config.data.document_mask && mask.mask_length.kind == Kind::kSequence) {
    found.push_back({{"/model/stable_mask/mask_length", "/data/document_mask"},
                     "\"sequence\" cannot be used with data.document_mask; use a number or turn "
                     "data.document_mask off"});
  }
}

void check_train(const Config& config, Rules& found) {
  const TrainConfig& train = config.train;
  if (train.micro_batch != 0 && train.batch % train.micro_batch != 0) {
    found.push_back(
        {{"/train/micro_batch", "/train/batch"},
         format("%lld does not divide train.batch, %lld", ll(train.micro_batch), ll(train.batch))});
  }
  if (train.freeze_layers > config.model.layers) {
    found.push_back({{"/train/freeze_layers", "/model/layers"},
                     format("%lld is more than model.layers, %lld", ll(train.freeze_layers),
                            ll(config.model.layers)),
                     "/model/layers"});
  }
  if (train.mask_warmup_steps > 0 && !config.model.stable_mask.enabled) {
    found.push_back({{"/train/mask_warmup_steps", "/model/stable_mask/enabled"},
                     "needs model.stable_mask, the mask that the run warms up"});
  }
  if (train.freeze_layers > 0 && train.init_from.empty()) {
    found.push_back(
        {{"/train/freeze_layers", "/train/init_from"},
         "needs train.init_from: frozen blocks would keep their random initial weights"});
  }
  for (const auto& [on, pointer] : {std::pair{train.keep_best, "/train/keep_best"},
                                    std::pair{train.patience > 0, "/train/patience"}}) {
    if (on && config.data.valid.empty()) {
      found.push_back({{pointer, "/data/valid"}, "needs data.valid, the shard to validate on"});
    }
  }
  if (train.patience > 0 && train.eval_every == 0) {
    found.push_back({{"/train/patience", "/train/eval_every"},
                     "needs train.eval_every, the steps between validations"});
  }
  if (train.eval_every > 0 && config.data.valid.empty()) {
    found.push_back(
        {{"/train/eval_every", "/data/valid"}, "needs data.valid, the shard to validate on"});
  }
}

/// fp8 products need matrices whose sides are multiples of 16.
void check_fp8(const Config& config, Rules& found) {
  if (config.train.precision != Precision::kFp8) return;
  constexpr int64_t kMultiple = 16;
  const ModelConfig& model = config.model;
  if (model.lora.rank > 0) {
    found.push_back({{"/train/precision", "/lora/rank"},
                     "\"fp8\" is not for adapters; use \"dtype\" or set lora.rank to 0"});
  }
  const auto require = [&](int64_t size, std::vector<std::string> pointers, const char* what) {
    if (size % kMultiple == 0) return;
    pointers.emplace_back("/train/precision");
    found.push_back({std::move(pointers),
                     format("%s%lld is not a multiple of 16, as train.precision \"fp8\" needs it",
                            what, ll(size))});
  };
  require(model.channels, {"/model/channels"}, "");
  require(model.ffn_hidden, {"/model/ffn_hidden"}, "");
  require(config.train.context, {"/train/context"}, "");
  if (model.head_dim == 0 && model.channels % model.heads != 0) return;
  const int64_t kv_channels = model.resolved_kv_heads() * model.resolved_head_dim();
  require(model.heads * model.resolved_head_dim(), {"/model/heads", "/model/head_dim"},
          "heads x head dimension, ");
  if (model.resolved_kv_heads() != model.heads && model.heads % model.resolved_kv_heads() == 0) {
    require(kv_channels, {"/model/kv_heads", "/model/head_dim"}, "kv_heads x head dimension, ");
  }
}

void check_lora(const Config& config, Rules& found) {
  const LoraConfig& lora = config.model.lora;
  if (lora.rank == 0) return;
  if (config.train.init_from.empty()) {
    found.push_back({{"/lora/rank", "/train/init_from"},
                     "needs train.init_from: adapters are trained beside the weights of a "
                     "checkpoint, by `stablemask finetune`"});
  }
  if (config.train.freeze_layers > 0) {
    found.push_back({{"/lora/rank", "/train/freeze_layers"},
                     "freezes the whole model; remove train.freeze_layers"});
  }
  if (config.optimizer.kind == OptimizerKind::kMuon) {
    found.push_back({{"/optimizer/kind", "/lora/rank"},
                     "\"muon\" orthogonalises whole matrices, not the factors of adapters; use "
                     "\"adamw\""});
  }
  if (lora.targets.empty()) {
    found.push_back({{"/lora/targets", "/lora/rank"},
                     "is empty, so nothing would be trained; name projections or set lora.rank to "
                     "0"});
  }
  if (std::set<std::string>(lora.targets.begin(), lora.targets.end()).size() <
      lora.targets.size()) {
    found.push_back({{"/lora/targets"}, "names a projection twice; remove one of them"});
  }
}

/// Samples are drawn after validations, with a KV cache.
void check_samples(const Config& config, Rules& found) {
  if (config.train.sample_prompts.empty()) return;
  const StableMaskConfig& mask = config.model.stable_mask;
  if (config.data.valid.empty()) {
    found.push_back({{"/train/sample_prompts", "/data/valid"},
                     "needs data.valid: the prompts are continued after each validation"});
  }
  if (mask.enabled && mask.mask_length.kind == Kind::kSequence) {
    found.push_back({{"/train/sample_prompts", "/model/stable_mask/mask_length"},
                     "model.stable_mask.mask_length \"sequence\" excludes generation with a KV "
                     "cache; use a number or remove the prompts"});
  }
  if (config.model.log_length_scale) {
    found.push_back({{"/train/sample_prompts", "/model/log_length_scale"},
                     "model.log_length_scale excludes generation with a KV cache; turn it off or "
                     "remove the prompts"});
  }
}

void check_schedule(const ScheduleConfig& schedule, Rules& found) {
  if (schedule.kind != ScheduleKind::kWsd && schedule.decay_steps != 0) {
    found.push_back({{"/schedule/decay_steps", "/schedule/kind"},
                     "is used by schedule.kind \"wsd\" only; remove it"});
  }
}

/// The length is stated in one unit, and the tokens of a run are counted in 63 bits.
void check_run_length(const TrainConfig& train, Rules& found) {
  std::vector<std::string> stated;
  if (train.epochs > 0) stated.emplace_back("/train/epochs");
  if (train.tokens > 0) stated.emplace_back("/train/tokens");
  if (train.steps > 0) stated.emplace_back("/train/steps");
  if (stated.empty()) {
    found.push_back({{"/train/steps"},
                     format("expected an integer from 1 to %lld, found 0", ll(kLargestSteps)) +
                         "; the length of the run is train.steps, train.epochs or train.tokens"});
  } else if (stated.size() > 1) {
    found.push_back({std::move(stated),
                     "the length of the run is stated twice; keep one of train.steps, "
                     "train.epochs and train.tokens"});
  }
  int64_t tokens = 0;
  if (!__builtin_mul_overflow(train.batch, train.context, &tokens) &&
      !__builtin_mul_overflow(tokens, train.steps, &tokens)) {
    return;
  }
  found.push_back({{"/train/steps", "/train/batch", "/train/context"},
                   format("train.batch * train.context * train.steps = %lld * %lld * %lld = %.4g "
                          "tokens, more than the %.4g that can be counted; lower one of them",
                          ll(train.batch), ll(train.context), ll(train.steps),
                          static_cast<double>(train.batch) * static_cast<double>(train.context) *
                              static_cast<double>(train.steps),
                          static_cast<double>(std::numeric_limits<int64_t>::max()))});
}

void check_eval(const Config& config, Rules& found) {
  const int64_t window = config.eval.window ? config.eval.window : config.train.context;
  if (config.eval.stride > window) {
    found.push_back(
        {{"/eval/stride", config.eval.window ? "/eval/window" : "/train/context"},
         format("%lld is more than the window, %lld: some tokens would not be scored; lower it",
                ll(config.eval.stride), ll(window))});
  }
}

}  // namespace

void resolve(Config& config) {
  MaskLengthSpec& length = config.model.stable_mask.mask_length;
  if (length.kind == Kind::kContext) length = {Kind::kFixed, config.train.context};
  int64_t& positions = config.model.learned_positions;
  if (config.model.position == Position::kLearned && positions == 0) {
    positions = config.train.context;
  }
  config.model.stable_mask.gamma = config.model.resolved_gamma();
  if (config.eval.window == 0) config.eval.window = config.train.context;
}

void resolve_steps(TrainConfig& train, int64_t sequences) {
  if (train.epochs <= 0 && train.tokens <= 0) return;
  if (train.epochs > 0 && train.tokens > 0) {
    throw ConfigError(
        "/train/epochs: the length of the run is stated twice; keep one of train.epochs and "
        "train.tokens");
  }
  const auto batch = static_cast<double>(train.batch);
  const double length = train.epochs > 0
                            ? train.epochs * static_cast<double>(sequences) / batch
                            : train.tokens / batch / static_cast<double>(train.context);
  // 0.1 · 30 is a little more than 3 in floating point.
  constexpr double kRounding = 1e-12;
  const double steps = std::max(1.0, std::ceil(length * (1 - kRounding)));
  const char* field = train.epochs > 0 ? "epochs" : "tokens";
  const double tokens = steps * batch * static_cast<double>(train.context);
  if (steps > static_cast<double>(kLargestSteps) ||
      tokens >= static_cast<double>(std::numeric_limits<int64_t>::max())) {
    throw ConfigError(
        format("/train/%s: makes %.4g steps of %.4g tokens, more than a run can "
               "have; lower it",
               field, steps, batch * static_cast<double>(train.context)));
  }
  train.steps = static_cast<int64_t>(steps);
  train.epochs = train.tokens = 0;
}

void require_equal_shares(const TrainConfig& train, int64_t processes) {
  const int64_t unit = std::max<int64_t>(1, train.micro_batch) * processes;
  if (train.batch % unit == 0) return;
  std::vector<std::string> remedies;
  if (train.micro_batch > 1 && train.batch % processes == 0) {
    // The largest smaller micro-batch of which each process gets a whole number.
    int64_t smaller = train.micro_batch - 1;
    while (train.batch / processes % smaller != 0) --smaller;
    remedies.push_back(format("train.micro_batch %lld", ll(smaller)));
  }
  const int64_t below = train.batch / unit * unit;
  if (below > 0) remedies.push_back(format("train.batch %lld", ll(below)));
  remedies.push_back(format("train.batch %lld", ll(below + unit)));
  const std::string passes =
      train.micro_batch ? format(" of micro-batches of %lld", ll(train.micro_batch)) : "";
  throw ConfigError(format("/train/batch: %lld sequences are not equal shares%s for %lld "
                           "process%s; use ",
                           ll(train.batch), passes.c_str(), ll(processes),
                           processes == 1 ? "" : "es") +
                    join(remedies, " or ") + ", or another number of processes");
}

std::vector<std::string> config_warnings(const Config& config) {
  const ScheduleConfig& schedule = config.schedule;
  const int64_t steps = config.train.steps;
  if (steps == 0) return {};  // not known before resolve_steps
  const int64_t warmup = schedule.resolved_warmup_steps(steps);
  const int64_t decay = schedule.resolved_decay_steps(steps);
  std::vector<std::string> warnings;
  if (warmup < schedule.warmup_steps) {
    warnings.push_back(
        format("schedule.warmup_steps %lld is more than train.steps %lld: warm-up "
               "shortened to %lld steps",
               ll(schedule.warmup_steps), ll(steps), ll(warmup)));
  }
  if (schedule.kind == ScheduleKind::kWsd && decay < schedule.decay_steps) {
    warnings.push_back(
        format("schedule.decay_steps %lld is more than the %lld steps after the "
               "warm-up: decay shortened to %lld steps",
               ll(schedule.decay_steps), ll(steps - warmup), ll(decay)));
  }
  const int64_t ramp = config.train.resolved_mask_warmup_steps();
  if (ramp < config.train.mask_warmup_steps) {
    warnings.push_back(
        format("train.mask_warmup_steps %lld is more than train.steps %lld: mask warm-up "
               "shortened to %lld steps",
               ll(config.train.mask_warmup_steps), ll(steps), ll(ramp)));
  }
  return warnings;
}

std::vector<Contradiction> find_contradictions(const Config& config) {
  std::vector<Contradiction> found;
  check_heads(config.model, found);
  check_position(config.model, found);
  check_learned_positions(config, found);
  check_stable_mask(config, found);
  check_train(config, found);
  check_lora(config, found);
  check_fp8(config, found);
  check_samples(config, found);
  check_run_length(config.train, found);
  check_schedule(config.schedule, found);
  check_eval(config, found);
  return found;
}

}  // namespace stablemask
