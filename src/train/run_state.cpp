#include "src/train/run_state.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "stablemask/base/error.h"

namespace stablemask {
namespace {

using Json = nlohmann::ordered_json;

/// Calls visit(name, field) for every field, so that writing and reading cannot drift apart.
template <class State, class Visit>
void for_each_field(State& state, Visit&& visit) {
  visit("step", state.step);
  visit("tokens", state.tokens);
  visit("skipped", state.skipped);
  visit("skipped_in_a_row", state.skipped_in_a_row);
  visit("validation_pending", state.validation_pending);
  visit("line_pending", state.line_pending);
  visit("loss", state.loss);
  visit("grad_norm", state.grad_norm);
  visit("valid_loss", state.valid_loss);
  visit("valid_word_ppl", state.valid_word_ppl);
  visit("seconds", state.seconds);
  visit("train_sha256", state.train_sha256);
}

void read_field(const Json& json, double& field) {
  // JSON has no NaN; null stands for it.
  field = json.is_null() ? std::nan("") : json.get<double>();
}
template <class Field>
void read_field(const Json& json, Field& field) {
  field = json.get<Field>();
}

}  // namespace

std::string to_json(const RunState& state) {
  Json json;
  for_each_field(state, [&](const char* name, const auto& field) { json[name] = field; });
  return json.dump(2) + "\n";
}

RunState run_state_from_json(const std::string& text, const std::string& name) {
  RunState state;
  try {
    const Json json = Json::parse(text);
    for_each_field(state, [&](const char* key, auto& field) { read_field(json.at(key), field); });
  } catch (const nlohmann::json::exception& error) {
    throw CheckpointError(name + ": not the state of a training run: " + error.what());
  }
  if (state.step < 0 || state.skipped < 0 || state.skipped > state.step) {
    throw CheckpointError(name + ": step and skipped contradict each other");
  }
  return state;
}

}  // namespace stablemask
