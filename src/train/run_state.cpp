#include "src/train/run_state.h"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"
#include "stablemask/base/json_source.h"
#include "stablemask/base/json_text.h"
#include "stablemask/base/log.h"
#include "stablemask/base/text.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

/// 0: without a "version" field.
constexpr int64_t kVersion = 3;

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
  visit("valid_tokens", state.valid_tokens, 3);
  visit("best_loss", state.best_loss, 3);
  visit("best_step", state.best_step, 3);
  visit("stale_validations", state.stale_validations, 3);
}

/// Each returns "" or what the value should be.
std::string read_field(const JsonValue& json, int64_t& field) {
  if (json.kind != JsonValue::Kind::kInteger) {
    const bool digits = json.kind == JsonValue::Kind::kNumber &&
                        json.text.find_first_not_of("0123456789") == std::string::npos;
    return digits ? "less than 2^63" : "an integer";
  }
  field = json.integer;
  return field < 0 ? "at least 0" : "";
}
std::string read_field(const JsonValue& json, bool& field) {
  if (json.kind != JsonValue::Kind::kBool) return "true or false";
  field = json.boolean;
  return "";
}
std::string read_field(const JsonValue& json, double& field) {
  // JSON has no NaN and no infinity; null stands for them.
  const bool none = json.kind == JsonValue::Kind::kNull;
  if (!none && !json.is_number()) return "a number or null";
  field = none ? RunState::kNone : json.number;
  return "";
}
std::string read_field(const JsonValue& json, std::string& field) {
  if (json.kind != JsonValue::Kind::kString) return "a string";
  field = json.text;
  return "";
}

using Members = std::map<std::string, const JsonValue*>;

int64_t version_of(const Members& members, const std::string& name) {
  const auto found = members.find("version");
  if (found == members.end()) return 0;
  int64_t version = 0;
  const std::string wanted = read_field(*found->second, version);
  if (!wanted.empty()) throw CheckpointError(name + ": version: must be " + wanted);
  if (version > kVersion) {
    throw CheckpointError(format(
        "%s: has version %lld; this program reads up to version %lld: use a newer stablemask",
        name.c_str(), static_cast<long long>(version), static_cast<long long>(kVersion)));
  }
  return version;
}

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

/// What contradicts something else; "" when nothing does.
std::string contradiction(const RunState& state, int64_t step) {
  if (state.step != step) {
    return format("step %lld in a checkpoint of step %lld", static_cast<long long>(state.step),
                  static_cast<long long>(step));
  }
  if (state.skipped > state.step) return "more steps skipped than done";
  if (state.skipped_in_a_row > state.skipped) return "more steps skipped in a row than in all";
  if (state.loss_tokens > state.tokens) return "loss_tokens is more than tokens";
  if (state.tokens > 0 && state.updates() == 0) return "tokens of no update";
  if (!(state.seconds >= 0)) return "seconds must be a number of at least 0";
  if (std::isnan(state.loss_sum)) return "loss_sum must be a number";
  if (state.lr < 0) return "lr must be at least 0";
  if (state.best_step > state.step) return "best_step is after step";
  if (state.best_step > 0 && std::isnan(state.best_loss)) return "best_loss must be a number";
  if (state.grad_norm < 0) return "grad_norm must be at least 0";
  if (state.valid_word_ppl < 0) return "valid_word_ppl must be at least 0";
  if (!is_sha256(state.train_sha256)) return "train_sha256 must be 64 hexadecimal digits";
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
  JsonValue json;
  try {
    json = parse_json(text);
  } catch (const JsonSyntaxError& error) {
    refuse(format("line %lld: ", static_cast<long long>(error.at().line)) + error.what());
  }
  if (json.kind != JsonValue::Kind::kObject) refuse("not a JSON object");
  Members members;
  for (const JsonMember& member : json.members) {
    if (!members.emplace(member.key, &member.value).second) {
      refuse(in_quotes(member.key) + " twice");
    }
  }
  const int64_t version = version_of(members, name);
  RunState state;
  members.erase("version");
  for_each_field(state, [&](const char* key, auto& field, int64_t since) {
    if (since > version) return;
    const auto found = members.find(key);
    if (found == members.end()) return refuse(std::string(key) + " is missing");
    const std::string wanted = read_field(*found->second, field);
    if (!wanted.empty()) refuse(std::string(key) + " must be " + wanted);
    members.erase(found);
  });
  if (!members.empty()) refuse("unknown field " + in_quotes(members.begin()->first));
  const std::string problem = contradiction(state, step);
  if (!problem.empty()) refuse(problem);
  return state;
}

}  // namespace stablemask
