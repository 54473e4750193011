#include "src/commands/model_report.h"

#include <algorithm>

#include "stablemask/base/log.h"
#include "stablemask/base/text.h"
#include "stablemask/nn/parameters.h"

namespace stablemask::commands {
namespace {

using Json = nlohmann::ordered_json;

std::string number_text(double value) { return format("%.6g", value); }

std::string per_head_text(const PerHead& numbers) {
  std::vector<std::string> texts;
  for (const double number : numbers.values) texts.push_back(number_text(number));
  return texts.size() == 1 ? texts[0] : "[" + join(texts, " ") + "]";
}

std::string rope_scaling_text(const RopeScaling& scaling) {
  const std::string factor = number_text(scaling.factor);
  switch (scaling.kind) {
    case RopeScaling::Kind::kLlama3:
      return ", frequencies changed as in Llama 3.1, factor " + factor;
    case RopeScaling::Kind::kYarn:
      return ", frequencies changed as in YaRN, factor " + factor;
    case RopeScaling::Kind::kLinear:
      break;
  }
  return scaling.factor == 1 ? "" : ", positions divided by " + factor;
}

std::string position_text(const ModelConfig& model) {
  if (model.position == Position::kNone) return "no position encoding";
  if (model.position == Position::kAlibi) return "ALiBi";
  if (model.position == Position::kLearned) {
    return format("%lld learned positions", static_cast<long long>(model.learned_positions));
  }
  return "RoPE, theta " + number_text(model.rope_theta) + rope_scaling_text(model.rope_scaling);
}

std::string mask_length_text(const StableMaskConfig& mask) {
  switch (mask.mask_length.kind) {
    case MaskLengthSpec::Kind::kInfinite:
      return "infinite";
    case MaskLengthSpec::Kind::kSequence:
      return "of each window";
    default:
      return format("%lld, beyond it ", static_cast<long long>(mask.mask_length.length)) +
             (mask.beyond == BeyondMask::kInfinite ? "the mass of an infinite one"
                                                   : "no pseudo mass");
  }
}

std::string mask_text(const ModelConfig& model) {
  const StableMaskConfig& mask = model.stable_mask;
  if (!mask.enabled) return "causal, no StableMask";
  const GammaSpec gamma = model.resolved_gamma();
  const std::string gamma_text =
      gamma.kind == GammaSpec::Kind::kSlopes ? "slopes" : per_head_text(gamma.value);
  return "StableMask, " +
         (mask.learnable ? "gamma and p_base learned"
                         : "gamma " + gamma_text + ", p_base " + per_head_text(mask.p_base)) +
         ", mask length " + mask_length_text(mask);
}

}  // namespace

bool has_rows_beyond(const ModelConfig& model, int64_t rows) {
  const StableMaskConfig& mask = model.stable_mask;
  return mask.enabled && mask.mask_length.kind == MaskLengthSpec::Kind::kFixed &&
         rows > mask.mask_length.length;
}

bool warn_rows_without_mass(const ModelConfig& model, const std::vector<std::string>& overrides,
                            int64_t rows) {
  const StableMaskConfig& mask = model.stable_mask;
  if (!has_rows_beyond(model, rows) || mask.beyond != BeyondMask::kNone) return false;
  const bool chosen = std::ranges::any_of(overrides, [](const std::string& field) {
    return field.starts_with("model.stable_mask.beyond=");
  });
  if (chosen) return false;
  log_warning(
      format("rows from %lld on, the mask length, lose their pseudo mass: the checkpoint's config "
             "has model.stable_mask.beyond \"none\", as all older versions of the program; --set "
             "model.stable_mask.beyond=infinite or --mask-length infinite keeps it",
             static_cast<long long>(mask.mask_length.length)));
  return true;
}

void warn_long_text(const Config& config, const std::vector<std::string>& overrides,
                    int64_t tokens) {
  const int64_t context = config.train.context, window = config.model.window;
  nn::require_positions(config.model, tokens);
  if (warn_rows_without_mass(config.model, overrides, tokens) || tokens <= context) return;
  if (config.model.position == Position::kAlibi || (window > 0 && window <= context)) return;
  log_warning(
      format("the text can reach %lld tokens, but the model was trained on %lld and writes "
             "worse from there on; --attention-window %lld lets each token see the last "
             "%lld only, or lower --max-tokens",
             static_cast<long long>(tokens), static_cast<long long>(context),
             static_cast<long long>(context), static_cast<long long>(context)));
}

void add_model_fields(const Config& config, Json& json) {
  const Json model = Json::parse(dump_config(config))["model"];
  json["mask"] = model["stable_mask"];
  json["attention_window"] = model["window"];
  for (const char* field : {"position", "rope_theta", "rope_scaling"}) json[field] = model[field];
  json["context"] = config.train.context;
}

std::string model_lines(const Config& config) {
  const int64_t window = config.model.window;
  return "model      " + position_text(config.model) + "; rows see " +
         (window == 0 ? "all tokens before them"
                      : format("the last %lld tokens", static_cast<long long>(window))) +
         format("; trained on %lld tokens\n", static_cast<long long>(config.train.context)) +
         "mask       " + mask_text(config.model) + "\n";
}

}  // namespace stablemask::commands
