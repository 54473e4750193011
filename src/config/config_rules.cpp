#include "src/config/config_rules.h"

#include <algorithm>

#include "stablemask/base/log.h"

namespace stablemask {
namespace {

using Kind = MaskLengthSpec::Kind;
using Rules = std::vector<Contradiction>;

long long ll(int64_t value) { return value; }

void check_heads(const ModelConfig& model, Rules& found) {
  if (model.heads % model.resolved_kv_heads() != 0) {
    found.push_back(
        {{"/model/kv_heads", "/model/heads"},
         format("%lld does not divide model.heads, %lld", ll(model.kv_heads), ll(model.heads))});
  }
  if (model.head_dim == 0 && model.channels % model.heads != 0) {
    found.push_back({{"/model/channels", "/model/heads", "/model/head_dim"},
                     format("%lld is not a multiple of model.heads, %lld; change one of them or "
                            "state model.head_dim",
                            ll(model.channels), ll(model.heads))});
  }
}

void check_position(const ModelConfig& model, Rules& found) {
  if (model.position != Position::kRope) {
    if (model.rope_dims != 0) {
      found.push_back({{"/model/rope_dims", "/model/position"},
                       "has no meaning unless model.position is \"rope\"; remove it"});
    }
    return;
  }
  const bool whole_head = model.rope_dims == 0;
  if (whole_head && model.head_dim == 0 && model.channels % model.heads != 0) return;
  const int64_t head_dim = model.resolved_head_dim();
  if (!whole_head && model.rope_dims > head_dim) {
    found.push_back(
        {{"/model/rope_dims", "/model/head_dim", "/model/channels", "/model/heads"},
         format("%lld is more than the head dimension, %lld", ll(model.rope_dims), ll(head_dim))});
  } else if (model.resolved_rope_dims() % 2 != 0) {
    found.push_back(
        {{whole_head ? "/model/head_dim" : "/model/rope_dims", "/model/channels", "/model/heads"},
         format("%lld rotated dimensions are an odd number; rotary embedding turns pairs",
                ll(model.resolved_rope_dims()))});
  }
}

/// A list is empty (all heads alike by another rule), of one number, or of one for each head.
void check_per_head(const PerHead& numbers, int64_t heads, const char* pointer, Rules& found) {
  const size_t size = numbers.values.size();
  if (size <= 1 || size == static_cast<size_t>(heads)) return;
  found.push_back(
      {{pointer, "/model/heads"},
       format("%zu numbers for %lld heads; state one for each or one for all", size, ll(heads))});
}

void check_stable_mask(const Config& config, Rules& found) {
  const StableMaskConfig& mask = config.model.stable_mask;
  check_per_head(mask.gamma.value, config.model.heads, "/model/stable_mask/gamma", found);
  check_per_head(mask.p_base, config.model.heads, "/model/stable_mask/p_base", found);
  if (!mask.enabled) return;
  const std::vector<double>& gamma = mask.gamma.value.values;
  const bool some_zero =
      !mask.gamma.slopes && std::find(gamma.begin(), gamma.end(), 0.0) != gamma.end();
  if (some_zero && mask.mask_length.kind == Kind::kInfinite) {
    found.push_back({{"/model/stable_mask/gamma", "/model/stable_mask/mask_length"},
                     "0 with the mask length \"infinite\" gives infinite pseudo mass; take a "
                     "number > 0 or a finite mask length"});
  }
  if (some_zero && mask.learnable) {
    found.push_back({{"/model/stable_mask/gamma", "/model/stable_mask/learnable"},
                     "0 cannot be learnt from: a learnable gamma starts > 0"});
  }
  if (config.data.document_mask && mask.mask_length.kind == Kind::kSequence) {
    found.push_back({{"/model/stable_mask/mask_length", "/data/document_mask"},
                     "\"sequence\" has no meaning within documents; take a number or turn "
                     "data.document_mask off"});
  }
}

void check_train(const Config& config, Rules& found) {
  const TrainConfig& train = config.train;
  if (train.batch % train.micro_batch != 0) {
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
  if (train.freeze_layers > 0 && train.init_from.empty()) {
    found.push_back({{"/train/freeze_layers", "/train/init_from"},
                     "frozen layers would stay random without train.init_from"});
  }
  if (train.eval_every > 0 && config.data.valid.empty()) {
    found.push_back({{"/train/eval_every", "/data/valid"},
                     "there is nothing to validate on; state data.valid"});
  }
}

void check_schedule(const Config& config, Rules& found) {
  const ScheduleConfig& schedule = config.schedule;
  const int64_t steps = config.train.steps;
  if (schedule.warmup_steps > steps) {
    found.push_back(
        {{"/schedule/warmup_steps", "/train/steps"},
         format("%lld is more than train.steps, %lld", ll(schedule.warmup_steps), ll(steps))});
  } else if (schedule.kind == ScheduleKind::kWsd &&
             schedule.decay_steps > steps - schedule.warmup_steps) {
    found.push_back({{"/schedule/decay_steps", "/schedule/warmup_steps", "/train/steps"},
                     format("%lld is more than the %lld steps that the warm-up leaves",
                            ll(schedule.decay_steps), ll(steps - schedule.warmup_steps))});
  }
  if (schedule.kind != ScheduleKind::kWsd && schedule.decay_steps != 0) {
    found.push_back({{"/schedule/decay_steps", "/schedule/kind"},
                     "has no meaning unless schedule.kind is \"wsd\"; remove it"});
  }
}

void check_eval(const EvalConfig& eval, Rules& found) {
  if (eval.stride > eval.window) {
    found.push_back({{"/eval/stride", "/eval/window"},
                     format("%lld is more than the window, %lld: tokens would be left out",
                            ll(eval.stride), ll(eval.window))});
  }
}

}  // namespace

void resolve(Config& config) {
  MaskLengthSpec& length = config.model.stable_mask.mask_length;
  if (length.kind == Kind::kContext) length = {Kind::kFixed, config.train.context};
  if (config.train.micro_batch == 0) config.train.micro_batch = config.train.batch;
  if (config.eval.window == 0) config.eval.window = config.train.context;
}

std::vector<Contradiction> find_contradictions(const Config& config) {
  std::vector<Contradiction> found;
  check_heads(config.model, found);
  check_position(config.model, found);
  check_stable_mask(config, found);
  check_train(config, found);
  check_schedule(config, found);
  check_eval(config.eval, found);
  return found;
}

}  // namespace stablemask
