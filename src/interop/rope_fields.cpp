#include "src/interop/rope_fields.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace stablemask::interop {
namespace {

using Json = nlohmann::ordered_json;
using ScalingKind = RopeScaling::Kind;

constexpr double kDefaultTheta = 10000.0;
constexpr const char* kOriginalContext = "original_max_position_embeddings";
constexpr const char* kPartial = "partial_rotary_factor";

struct Rope {
  double theta = kDefaultTheta;
  double partial = 1.0;
  RopeScaling scaling;
};

double required_number(FieldReader& fields, const char* key) {
  if (!fields.has(key)) fields.refuse(key, "is missing");
  return fields.number(key, 0.0);
}

void read_yarn(FieldReader& fields, RopeScaling& scaling) {
  scaling.beta_fast = fields.number("beta_fast", scaling.beta_fast);
  scaling.beta_slow = fields.number("beta_slow", scaling.beta_slow);
  scaling.attention_factor = fields.number("attention_factor", scaling.attention_factor);
  fields.require_flag("truncate", true, "must be true: the pairs are rounded");
  for (const char* key : {"mscale", "mscale_all_dim"}) {
    if (fields.has(key)) fields.refuse(key, "is not supported; state attention_factor");
  }
}

RopeScaling read_scaling(FieldReader& fields, int64_t context) {
  RopeScaling scaling;
  // transformers 4 had "type" before "rope_type" and writes both.
  const char* key = fields.has("rope_type") ? "rope_type" : "type";
  const std::string type = fields.text(key, "default");
  fields.skip({"type"});
  if (type == "default") return scaling;
  if (type != "linear" && type != "llama3" && type != "yarn") {
    fields.refuse(key, "is not supported; supported are default, linear, llama3 and yarn");
  }
  scaling.factor = required_number(fields, "factor");
  if (type == "linear") return scaling;
  scaling.original_context = fields.size(kOriginalContext, context);
  if (type == "llama3") {
    scaling.kind = ScalingKind::kLlama3;
    scaling.low_freq_factor = required_number(fields, "low_freq_factor");
    scaling.high_freq_factor = required_number(fields, "high_freq_factor");
  } else {
    scaling.kind = ScalingKind::kYarn;
    read_yarn(fields, scaling);
  }
  return scaling;
}

/// Of an object rope_parameters or rope_scaling.
Rope read_object(FieldReader fields, const Rope& outer, int64_t context) {
  Rope rope;
  rope.theta = fields.number("rope_theta", outer.theta);
  rope.partial = fields.number(kPartial, outer.partial);
  rope.scaling = read_scaling(fields, context);
  fields.finish();
  return rope;
}

Json scaling_json(const RopeScaling& scaling) {
  if (scaling.kind == ScalingKind::kLinear) {
    if (scaling.factor == 1.0) return {{"rope_type", "default"}};
    return {{"rope_type", "linear"}, {"factor", scaling.factor}};
  }
  const bool llama = scaling.kind == ScalingKind::kLlama3;
  Json json = {{"rope_type", llama ? "llama3" : "yarn"},
               {"factor", scaling.factor},
               {kOriginalContext, scaling.original_context}};
  if (llama) {
    json["low_freq_factor"] = scaling.low_freq_factor;
    json["high_freq_factor"] = scaling.high_freq_factor;
    return json;
  }
  const RopeScaling defaults;
  const auto add = [&](const char* key, double value, double usual) {
    if (value != usual) json[key] = value;
  };
  add("beta_fast", scaling.beta_fast, defaults.beta_fast);
  add("beta_slow", scaling.beta_slow, defaults.beta_slow);
  add("attention_factor", scaling.attention_factor, defaults.attention_factor);
  return json;
}

bool same(const Rope& a, const Rope& b) {
  return a.theta == b.theta && a.partial == b.partial &&
         scaling_json(a.scaling) == scaling_json(b.scaling);
}

int64_t rotated(double partial, int64_t head_dim) {
  return static_cast<int64_t>(static_cast<double>(head_dim) * partial);
}

}  // namespace

void read_rope(FieldReader& fields, ExternalModel& external, const RopeNames& names) {
  const bool partial_allowed = names.default_partial > 0;
  Rope rope;
  const bool stated = fields.has(names.theta) || fields.has("rope_scaling");
  rope.theta = fields.number(names.theta, kDefaultTheta);
  rope.partial = fields.number(names.partial, partial_allowed ? names.default_partial : 1.0);
  const Rope outer = rope;
  if (const auto scaling = fields.object("rope_scaling")) {
    rope = read_object(*scaling, outer, external.context);
  }
  if (const auto parameters = fields.object("rope_parameters")) {
    const Rope newer = read_object(*parameters, outer, external.context);
    if (stated && !same(newer, rope)) {
      fields.refuse("rope_parameters",
                    std::string("differs from ") + names.theta + " and rope_scaling");
    }
    rope = newer;
  }
  ModelConfig& model = external.model;
  const int64_t dims = rotated(rope.partial, model.resolved_head_dim());
  const bool fits = dims >= 2 && dims % 2 == 0 && rope.partial <= 1.0;
  if (partial_allowed ? !fits : rope.partial != 1.0) {
    fields.refuse(fields.has("rope_parameters") ? "rope_parameters" : names.partial,
                  partial_allowed ? "must rotate an even number of a head's dimensions"
                                  : "must rotate all dimensions of a head in this family");
  }
  model.position = Position::kRope;
  model.rope_theta = rope.theta;
  model.rope_scaling = rope.scaling;
  model.rope_dims = dims;
}

void write_rope(const ExternalModel& external, Json& json, const RopeNames& names) {
  const ModelConfig& model = external.model;
  const Json scaling = scaling_json(model.rope_scaling);
  Json parameters = scaling;
  parameters["rope_theta"] = model.rope_theta;
  json[names.theta] = model.rope_theta;
  if (names.default_partial > 0) {
    const double partial = static_cast<double>(model.resolved_rope_dims()) /
                           static_cast<double>(model.resolved_head_dim());
    parameters[kPartial] = partial;
    json[names.partial] = partial;
  }
  json["rope_scaling"] = scaling.at("rope_type") == "default" ? Json(nullptr) : scaling;
  json["rope_parameters"] = parameters;
}

}  // namespace stablemask::interop
