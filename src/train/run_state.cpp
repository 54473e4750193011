#include "src/train/run_state.h"

#include <nlohmann/json.hpp>
#include <set>

#include "stablemask/base/error.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

/// 0: without a "version" field.
constexpr int64_t kVersion = 2;

/// Calls visit(name, field, version that added it) for every field.
template <class State, class Visit>
void for_each_field(State& state, Visit&& visit) {
  visit("step", state.step, 0);
  visit("tokens", state.tokens, 0);
  visit("skipped", state.skipped, 0);
  visit("skipped_in_a_row", state.skipped_in_a_row, 0);
  visit("validation_pending", state.validation_pending, 0);
  visit("line_pending", state.line_pending, 0);
  visit("loss", state.loss, 0);
  visit("grad_norm", state.grad_norm, 0);
  visit("valid_loss", state.valid_loss, 0);
  visit("valid_word_ppl", state.valid_word_ppl, 0);
  visit("seconds", state.seconds, 0);
  visit("train_sha256", state.train_sha256, 0);
  visit("lr", state.lr, 1);
  visit("loss_sum", state.loss_sum, 2);
  visit("loss_tokens", state.loss_tokens, 2);
}

/// Each returns "" or what the value should be.
std::string read_field(const Json& json, int64_t& field) {
  if (!json.is_number_integer()) return "an integer";
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) return "less than 2^63";
  field = json.get<int64_t>();
  return field < 0 ? "at least 0" : "";
}
std::string read_field(const Json& json, bool& field) {
  if (!json.is_boolean()) return "true or false";
  field = json.get<bool>();
  return "";
}
std::string read_field(const Json& json, double& field) {
  // JSON has no NaN and no infinity; null stands for them.
  if (!json.is_null() && !json.is_number()) return "a number or null";
  field = json.is_null() ? RunState::kNone : json.get<double>();
  return "";
}
std::string read_field(const Json& json, std::string& field) {
  if (!json.is_string()) return "a string";
  field = json.get<std::string>();
  return "";
}

int64_t version_of(const Json& json, const std::string& name) {
  if (!json.contains("version")) return 0;
  int64_t version = 0;
  const std::string wanted = read_field(json["version"], version);
  if (!wanted.empty()) throw CheckpointError(name + ": version: must be " + wanted);
  if (version > kVersion) {
    throw CheckpointError(format(
        "%s: has version %lld; this program reads up to version %lld: use a newer stablemask",
        name.c_str(), static_cast<long long>(version), static_cast<long long>(kVersion)));
  }
  return version;
}

/// What contradicts something else; "" when nothing does.
std::string contradiction(const RunState& state, int64_t step) {
  if (state.step != step) {
    return format("step %lld in a checkpoint of step %lld", static_cast<long long>(state.step),
                  static_cast<long long>(step));
  }
  if (state.skipped > state.step) return "more steps skipped than done";
  if (state.skipped_in_a_row > state.skipped) return "more steps skipped in a row than in all";
  if (!(state.seconds >= 0)) return "seconds must be a number of at least 0";
  return "";
}

}  // namespace

std::string to_json(const RunState& state) {
  Json json;
  json["version"] = kVersion;
  for_each_field(state, [&](const char* name, const auto& field, int64_t) { json[name] = field; });
  return json_text(json, 2) + "\n";
}

RunState run_state_from_json(const std::string& text, const std::string& name, int64_t step) {
  const auto refuse = [&](const std::string& what) {
    throw CheckpointError(name + ": not the state of a training run: " + what);
  };
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) refuse("not a JSON object");
  const int64_t version = version_of(json, name);
  RunState state;
  std::set<std::string> known = {"version"};
  for_each_field(state, [&](const char* key, auto& field, int64_t since) {
    if (since > version) return;
    known.insert(key);
    if (!json.contains(key)) return refuse(std::string(key) + " is missing");
    const std::string wanted = read_field(json[key], field);
    if (!wanted.empty()) refuse(std::string(key) + " must be " + wanted);
  });
  for (const auto& [key, value] : json.items()) {
    if (known.count(key) == 0) refuse("unknown field \"" + key + "\"");
  }
  const std::string problem = contradiction(state, step);
  if (!problem.empty()) refuse(problem);
  return state;
}

}  // namespace stablemask
