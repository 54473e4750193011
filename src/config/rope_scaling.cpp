#include "src/config/rope_scaling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string_view>
#include <variant>
#include <vector>

#include "stablemask/base/log.h"
#include "stablemask/base/spelling.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;
using ScalingKind = RopeScaling::Kind;

constexpr std::array<std::string_view, 3> kKinds = {"linear", "llama3", "yarn"};

struct Key {
  std::string_view name;
  std::variant<double RopeScaling::*, int64_t RopeScaling::*> member;
  double low, high;  ///< allowed values
  bool above_low;    ///< low itself is not allowed
  bool required;
  std::vector<ScalingKind> kinds;  ///< that have the key
};

/// In the order in which they are written.
const std::vector<Key>& keys() {
  static const std::vector<Key> all = {
      {"factor",
       &RopeScaling::factor,
       1,
       1e6,
       false,
       true,
       {ScalingKind::kLinear, ScalingKind::kLlama3, ScalingKind::kYarn}},
      {"original_context",
       &RopeScaling::original_context,
       1,
       1e9,
       false,
       true,
       {ScalingKind::kLlama3, ScalingKind::kYarn}},
      {"low_freq_factor",
       &RopeScaling::low_freq_factor,
       0,
       1e6,
       true,
       false,
       {ScalingKind::kLlama3}},
      {"high_freq_factor",
       &RopeScaling::high_freq_factor,
       0,
       1e6,
       true,
       false,
       {ScalingKind::kLlama3}},
      {"beta_fast", &RopeScaling::beta_fast, 0, 1e6, true, false, {ScalingKind::kYarn}},
      {"beta_slow", &RopeScaling::beta_slow, 0, 1e6, true, false, {ScalingKind::kYarn}},
      {"attention_factor",
       &RopeScaling::attention_factor,
       0,
       1e6,
       false,
       false,
       {ScalingKind::kYarn}},
  };
  return all;
}

std::vector<const Key*> keys_of(ScalingKind kind) {
  std::vector<const Key*> found;
  for (const Key& key : keys()) {
    if (std::ranges::find(key.kinds, kind) != key.kinds.end()) found.push_back(&key);
  }
  return found;
}

bool is_integer(const Key& key) {
  return std::holds_alternative<int64_t RopeScaling::*>(key.member);
}

std::string expected(const Key& key) {
  return format("expected %s %s %.15g and at most %.15g",
                is_integer(key) ? "an integer" : "a number",
                key.above_low ? "above" : "of at least", key.low, key.high);
}

/// The words of keys or kinds as a list in quotes.
template <class Names>
std::string quoted_list(const Names& names) {
  std::vector<std::string> texts;
  for (const auto& name : names) texts.push_back(in_quotes(name));
  return join(texts, ", ");
}

/// "" or what is wrong with the key "kind".
std::string read_kind(const JsonValue& object, ScalingKind* out) {
  const auto member = std::ranges::find(object.members, "kind", &JsonMember::key);
  const std::string wanted = "\"kind\" must be one of " + quoted_list(kKinds);
  if (member == object.members.end()) return wanted + "; the object does not state it";
  const auto found = std::ranges::find(kKinds, member->value.text);
  if (member->value.kind != JsonValue::Kind::kString || found == kKinds.end()) {
    return wanted + ", found " + describe(member->value);
  }
  *out = static_cast<ScalingKind>(found - kKinds.begin());
  return "";
}

std::string read_key(const Key& key, const JsonValue& value, RopeScaling* out) {
  const bool in_range = key.above_low ? value.number > key.low : value.number >= key.low;
  const bool right_type =
      is_integer(key) ? value.kind == JsonValue::Kind::kInteger : value.is_number();
  if (!right_type || !in_range || value.number > key.high) {
    return in_quotes(key.name) + ": " + expected(key) + ", found " + describe(value);
  }
  if (is_integer(key)) {
    out->*std::get<int64_t RopeScaling::*>(key.member) = value.integer;
  } else {
    out->*std::get<double RopeScaling::*>(key.member) = value.number;
  }
  return "";
}

/// "" or what is wrong with numbers that are each allowed.
std::string contradiction(const RopeScaling& scaling) {
  if (scaling.kind == ScalingKind::kLlama3 && scaling.high_freq_factor <= scaling.low_freq_factor) {
    return format("\"high_freq_factor\", %.6g, must be above \"low_freq_factor\", %.6g",
                  scaling.high_freq_factor, scaling.low_freq_factor);
  }
  if (scaling.kind == ScalingKind::kYarn && scaling.beta_fast <= scaling.beta_slow) {
    return format("\"beta_fast\", %.6g, must be above \"beta_slow\", %.6g", scaling.beta_fast,
                  scaling.beta_slow);
  }
  return "";
}

}  // namespace

std::string rope_scaling_forms() {
  std::vector<std::string> forms;
  for (size_t kind = 0; kind < kKinds.size(); ++kind) {
    std::string form = "{\"kind\": " + in_quotes(kKinds[kind]);
    for (const Key* key : keys_of(static_cast<ScalingKind>(kind)))
      form += ", " + in_quotes(key->name);
    forms.push_back(form + "}");
  }
  return join(forms, ", ");
}

std::string read_rope_scaling(const JsonValue& object, RopeScaling* out) {
  RopeScaling scaling;
  if (std::string problem = read_kind(object, &scaling.kind); !problem.empty()) return problem;
  const std::vector<const Key*> allowed = keys_of(scaling.kind);
  std::vector<std::string> names = {"kind"};
  for (const Key* key : allowed) names.emplace_back(key->name);
  std::set<std::string> seen;
  for (const JsonMember& member : object.members) {
    if (!seen.insert(member.key).second) return in_quotes(member.key) + " is stated twice";
    if (member.key == "kind") continue;
    const auto key = std::ranges::find(allowed, member.key, [](const Key* k) { return k->name; });
    if (key == allowed.end()) {
      return "unknown key " + in_quotes(member.key) + did_you_mean(member.key, names) +
             "; the keys of kind " + in_quotes(kKinds[static_cast<size_t>(scaling.kind)]) +
             " are " + quoted_list(names);
    }
    if (std::string problem = read_key(**key, member.value, &scaling); !problem.empty()) {
      return problem;
    }
  }
  for (const Key* key : allowed) {
    if (key->required && !seen.contains(std::string(key->name))) {
      return "the object needs the key " + in_quotes(key->name);
    }
  }
  if (std::string problem = contradiction(scaling); !problem.empty()) return problem;
  *out = scaling;
  return "";
}

Json rope_scaling_json(const RopeScaling& scaling) {
  if (scaling.kind == ScalingKind::kLinear) return scaling.factor;
  Json json = {{"kind", kKinds[static_cast<size_t>(scaling.kind)]}};
  for (const Key* key : keys_of(scaling.kind)) {
    std::visit([&](auto member) { json[key->name] = scaling.*member; }, key->member);
  }
  return json;
}

Json rope_scaling_schema() {
  Json forms = Json::array();
  for (size_t kind = 0; kind < kKinds.size(); ++kind) {
    Json properties = {{"kind", {{"const", kKinds[kind]}}}};
    Json required = {"kind"};
    for (const Key* key : keys_of(static_cast<ScalingKind>(kind))) {
      properties[key->name] = {{"type", is_integer(*key) ? "integer" : "number"},
                               {key->above_low ? "exclusiveMinimum" : "minimum", key->low},
                               {"maximum", key->high}};
      if (key->required) required.push_back(key->name);
    }
    forms.push_back({{"type", "object"},
                     {"properties", std::move(properties)},
                     {"required", std::move(required)},
                     {"additionalProperties", false}});
  }
  return {{"anyOf", std::move(forms)}};
}

}  // namespace stablemask
